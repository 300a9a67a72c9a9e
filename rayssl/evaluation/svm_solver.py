"""Many linear SVMs on the same rows at once: classes, costs and folds are columns of the same matrix products.

The problem is scikit-learn's `LinearSVC` (liblinear's L2-regularised, squared-hinge SVM whose intercept is regularised
like a weight): minimise |w|^2 / 2 + sum_i c_i max(0, 1 - y_i f_i)^2 / 2, where f_i = w.x_i and every x_i ends in a 1.
With w = sum_i b_i x_i it can be said in coefficients b (N,) and inner products K (N, N): at the solution
y_i b_i = c_i max(0, 1 - y_i f_i), so that (K + diag(1 / c)) b = y on the active rows, those with y_i f_i < 1.

Solved by Newton steps on the active rows (Chapelle 2007, "Training a support vector machine in the primal", section
2.3). Each step's linear systems are solved roughly, by preconditioned conjugate gradients: one product of K with all
columns an iteration. The products are in the kernel's precision; what they are corrections to is kept in float64.

Where several workers hold the rows between them, each solves for the coefficients of its own, N_r: what travels are the
coefficients that K is multiplied with, and sums and maxima a column. All that decides what is done next is one of
these, so that no worker goes another way.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.evaluation.svm_kernel import Kernel, Preconditioner
from rayssl.evaluation.svm_rows import RowShares

_MOST_COLUMNS = 128
"""Problems that are solved at a time; more make the products no faster."""
_FORCING = 0.05
"""A Newton step's linear system is solved until its error is this share of the problem's."""
_MOST_ITERATIONS = 200
"""Of conjugate gradients, in one Newton step."""


def solve_svms(kernel: Kernel, targets: Tensor, penalties: Tensor, *, tolerance: float, max_steps: int = 60) -> Tensor:
    """Coefficients of many SVMs over the same rows; w = sum_i coefficients_i x_i.

    Args:
        kernel: Of the training rows, this worker's (N_r, N), or (B, N, N) for B sets of rows at once.
        targets: 1 or -1, (..., N_r, P), a problem a column; any value where the penalty is 0.
        penalties: c_i = 2 * cost * class weight, at least 0, (..., N_r, P); a row with 0 has no influence at all.
        tolerance: Greatest |c_i max(0, 1 - y_i f_i) - y_i b_i| / c_i of any row, which is 0 at the solution. This is
            liblinear's measure, whose default is 1e-4.
        max_steps: Newton steps after which a problem is given up, with a warning.

    Returns:
        (..., N_r, P) float64; 0 in rows without penalty.
    """
    solutions = [
        _solve_columns(kernel, part.double(), penalty.double(), tolerance=tolerance, max_steps=max_steps)
        for part, penalty in zip(targets.split(_MOST_COLUMNS, -1), penalties.split(_MOST_COLUMNS, -1), strict=True)
    ]
    return torch.cat(solutions, -1)


def _solve_columns(kernel: Kernel, targets: Tensor, penalties: Tensor, *, tolerance: float, max_steps: int) -> Tensor:
    """Newton steps for all columns; a column is put aside once it is solved in all sets of rows."""
    solution = torch.zeros_like(targets)
    places = torch.arange(targets.shape[-1], device=targets.device)
    problems = _Problems(kernel.shares, targets, penalties, torch.zeros_like(targets), torch.zeros_like(targets))
    precondition = Preconditioner(kernel)
    accuracy = torch.full_like(targets[..., 0, :], _FORCING)  # (..., P)
    for _ in range(max_steps):
        start, start_values = problems.refresh(kernel)
        error = problems.error()
        unsolved = error > tolerance  # (..., P)
        solution[..., places] = problems.coefficients
        remaining = unsolved.reshape(-1, len(places)).any(0)
        if not remaining.any():
            return solution
        if not remaining.all():
            problems, places = problems.take(remaining), places[remaining]
            start, start_values = start[..., remaining], start_values[..., remaining]
            error, unsolved = error[..., remaining], unsolved[..., remaining]
            accuracy = accuracy[..., remaining]
        goal = torch.where(unsolved, (accuracy * error).clamp_min(tolerance / 4), torch.inf)
        proposal = _solve_active(kernel, precondition, problems, start, start_values, goal)
        share = problems.move_towards(*proposal, movable=unsolved)
        # A rough solution may not point downhill; one that is good enough always does.
        accuracy = torch.where(share < 0.1, accuracy / 10, _FORCING)
    problems.refresh(kernel)
    solution[..., places] = problems.coefficients
    error = problems.error()
    if (error > tolerance).any():
        warnings.warn(
            f"SVM: {int((error > tolerance).sum())} of {targets[..., 0, :].numel()} problems not solved to "
            f"{tolerance:g} in {max_steps} steps; the greatest error is {error.max():.1e}",
            RuntimeWarning,
            stacklevel=2,
        )
    return solution


@dataclass
class _Problems:
    """Where the unsolved columns stand; all tensors (..., N_r, P)."""

    shares: RowShares
    targets: Tensor
    penalties: Tensor
    coefficients: Tensor
    values: Tensor
    """Decision values of the training rows: K @ coefficients."""

    def __post_init__(self) -> None:
        self.counts = self.penalties > 0
        self.softness = torch.where(self.counts, 1 / self.penalties, 0)
        self.active = self.counts

    def take(self, columns: Tensor) -> "_Problems":
        """Keep some columns."""
        parts = (self.targets, self.penalties, self.coefficients, self.values)
        taken = _Problems(self.shares, *(part[..., columns] for part in parts))
        taken.active = self.active[..., columns]
        return taken

    def refresh(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        """Find the active rows, and return the coefficients in them alone with their decision values.

        Where those are all coefficients, the decision values are replaced: the old ones are sums over many steps, with
        all their rounding errors.
        """
        self.active = self.counts & (self.targets * self.values < 1)
        kept = self.coefficients * self.active
        kept_values = kernel.exact_values(kept)
        incomplete = self.shares.any((kept != self.coefficients).any(-2, keepdim=True))
        self.values = torch.where(incomplete, self.values, kept_values)
        return kept, kept_values

    def error(self) -> Tensor:
        """How far each column is from its solution, (..., P); see `solve_svms`."""
        slack = (1 - self.targets * self.values).clamp_min(0) * self.counts
        return _largest((self.targets * self.coefficients * self.softness - slack).abs(), self.shares)

    def move_towards(self, coefficients: Tensor, values: Tensor, *, movable: Tensor) -> Tensor:
        """Go where the objective is lowest on the way to a proposal; all the way, if it is no higher there.

        Returns:
            The share of the way, 0..1, (..., P); 0 for the columns that are not `movable`.
        """
        change, value_change = coefficients - self.coefficients, values - self.values
        own = (
            _dot(self.coefficients, value_change),
            _dot(change, value_change),
            self._loss(self.values),
            self._loss(values),
        )
        slope, curvature, before, loss = self.shares.sum(torch.stack(own))
        after = slope + curvature / 2 + loss
        rounding = 1e-12 * before
        share = torch.ones_like(slope)
        if (after > before + rounding).any():
            shortened = self._line_minimum(slope, curvature, value_change)
            share = torch.where(after > before + rounding, shortened, share)
        share = share * movable
        part = share[..., None, :]
        self.coefficients = torch.where(part == 1, coefficients, self.coefficients + part * change)
        self.values = torch.where(part == 1, values, self.values + part * value_change)
        return share

    def _loss(self, values: Tensor) -> Tensor:
        """This worker's sum of penalties times squared slacks, halved; (..., P) float64."""
        slack = (1 - self.targets * values).clamp_min(0)
        return _dot(self.penalties * slack, slack) / 2

    def _line_minimum(self, slope: Tensor, curvature: Tensor, value_change: Tensor) -> Tensor:
        """Share of the way, in 0..1, at which the objective is lowest: Newton steps kept inside a shrinking bracket."""
        low, high = torch.zeros_like(slope), torch.ones_like(slope)
        share = high / 2
        for _ in range(20):
            values = self.values + share[..., None, :] * value_change
            weights = self.penalties * (self.targets * values < 1) * value_change
            own = torch.stack((_dot(weights, self.targets - values), _dot(weights, value_change)))
            push, stiffness = self.shares.sum(own)
            derivative = slope + share * curvature - push
            low, high = torch.where(derivative < 0, share, low), torch.where(derivative < 0, high, share)
            step = share - derivative / (curvature + stiffness)
            inside = (step > low) & (step < high)  # also False for nan
            following = torch.where(inside, step, (low + high) / 2)
            settled = (following - share).abs() <= 1e-3 * following
            share = following
            if settled.all():
                break
        return share


