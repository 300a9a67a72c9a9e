"""Linear SVMs on frozen features, as VOC07 classification is measured: cross-validated costs, interpolated AP.

Targets are (N, num_classes): 1 positive, -1 negative, 0 a row that this class ignores. Nothing here scales the
features; the papers' protocols call `l2_normalize` before.

Several workers may hold the rows between them. Each then passes its own and the `group`, all of them together with the
same arguments; each gets the whole result, that of one worker to rounding, and holds N_r of N rows of whatever grows
with N.

Source: Goyal et al. 2019 ("Scaling and Benchmarking Self-Supervised Visual Representation Learning"), its code for
linear SVMs on VOC07, and VISSL's `svm_trainer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayssl.clustering.rows import Group
from rayssl.evaluation.average_precision import average_precision, average_precisions
from rayssl.evaluation.linear_svm import (
    COSTS,
    POSITIVE_WEIGHT,
    TOLERANCE,
    LinearSvms,
    check_costs,
    check_sets,
    check_targets,
    fit_on_kernel,
    fit_svms,
    l2_normalize,
    penalties,
)
from rayssl.evaluation.svm_kernel import Kernel, build_kernel
from rayssl.evaluation.svm_low_shot import LowShotResult, evaluate_low_shot, low_shot_samples
from rayssl.evaluation.svm_rows import RowShares
from rayssl.evaluation.svm_solver import solve_svms

__all__ = [
    "COSTS",
    "CrossValidation",
    "LinearSvms",
    "LowShotResult",
    "SvmResult",
    "average_precision",
    "cross_validated_costs",
    "evaluate_low_shot",
    "evaluate_svm",
    "fit_svms",
    "l2_normalize",
    "low_shot_samples",
]

_COLUMNS_A_GROUP = 128
"""Problems of the cross-validation that are held at a time."""


@dataclass(frozen=True)
class CrossValidation:
    """Which cost does best on held-out folds."""

    costs: Tensor
    """The best of each class, (num_classes,) float64."""
    table: Tensor
    """Average precision of each class, fold and cost, (num_classes, num_folds, num_costs) float64."""


@dataclass(frozen=True)
class SvmResult:
    """What SVMs with cross-validated costs reach on test rows."""

    average_precision: Tensor
    """(num_classes,) float64 in (0, 1]; nan for a class without test positives."""
    mean: float
    """Mean over the classes that have test positives; nan if none has."""
    cross_validation: CrossValidation


def evaluate_svm(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    costs: Sequence[float] = COSTS,
    num_folds: int = 3,
    seed: int | None = 0,
    positive_weight: float = POSITIVE_WEIGHT,
    tolerance: float = TOLERANCE,
    group: Group = None,
) -> SvmResult:
    """Cross-validate each class's cost, fit on all training rows with it, and rank the test rows.

    Args:
        train_features: This worker's rows, (N_r, D); see `fit_svms`.
        train_targets: Of these, 1, -1 or 0 (ignored), (N_r, num_classes). The reference counts difficult pictures as
            negatives.
        test_features: (M_r, D).
        test_targets: 1, -1 or 0 (left out of the class's ranking), (M_r, num_classes).
        costs: See `cross_validated_costs`, as for the other arguments.
        num_folds: As there.
        seed: As there.
        positive_weight: See `fit_svms`.
        tolerance: See `solve_svms`.
        group: The workers that hold the rows between them, in rank order; None: this process alone.

    Returns:
        Interpolated average precision of every class, their mean, and the costs.

    Raises:
        ValueError: If an argument breaks these rules.
    """
    check_sets(train_features, train_targets, test_features, test_targets, min_rows=num_folds, group=group)
    kernel = build_kernel(train_features, group)
    chosen = _cross_validate(kernel, train_targets, costs, num_folds, seed, positive_weight, tolerance)
    svms = fit_on_kernel(
        kernel,
        train_features,
        train_targets,
        chosen.costs[:, None],
        positive_weight=positive_weight,
        tolerance=tolerance,
    )
    test = RowShares(len(test_features), group, device=test_features.device)
    values, all_targets = test.gather(svms.decision_values(test_features)), test.gather(test_targets)
    precisions = torch.cat(
        [
            average_precisions(values[targets != 0, number], targets[targets != 0])
            for number, targets in enumerate(all_targets.T)
        ]
    )
    return SvmResult(precisions, float(precisions.nanmean()), chosen)


def cross_validated_costs(
    features: Tensor,
    targets: Tensor,
    costs: Sequence[float] = COSTS,
    *,
    num_folds: int = 3,
    seed: int | None = 0,
    positive_weight: float = POSITIVE_WEIGHT,
    tolerance: float = TOLERANCE,
    group: Group = None,
) -> CrossValidation:
    """Choose each class's cost by its average precision on rows that were held out.

    Each class has folds of its own, those of scikit-learn's `StratifiedKFold` on the rows that it does not ignore.
    They all share one matrix of inner products, so common folds would not be faster by much. As in the reference, this
    average precision is scikit-learn's, not the interpolated one that is reported in the end.

    Args:
        features: This worker's rows, (N_r, D); see `fit_svms`.
        targets: Of these, 1, -1 or 0 (ignored, both in fitting and in scoring), (N_r, num_classes).
        costs: To choose from, above 0; the first of equally good ones is taken.
        num_folds: At least 2, and at most the positives, and the negatives, of any class.
        seed: Shuffles the rows before they are dealt to the folds; None: as they stand, like the reference.
        positive_weight: See `fit_svms`.
        tolerance: See `solve_svms`.
        group: The workers that hold the rows between them, in rank order; None: this process alone.

    Returns:
        The best costs and the whole table. A best cost at the end of the list says that the list is too short.

    Raises:
        ValueError: If an argument breaks these rules.
    """
    check_targets(features, targets, min_rows=num_folds, group=group)
    kernel = build_kernel(features, group)
    return _cross_validate(kernel, targets, costs, num_folds, seed, positive_weight, tolerance)


def _cross_validate(
    kernel: Kernel,
    targets: Tensor,
    costs: Sequence[float],
    num_folds: int,
    seed: int | None,
    positive_weight: float,
    tolerance: float,
) -> CrossValidation:
    """Cross-validate on rows whose kernel is known; the classes' rankings are spread over the workers."""
    if num_folds < 2:
        raise ValueError(f"num_folds: must be at least 2, got {num_folds}")
    choices, shares = check_costs(costs).to(targets.device), kernel.shares
    num_classes, targets = targets.shape[1], shares.gather(targets)
    folds = torch.stack([_stratified_folds(column, num_folds, seed) for column in targets.T], 1)
    held_out = folds[..., None] == torch.arange(num_folds, device=targets.device)  # (N, num_classes, num_folds)
    signs = targets[shares.own, :, None].masked_fill(held_out[shares.own], 0)
    signs = signs.flatten(1)  # (N_r, num_classes * num_folds)
    table = torch.zeros(num_classes, num_folds, len(costs), dtype=torch.float64, device=targets.device)
    group_size = max(1, _COLUMNS_A_GROUP // signs.shape[1])
    for start in range(0, len(costs), group_size):
        group = slice(start, start + group_size)
        slack_penalties = penalties(signs, costs[group], positive_weight)
        columns = signs[..., None].expand_as(slack_penalties).flatten(1)
        coefficients = solve_svms(kernel, columns, slack_penalties.flatten(1), tolerance=tolerance)
        values = shares.gather(kernel.exact_values(coefficients)).unflatten(1, (num_classes, num_folds, -1))
        for number in range(shares.rank, num_classes, shares.num_workers):
            for fold in range(num_folds):
                rows = held_out[:, number, fold]
                table[number, fold, group] = average_precisions(
                    values[rows, number, fold], targets[rows, number], interpolated=False
                )
    best = shares.sum(table).mean(1).argmax(1)
    return CrossValidation(choices[best], table)


def _stratified_folds(targets: Tensor, num_folds: int, seed: int | None) -> Tensor:
    """The fold in which each row is held out, (N,); -1 for ignored rows."""
    from sklearn.model_selection import StratifiedKFold

    labels = targets.cpu().numpy()
    rows = np.flatnonzero(labels)
    folds = np.full(len(labels), -1)
    splitter = StratifiedKFold(num_folds, shuffle=seed is not None, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(rows, labels[rows])):
        folds[rows[test]] = fold
    return torch.as_tensor(folds, device=targets.device)
