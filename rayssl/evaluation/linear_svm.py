"""Linear SVMs as scikit-learn's `LinearSVC` fits them, for all classes and costs at once.

Targets are (N, num_classes): 1 positive, -1 negative, 0 a row that this class ignores. Nothing here scales the
features; the papers' protocols call `l2_normalize` before.

Source: Goyal et al. 2019 ("Scaling and Benchmarking Self-Supervised Visual Representation Learning"), its code for
linear SVMs on VOC07, and VISSL's `svm_trainer`; the solver is ours, see `svm_solver`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.clustering.rows import Group
from rayssl.evaluation.svm_kernel import Kernel, build_kernel
from rayssl.evaluation.svm_rows import RowShares
from rayssl.evaluation.svm_solver import solve_svms

COSTS = tuple(sorted([10.0**power for power in range(-7, 3)] + [0.5**power for power in range(4, 20)]))
"""The 26 costs that the reference tries: 1e-7..1e2 by decades and 0.5^4..0.5^19, ascending."""
POSITIVE_WEIGHT = 2.0
"""An error on a positive costs twice one on a negative: the reference's class_weight."""
TOLERANCE = 1e-6
"""A hundredth of LinearSVC's default, in the same unit."""
_NUMBERS_A_CHUNK = 2**23
"""Features that are converted to float64 at a time; 64 MiB."""