def _solve_active(
    kernel: Kernel,
    precondition: Preconditioner,
    problems: _Problems,
    coefficients: Tensor,
    values: Tensor,
    goal: Tensor,
) -> tuple[Tensor, Tensor]:
    """Solve (K + diag(softness)) b = y on the active rows by preconditioned conjugate gradients.

    Args:
        kernel: K.
        precondition: Of K.
        problems: Their active rows are the equations.
        coefficients: Where to start, 0 in other rows, (..., N_r, P).
        values: K @ coefficients, (..., N_r, P).
        goal: Greatest residual that is good enough, (..., P).

    Returns:
        Coefficients b, 0 in rows that are not active, and K @ b.
    """
    shares, dtype = kernel.shares, kernel.products.centred.dtype
    residual = (problems.targets - values - problems.softness * coefficients) * problems.active
    residual, softness, active = residual.to(dtype), problems.softness.to(dtype), problems.active
    apply = precondition.prepare(active, softness)
    direction = apply(residual)
    energy = shares.sum(_dot(residual, direction))
    change, value_change = torch.zeros_like(residual), torch.zeros_like(residual)
    unsolved = _largest(residual.abs(), shares) > goal
    for _ in range(_MOST_ITERATIONS):
        if not unsolved.any():
            break
        direction_values = kernel.values(direction)
        image = (direction_values + softness * direction) * active
        length = torch.where(unsolved, energy / shares.sum(_dot(direction, image)), 0).to(dtype)[..., None, :]
        change += length * direction
        value_change += length * direction_values
        residual -= length * image
        unsolved = unsolved & (_largest(residual.abs(), shares) > goal)
        corrected = apply(residual)
        previous, energy = energy, shares.sum(_dot(residual, corrected))
        ratio = torch.where(unsolved, energy / previous, 0).to(dtype)[..., None, :]
        direction = corrected + ratio * direction
    return coefficients + change, values + value_change


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Column by column over this worker's rows, added up in float64; (..., P)."""
    return (a * b).sum(-2, dtype=torch.float64)


def _largest(values: Tensor, shares: RowShares) -> Tensor:
    """Of each column over all workers' rows, none of which is negative; (..., P)."""
    return shares.largest(values.amax(-2))
