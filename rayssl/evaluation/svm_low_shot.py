"""Low-shot linear SVMs: how good are the features when a class has only a few positives?

Source: Goyal et al. 2019, section 6.1 ("low-shot") and the code beside it; VISSL's `svm_low_shot_trainer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.evaluation.average_precision import average_precisions
from rayssl.evaluation.base import derive_seed
from rayssl.evaluation.linear_svm import COSTS, POSITIVE_WEIGHT, TOLERANCE, check_costs, check_sets, penalties
from rayssl.evaluation.svm_kernel import InnerProducts, Kernel, build_kernel, inner_products
from rayssl.evaluation.svm_solver import solve_svms

NUM_POSITIVES = (1, 2, 4, 8, 16, 32, 64, 96)
"""The numbers of positives that the papers measure."""
NEGATIVES_A_POSITIVE = 19
_MOST_GATHERED = 2**25
"""Inner products that are copied at a time for the samples of several classes; 128 MiB in float32."""


@dataclass(frozen=True)
class LowShotResult:
    """What a number of positives reaches, over several samples."""

    mean: float
    """Mean over samples of the mean average precision over classes, at `cost`."""
    deviation: float
    """Standard deviation of the same; divided by the number of samples, not one less, like the reference."""
    cost: float
    """The cost with the highest mean."""
    table: Tensor
    """Mean average precision of each sample and cost, (num_samples, num_costs) float64."""


def evaluate_low_shot(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    num_positives: Sequence[int] = NUM_POSITIVES,
    num_samples: int = 5,
    costs: Sequence[float] = COSTS,
    seed: int = 0,
    positive_weight: float = POSITIVE_WEIGHT,
    tolerance: float = TOLERANCE,
) -> dict[int, LowShotResult]:
    """Fit SVMs on samples of few positives, and rank all test rows.

    There is nothing to cross-validate on, so the reference takes, for each number of positives, the cost with the
    highest mean on the test rows themselves. That is optimistic by construction; it is kept so that numbers compare.

    Args:
        train_features: (N, D), any floating-point type. Besides them N * (N + M) inner products are held.
        train_targets: 1, -1 or 0 (never sampled), (N, num_classes).
        test_features: (M, D).
        test_targets: 1, -1 or 0 (left out of the class's ranking), (M, num_classes).
        num_positives: The k of `low_shot_samples`.
        num_samples: Samples of each k, at least 1.
        costs: LinearSVC's C, above 0.
        seed: Decides the samples.
        positive_weight: See `fit_svms`.
        tolerance: See `solve_svms`.

    Returns:
        For each number of positives, the result at its best cost.

    Raises:
        ValueError: If an argument breaks these rules; see `low_shot_samples`.
    """
    check_sets(train_features, train_targets, test_features, test_targets, min_rows=0)
    check_costs(costs)
    if not (test_targets > 0).any():
        raise ValueError("test_targets: must have a positive")
    if num_samples < 1:
        raise ValueError(f"num_samples: must be at least 1, got {num_samples}")
    samples = {
        k: [low_shot_samples(train_targets, k, sample=sample, seed=seed) for sample in range(num_samples)]
        for k in num_positives
    }
    kernel = build_kernel(train_features)
    test_products = inner_products(test_features, train_features)
    results = {}
    for k, drawn in samples.items():
        rows = [
            _mean_average_precisions(
                kernel,
                test_products,
                targets,
                test_targets,
                costs,
                positive_weight=positive_weight,
                tolerance=tolerance,
            )
            for targets in drawn
        ]
        results[k] = _best(torch.stack(rows), costs)
    return results


def low_shot_samples(targets: Tensor, k: int, *, sample: int, seed: int) -> Tensor:
    """Draw k positives and 19 k negatives of every class; the class ignores all other rows.

    Args:
        targets: 1, -1 or 0 (never drawn), (N, num_classes).
        k: At least 1.
        sample: Number of the sample, at least 0.
        seed: At least 0; samples, classes and different k are drawn independently of each other.

    Returns:
        1, -1 or 0, as `targets`.

    Raises:
        ValueError: If k is less than 1, or a class has too few rows.
    """
    if k < 1:
        raise ValueError(f"k: must be at least 1, got {k}")
    drawn = torch.zeros_like(targets)
    for number, column in enumerate(targets.T):
        generator = torch.Generator().manual_seed(derive_seed(seed, k, sample, number))
        for value, count, name in ((1, k, "positives"), (-1, NEGATIVES_A_POSITIVE * k, "negatives")):
            candidates = (column == value).nonzero()[:, 0]
            if len(candidates) < count:
                raise ValueError(
                    f"k: {k} needs {count} {name} of every class, class {number} has {len(candidates)}; leave {k} out"
                )
            chosen = torch.randperm(len(candidates), generator=generator)[:count].to(targets.device)
            drawn[candidates[chosen], number] = value
    return drawn


def _mean_average_precisions(
    kernel: Kernel,
    test_products: InnerProducts,
    train_targets: Tensor,
    test_targets: Tensor,
    costs: Sequence[float],
    *,
    positive_weight: float,
    tolerance: float,
) -> Tensor:
    """Mean over classes for each cost, (num_costs,); every class has equally many rows that it doesn't ignore."""
    rows = torch.stack([column.nonzero()[:, 0] for column in train_targets.T])  # (num_classes, n)
    signs = train_targets.T.gather(1, rows)
    precisions = []
    classes = torch.arange(len(rows), device=rows.device)
    for group in classes.split(max(1, _MOST_GATHERED // rows.shape[1] ** 2)):
        slack_penalties = penalties(signs[group], costs, positive_weight)  # (classes, n, num_costs)
        columns = signs[group, :, None].expand_as(slack_penalties)
        coefficients = solve_svms(kernel.subset(rows[group]), columns, slack_penalties, tolerance=tolerance)
        for number, solution in zip(group.tolist(), coefficients, strict=True):
            counted = test_targets[:, number] != 0
            values = test_products.transposed(rows[number]).exact_times(solution)
            precisions.append(average_precisions(values[counted], test_targets[counted, number]))
    return torch.stack(precisions).nanmean(0)


def _best(table: Tensor, costs: Sequence[float]) -> LowShotResult:
    """The cost whose mean over samples is highest; the lowest of equals."""
    best = int(table.mean(0).argmax())
    at_best = table[:, best]
    return LowShotResult(float(at_best.mean()), float(at_best.std(correction=0)), float(costs[best]), table)
