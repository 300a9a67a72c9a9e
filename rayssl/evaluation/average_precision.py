"""Average precision: the area under a precision-recall curve, for one ranking or many of the same rows."""

from math import nan

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def average_precision(scores: ArrayLike | Tensor, targets: ArrayLike | Tensor, *, interpolated: bool = True) -> float:
    """Area under the precision-recall curve of one class.

    Rows with equal scores enter the ranking together, so the result does not depend on the order of the rows. (The
    reference code sorts them somehow; where no positive has the score of a negative, the two are the same.)

    Args:
        scores: (N,), higher means more likely positive.
        targets: (N,), positive above 0, all others negative: leave ignored rows out before.
        interpolated: True: the precision at a recall is the highest at that recall or above, so the curve falls
            monotonically, and every recall counts (not 11 of them). False: the precision as it is, scikit-learn's
            `average_precision_score`.

    Returns:
        A value in (0, 1]; nan if there are no positives.

    Raises:
        ValueError: If the shapes differ or are not (N,), or a score is nan.

    Source: `calculate_ap` of Goyal et al. 2019's benchmark and of VISSL, after the VOC devkit from 2010 on.
    """
    ranking, labels = _to_tensor(scores), _to_tensor(targets)
    if ranking.ndim != 1 or ranking.shape != labels.shape:
        raise ValueError(
            f"scores and targets: must be of one shape (N,), got {tuple(ranking.shape)} and {tuple(labels.shape)}"
        )
    return float(average_precisions(ranking[:, None], labels, interpolated=interpolated)[0])


def average_precisions(scores: Tensor, targets: Tensor, *, interpolated: bool = True) -> Tensor:
    """The same for many rankings of the same rows.

    Args:
        scores: (N, P), a ranking a column.
        targets: (N,), positive above 0.
        interpolated: As in `average_precision`.

    Returns:
        (P,) float64; nan if there are no positives.

    Raises:
        ValueError: If a score is nan.
    """
    if scores.isnan().any():
        raise ValueError("scores: must be numbers, got nan")
    positive = targets > 0
    num_positives = int(positive.sum())
    if num_positives == 0:
        return torch.full((scores.shape[1],), nan, dtype=torch.float64, device=scores.device)
    first = positive.to(torch.uint8).argsort(descending=True, stable=True)  # a tie's rows are added up in one order
    ranked, order = scores[first].T.contiguous().sort(dim=1, descending=True, stable=True)  # (P, N)
    hits = positive[first][order]
    ranks = torch.arange(1, len(targets) + 1, dtype=torch.float64, device=scores.device)
    precision = hits.cumsum(1) / ranks
    ends_tie = torch.ones_like(hits)
    ends_tie[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    if interpolated:
        precision = precision.where(ends_tie, 0.0).flip(1).cummax(1).values.flip(1)
    else:
        last = torch.arange(len(targets), device=scores.device)
        end = last.where(ends_tie, len(targets)).flip(1).cummin(1).values.flip(1)  # of the tie that a rank is in
        precision = precision.gather(1, end)
    return (precision * hits).sum(1) / num_positives


def _to_tensor(values: ArrayLike | Tensor) -> Tensor:
    """A tensor on the CPU; of other arrays a copy, because torch doesn't take read-only or reversed ones."""
    return values.cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
