"""PCA whitening and L2 normalisation: an option before k-means."""

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.clustering.rows import Group, Rows, row_blocks, share_rows

_NO_VARIANCE = 1e-6
"""Variance, relative to the largest, at which float32 features can't be told from constant ones."""


@torch.no_grad()
def whiten(features: Tensor, *, num_components: int | None = None, group: Group = None) -> Tensor:
    """Turn features onto their principal directions, scale these to unit variance, and rows to unit length.

    Args:
        features: This worker's rows, (N_r, D), floats.
        num_components: Directions to keep, those of the largest variance; None: all in which the features vary.
        group: The workers that hold the rows, see the package; None: this process alone.

    Returns:
        (N_r, C), float32; a row at the mean stays 0.

    Raises:
        ValueError: If there are fewer directions of any variance than asked for, or features are not (N, D) or not
            finite.

    Source: Caron et al. 2018 (DeepCluster), section 4: features are PCA-whitened and L2-normalised before k-means.
    """
    if num_components is not None and num_components < 1:
        raise ValueError(f"num_components: must be at least 1, got {num_components}")
    rows = share_rows(features, group)
    variances, directions = _principal_directions(rows)
    num_varying = int((variances > _NO_VARIANCE * variances[0]).sum())
    count = num_varying if num_components is None else num_components
    if count > num_varying or count == 0:
        raise ValueError(
            f"num_components: must be from 1 to {num_varying}, the number of directions in which the features vary, "
            f"got {num_components}"
        )
    transform = (directions[:, :count] / variances[:count].sqrt()).float()
    whitened = features.new_empty(len(rows.values), count, dtype=torch.float32)
    for block in row_blocks(len(rows.values), rows.values.shape[1], rows.values.device):
        whitened[block] = functional.normalize((rows.values[block] - rows.mean) @ transform)
    return whitened


def _principal_directions(rows: Rows) -> tuple[Tensor, Tensor]:
    """Variances (D,), the largest first, and directions in columns (D, D), float64, the same on every worker."""
    dim, device = rows.values.shape[1], rows.values.device
    covariance = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    for block in row_blocks(len(rows.values), dim, device):
        centred = rows.values[block] - rows.mean
        covariance += centred.T @ centred
    covariance = rows.workers.sum(covariance) / max(1, rows.num_rows - 1)
    # Directions are found on one worker: another library elsewhere might turn some of them round.
    found = torch.zeros(dim + 1, dim, dtype=torch.float64, device=device)
    if rows.workers.rank == 0:
        found[0], found[1:] = torch.linalg.eigh(covariance)
    variances, directions = rows.workers.sum(found).flip(1).split([1, dim])
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return variances[0], directions * largest.sign()