@dataclass(frozen=True)
class LinearSvms:
    """Fitted SVMs: num_classes * num_costs hyperplanes."""

    weights: Tensor
    """(num_classes, num_costs, D) float64."""
    biases: Tensor
    """(num_classes, num_costs) float64."""

    def decision_values(self, features: Tensor) -> Tensor:
        """Signed distances to the hyperplanes times |w|.

        Args:
            features: (M, D), converted to float64 some rows at a time.

        Returns:
            (M, num_classes, num_costs) float64.
        """
        hyperplanes = self.weights.flatten(0, 1).T
        chunks = features.split(max(1, _NUMBERS_A_CHUNK // features.shape[1]))
        values = torch.cat([chunk.double() @ hyperplanes for chunk in chunks])
        return values.unflatten(1, self.biases.shape) + self.biases


def fit_svms(
    features: Tensor,
    targets: Tensor,
    costs: Sequence[float] | Tensor = COSTS,
    *,
    positive_weight: float = POSITIVE_WEIGHT,
    tolerance: float = TOLERANCE,
    group: Group = None,
) -> LinearSvms:
    """Fit an SVM for every class and cost, all of them at once.

    The problem is `LinearSVC(penalty="l2", loss="squared_hinge", class_weight={1: positive_weight, -1: 1},
    intercept_scaling=1)`, with the intercept regularised like a weight.

    Args:
        features: This worker's rows, (N_r, D), any floating-point type; besides them N_r * N numbers are held (float32,
            or float64 for float64 features), and columns of solutions, but no second copy.
        targets: Of these rows, 1, -1 or 0 (the row has no influence on this class), (N_r, num_classes).
        costs: LinearSVC's C, above 0: the same for all classes, or (num_classes, num_costs) for costs of their own.
        positive_weight: Factor of the cost for positives, above 0.
        tolerance: See `solve_svms`.
        group: The workers that hold the rows between them, in rank order; None: this process alone.

    Returns:
        The hyperplanes, the same on every worker, and for the same arguments, device and number of threads; on other
        numbers of workers to rounding.

    Raises:
        ValueError: If an argument breaks these rules, or a class lacks positives or negatives.
    """
    check_targets(features, targets, min_rows=1, group=group)
    kernel = build_kernel(features, group)
    return fit_on_kernel(kernel, features, targets, costs, positive_weight=positive_weight, tolerance=tolerance)


def l2_normalize(features: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Divide every row by its Euclidean length plus 1e-5.

    Args:
        features: (N, D), any floating-point type; the lengths are computed in float32 at least.
        out: Where the result goes, to spare the second copy; may be `features` itself.

    Returns:
        (N, D), in the features' type.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=dtype)
    return torch.div(features, (lengths + 1e-5).to(features.dtype), out=out)


def fit_on_kernel(
    kernel: Kernel,
    features: Tensor,
    targets: Tensor,
    costs: Sequence[float] | Tensor,
    *,
    positive_weight: float,
    tolerance: float,
) -> LinearSvms:
    """Do as `fit_svms`, for checked rows whose kernel is known."""
    slack_penalties = penalties(targets, costs, positive_weight)  # (N_r, num_classes, num_costs)
    shape = slack_penalties.shape[1:]
    signs = targets[..., None].expand_as(slack_penalties)
    # Columns of one cost stand together: they take about equally long.
    coefficients = solve_svms(kernel, signs.mT.flatten(1), slack_penalties.mT.flatten(1), tolerance=tolerance)
    coefficients = coefficients.unflatten(1, shape[::-1]).mT.flatten(1)  # (N_r, num_classes * num_costs)
    step = max(1, _NUMBERS_A_CHUNK // len(features))
    weights = torch.cat([coefficients.T @ part.double() for part in features.split(step, 1)], 1)
    weights, biases = kernel.shares.sum(weights), kernel.shares.sum(coefficients.sum(0))
    return LinearSvms(weights.unflatten(0, shape), biases.unflatten(0, shape))


def check_targets(features: Tensor, targets: Tensor, *, min_rows: int, group: Group = None) -> None:
    """Refuse targets that don't fit the features.

    Args:
        features: This worker's, (N_r, D).
        targets: (N_r, num_classes).
        min_rows: Least positives, and least negatives, of every class over all workers.
        group: The workers.

    Raises:
        ValueError: If the shapes don't fit, a value is not 1, 0 or -1, or a class has too few rows.
    """
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
        raise ValueError(
            "features and targets: must be (N, D) and (N, num_classes), "
            f"got {tuple(features.shape)} and {tuple(targets.shape)}"
        )
    shares = RowShares(len(targets), group, device=targets.device)
    if shares.any((~torch.isin(targets, targets.new_tensor([-1, 0, 1]))).any()):
        raise ValueError("targets: must be 1 (positive), -1 (negative) or 0 (ignored)")
    for value, name in ((1, "positives"), (-1, "negatives")):
        counts = shares.sum((targets == value).sum(0))
        if (counts < min_rows).any():
            number = int(counts.argmin())
            raise ValueError(
                f"targets: every class must have at least {min_rows} {name}, class {number} has {counts[number]}"
            )


def penalties(targets: Tensor, costs: Sequence[float] | Tensor, positive_weight: float) -> Tensor:
    """How much a row's squared slack counts, for `solve_svms`.

    Args:
        targets: 1, -1 or 0, (..., num_classes).
        costs: (num_costs,), or (num_classes, num_costs), above 0.
        positive_weight: Factor for positives, above 0.

    Returns:
        2 * cost * weight, 0 for ignored rows, (..., num_classes, num_costs) float64.

    Raises:
        ValueError: If a cost or the weight is not positive, or there are no costs.
    """
    costs = check_costs(costs).to(targets.device)
    if not 0 < positive_weight < float("inf"):
        raise ValueError(f"positive_weight: must be a number above 0, got {positive_weight}")
    weights = torch.where(targets > 0, positive_weight, 1.0) * (targets != 0)
    return 2 * costs * weights.double()[..., None]


def check_sets(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    min_rows: int,
    group: Group = None,
) -> None:
    """Refuse training and test rows that don't fit each other or break a rule of `check_targets`.

    Args:
        train_features: This worker's, (N_r, D).
        train_targets: (N_r, num_classes), each class with at least `min_rows` positives and as many negatives.
        test_features: (M_r, D).
        test_targets: (M_r, num_classes).
        min_rows: Of the training rows of all workers; test rows may lack positives.
        group: The workers.

    Raises:
        ValueError: If a rule is broken.
    """
    check_targets(train_features, train_targets, min_rows=min_rows, group=group)
    check_targets(test_features, test_targets, min_rows=0, group=group)
    train = (train_features.shape[1], train_targets.shape[1])
    test = (test_features.shape[1], test_targets.shape[1])
    if train != test:
        raise ValueError(f"training and test rows: must have the same (D, num_classes), got {train} and {test}")


def check_costs(costs: Sequence[float] | Tensor) -> Tensor:
    """Refuse costs that are not positive numbers.

    Returns:
        The same, float64.

    Raises:
        ValueError: If a cost is not above 0 and finite, or there are none.
    """
    values = torch.as_tensor(costs, dtype=torch.float64)
    if values.numel() == 0 or not ((values > 0) & values.isfinite()).all():
        raise ValueError(f"costs: must be numbers above 0, at least one, got {values.tolist()}")
    return values
