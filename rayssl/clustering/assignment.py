"""Which centre is nearest to each row, by all distances."""

from typing import Protocol

import torch
from torch import Tensor

from rayssl.clustering.rows import Rows, take_rows


class Assignment(Protocol):
    """Labels a worker's rows, again and again as the centres move."""

    def __call__(self, centers: Tensor) -> Tensor:
        """The nearest centre of each row, (N_r,), int64; the caller's to keep."""


class PlainAssignment:
    """All distances in each step, by matrix products in float32."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, centers: Tensor) -> Tensor:
        """The nearest centre of each row; of equally near ones the first."""
        labels = torch.empty(len(self._rows.values), dtype=torch.int64, device=centers.device)
        all_rows = torch.arange(len(labels), device=centers.device)
        centred = centers - self._rows.mean
        for block, values in take_rows(self._rows.values, all_rows, width=len(centers)):
            labels[block] = centred_scores(values.sub_(self._rows.mean), centred).argmin(dim=1)
        return labels


def centred_scores(values: Tensor, centers: Tensor) -> Tensor:
    """Squared distances less the rows' own squared norms, (N, K); both around the mean, where rounding is least."""
    return torch.addmm(centers.square().sum(dim=1), values, centers.T, alpha=-2)
