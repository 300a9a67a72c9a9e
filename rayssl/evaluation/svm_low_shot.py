"""Low-shot linear SVMs: how good are the features when a class has only a few positives?

Source: Goyal et al. 2019, section 6.1 ("low-shot") and the code beside it; VISSL's `svm_low_shot_trainer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.clustering.rows import Group
from rayssl.evaluation.average_precision import average_precisions
from rayssl.evaluation.base import derive_seed
from rayssl.evaluation.linear_svm import COSTS, POSITIVE_WEIGHT, TOLERANCE, check_costs, check_sets, penalties
from rayssl.evaluation.svm_kernel import InnerProducts, Kernel, build_kernel, inner_products
from rayssl.evaluation.svm_rows import RowShares
from rayssl.evaluation.svm_solver import solve_svms

NUM_POSITIVES = (1, 2, 4, 8, 16, 32, 64, 96)
"""The numbers of positives that the papers measure."""
NEGATIVES_A_POSITIVE = 19
_MOST_GATHERED = 2**25
"""Inner products that a worker copies at a time for the samples of several classes; 128 MiB in float32."""


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
    group: Group = None,
) -> dict[int, LowShotResult]:
    """Fit SVMs on samples of few positives, and rank all test rows.

    There is nothing to cross-validate on, so the reference takes, for each number of positives, the cost with the
    highest mean on the test rows themselves. That is optimistic by construction; it is kept so that numbers compare.

    Args:
        train_features: This worker's rows, (N_r, D), any floating-point type. Besides them N * (N_r + M_r) inner
            products are held.
        train_targets: Of these, 1, -1 or 0 (never sampled), (N_r, num_classes).
        test_features: (M_r, D).
        test_targets: 1, -1 or 0 (left out of the class's ranking), (M_r, num_classes).
        num_positives: The k of `low_shot_samples`.
        num_samples: Samples of each k, at least 1.
        costs: LinearSVC's C, above 0.
        seed: Decides the samples.
        positive_weight: See `fit_svms`.
        tolerance: See `solve_svms`.
        group: The workers that hold the rows between them, in rank order; None: this process alone.

    Returns:
        For each number of positives, the result at its best cost.

    Raises:
        ValueError: If an argument breaks these rules; see `low_shot_samples`.
    """
    check_sets(train_features, train_targets, test_features, test_targets, min_rows=0, group=group)
    check_costs(costs)
    train = RowShares(len(train_features), group, device=train_features.device)
    test = RowShares(len(test_features), group, device=test_features.device)
    train_targets, test_targets = train.gather(train_targets), test.gather(test_targets)
    if not (test_targets > 0).any():
        raise ValueError("test_targets: must have a positive")
    if num_samples < 1:
        raise ValueError(f"num_samples: must be at least 1, got {num_samples}")
    samples = {
        k: [low_shot_samples(train_targets, k, sample=sample, seed=seed) for sample in range(num_samples)]
        for k in num_positives
    }
    kernel = build_kernel(train_features, group)
    test_products = inner_products(test_features, train_features, group=group)
    results = {}
    for k, drawn in samples.items():
        rows = [
            _mean_average_precisions(
                kernel,
                test_products,
                test,
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
    test: RowShares,
    train_targets: Tensor,
    test_targets: Tensor,
    costs: Sequence[float],
    *,
    positive_weight: float,
    tolerance: float,
) -> Tensor:
    """Mean over classes for each cost, (num_costs,); every class has equally many rows that it doesn't ignore.

    Each worker solves for classes of its own, and ranks for them; the test rows' values come from all workers.
    """
    rows = torch.stack([column.nonzero()[:, 0] for column in train_targets.T])  # (num_classes, n)
    signs = train_targets.T.gather(1, rows)
    precisions = torch.zeros(len(rows), len(costs), dtype=torch.float64, device=rows.device)
    classes = torch.arange(len(rows), device=rows.device)
    for group in classes.split(max(1, _MOST_GATHERED // rows.shape[1] ** 2) * test.num_workers):
        own = slice(test.rank, None, test.num_workers)
        coefficients = torch.zeros(len(group), rows.shape[1], len(costs), dtype=torch.float64, device=rows.device)
        if (subsets := kernel.subsets(rows[group])) is not None:
            slack_penalties = penalties(signs[group[own]], costs, positive_weight)  # (own classes, n, num_costs)
            columns = signs[group[own], :, None].expand_as(slack_penalties)
            coefficients[own] = solve_svms(subsets, columns, slack_penalties, tolerance=tolerance)
        for place, (number, solution) in enumerate(zip(group.tolist(), test.sum(coefficients), strict=True)):
            values = test.gather(test_products.transposed(rows[number]).exact_times(solution))
            if place % test.num_workers == test.rank:
                counted = test_targets[:, number] != 0
                precisions[number] = average_precisions(values[counted], test_targets[counted, number])
    return test.sum(precisions).nanmean(0)


def _best(table: Tensor, costs: Sequence[float]) -> LowShotResult:
    """The cost whose mean over samples is highest; the lowest of equals."""
    best = int(table.mean(0).argmax())
    at_best = table[:, best]
    return LowShotResult(float(at_best.mean()), float(at_best.std(correction=0)), float(costs[best]), table)
