"""Inner products of pictures' features, kept so that SVMs on any subset of the pictures are solved fast and precisely.

Features after a ReLU all point about the same way, and single precision would lose their differences in sums over
inner products: these are kept centred, with the mean's part apart in float64. And the linear systems of all SVMs are
preconditioned by the same leading eigenvectors, found once, whatever rows are left out (Frangella et al. 2023,
"Randomized Nystrom preconditioning").

Where several workers hold the pictures between them, each keeps its own rows of the matrix; others' features pass by, a
few columns at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.clustering.rows import Group
from rayssl.evaluation.svm_rows import RowShares

_RANK = 48
"""Leading eigenvectors that are found."""
_FEATURES_A_CHUNK = 1024
"""Divided by the number of workers: a chunk holds these features of all workers' rows."""
_ROWS_A_CHUNK = 512


@dataclass(frozen=True)
class InnerProducts:
    """x.z + 1 for M rows x and N rows z, as (x - m).(z - m) + (x - m).m + m.(z - m) + m.m + 1 for a common m."""

    centred: Tensor
    """(..., M, N), float32 or float64."""
    row_offsets: Tensor
    """(..., M, 1), float64."""
    column_offsets: Tensor
    """(..., 1, N), float64."""
    constant: Tensor
    """Scalar, float64."""

    def times(self, coefficients: Tensor) -> Tensor:
        """Products with coefficients (..., N, P), in the precision of `centred`: (..., M, P)."""
        total = coefficients.sum(-2, keepdim=True)
        dtype = self.centred.dtype
        common = self.column_offsets.to(dtype) @ coefficients + self.constant.to(dtype) * total
        return (self.centred @ coefficients).add_(self.row_offsets.to(dtype) * total).add_(common)

    def exact_times(self, coefficients: Tensor) -> Tensor:
        """The same in float64, for float64 coefficients: about twice the time, some rows converted at a time."""
        values = self.row_offsets * coefficients.sum(-2, keepdim=True)
        values += self.column_offsets @ coefficients + self.constant * coefficients.sum(-2, keepdim=True)
        for start in range(0, self.centred.shape[-2], _ROWS_A_CHUNK):
            rows = slice(start, start + _ROWS_A_CHUNK)
            values[..., rows, :] += self.centred[..., rows, :].double() @ coefficients
        return values

    def transposed(self, rows: Tensor) -> "InnerProducts":
        """The products of all z with some x: N rows, and a column for each of the indices (n,)."""
        return InnerProducts(self.centred[rows].mT, self.column_offsets.mT, self.row_offsets[rows].mT, self.constant)


def inner_products(features: Tensor, others: Tensor | None = None, *, group: Group = None) -> InnerProducts:
    """Inner products of all rows with all rows, or with those of another set.

    Args:
        features: (N_r, D), this worker's of N, any floating-point type; computed in float64 if they are, otherwise in
            float32, a thousand features at a time, so that no copy is held.
        others: (M_r, D), this worker's of M; None: `features`, which on one worker takes about half the work.
        group: The workers that hold the rows between them, in rank order; None: this process alone.

    Returns:
        Inner products, each with 1 added for the intercept, centred on the mean of all `features`: of all `others` with
        this worker's features, (M, N_r); or of this worker's features with all, (N_r, N).
    """
    shares = RowShares(len(features), group, device=features.device)
    other_shares = None if others is None else RowShares(len(others), group, device=others.device)
    num_rows, num_columns = (
        (len(features), shares.total) if other_shares is None else (other_shares.total, len(features))
    )
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    centred = features.new_zeros(num_rows, num_columns, dtype=dtype)
    row_offsets = features.new_zeros(num_rows, 1, dtype=torch.float64)
    column_offsets = features.new_zeros(1, num_columns, dtype=torch.float64)
    constant = features.new_ones((), dtype=torch.float64)
    width = -(-_FEATURES_A_CHUNK // shares.num_workers)
    for start in range(0, features.shape[1], width):
        part = features[:, start : start + width]
        # Not in place: float64 features are not copied by double().
        if others is None or other_shares is None:
            columns = shares.gather(part).double()
            mean = columns.mean(0)
            columns = columns - mean
            rows = columns[shares.own]
        else:
            mean = shares.mean(part.double())
            columns = part.double() - mean
            rows = other_shares.gather(others[:, start : start + width]).double() - mean
        column_offsets += mean @ columns.T
        row_offsets += rows @ mean[:, None]
        constant += mean @ mean
        _add_products(centred, rows.to(dtype), columns.to(dtype), symmetric=others is None and shares.is_alone)
    if others is None and shares.is_alone:
        for start in range(0, len(features), _ROWS_A_CHUNK):
            end = start + _ROWS_A_CHUNK
            centred[start:end, end:] = centred[end:, start:end].T
    return InnerProducts(centred, row_offsets, column_offsets, constant)


def _add_products(out: Tensor, rows: Tensor, columns: Tensor, *, symmetric: bool) -> None:
    """Add rows @ columns.T, of a symmetric matrix only the blocks on and below the diagonal."""
    for start in range(0, len(columns), _ROWS_A_CHUNK):
        first = start if symmetric else 0
        out[first:, start : start + _ROWS_A_CHUNK].addmm_(rows[first:], columns[start : start + _ROWS_A_CHUNK].T)


@dataclass(frozen=True)
class Kernel:
    """Inner products of the training rows, and factor @ factor.T + remainder * identity, which is close to them.

    Of N rows a worker keeps those of its N_r pictures.
    """

    products: InnerProducts
    """(..., N_r, N)."""
    factor: Tensor
    """(..., N_r, R), leading eigenvectors times the roots of their eigenvalues."""
    remainder: float
    """Mean eigenvalue of what the factor leaves out."""
    shares: RowShares
    """Whose the rows are; a kernel of several sets of rows is one worker's."""

    def values(self, coefficients: Tensor) -> Tensor:
        """Products with all workers' coefficients, (..., N_r, P) of this worker's, in the kernel's precision."""
        return self.products.times(self.shares.gather(coefficients))

    def exact_values(self, coefficients: Tensor) -> Tensor:
        """The same in float64, for float64 coefficients."""
        return self.products.exact_times(self.shares.gather(coefficients))

    def subsets(self, rows: Tensor) -> "Kernel | None":
        """The kernels of some subsets of all rows, dealt to the workers.

        Args:
            rows: Indices, (B, n), for B subsets of one size, the same on every worker.

        Returns:
            The kernel of every subset that is this worker's, products (B_r, n, n): of W workers, worker r's are r,
            r + W, ...; None if there are none.
        """
        factor, offsets = self.shares.gather(self.factor), self.shares.gather(self.products.row_offsets)
        rank, num_workers = self.shares.rank, self.shares.num_workers
        if self.shares.is_alone:
            centred = self.products.centred[rows[..., :, None], rows[..., None, :]]
        else:
            pieces = [self._collect(subset, worker=number % num_workers) for number, subset in enumerate(rows)]
            rows = rows[rank::num_workers]
            if len(rows) == 0:
                return None
            centred = torch.stack([piece for piece in pieces if piece is not None])
        products = InnerProducts(centred, offsets[rows], offsets[rows].mT, self.products.constant)
        alone = RowShares(rows.shape[1], device=rows.device)
        return Kernel(products, factor[rows], self.remainder, alone)

    def _collect(self, rows: Tensor, *, worker: int) -> Tensor | None:
        """Inner products of some of all rows, (n, n), put together on one worker; None on the others."""
        own = self.shares.own
        places = ((rows >= own.start) & (rows < own.stop)).nonzero()[:, 0]
        centred = self.products.centred.new_zeros(len(rows), len(rows))
        centred[places] = self.products.centred[(rows[places] - own.start)[:, None], rows]
        self.shares.collect(centred, worker=worker)
        return centred if worker == self.shares.rank else None


def build_kernel(features: Tensor, group: Group = None) -> Kernel:
    """Prepare training rows for any number of `solve_svms`.

    Args:
        features: (N_r, D), this worker's of N; see `inner_products`. The result holds N_r * N numbers, so N is at most
            some ten thousands.
        group: The workers that hold the rows between them, in rank order; None: this process alone.

    Returns:
        The kernel, the same for the same features: the start of the search for eigenvectors is fixed.

    Raises:
        ValueError: If a feature is nan or infinite, on all workers.
    """
    shares = RowShares(len(features), group, device=features.device)
    products = inner_products(features, group=group)
    trace = products.centred[:, shares.own].diagonal().double().sum() + 2 * products.row_offsets.sum()
    trace = shares.sum(trace) + shares.total * products.constant
    if not trace.isfinite():
        raise ValueError("features: must be finite, got nan or inf")
    rank = min(_RANK, shares.total)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(shares.total, min(rank + 8, shares.total), generator=generator, dtype=torch.float64)
    basis = basis.to(products.centred)
    for _ in range(3):
        basis = shares.first(torch.linalg.qr(shares.gather(products.times(basis))).Q)
    own_basis = basis[shares.own]
    values, vectors = torch.linalg.eigh(shares.sum(own_basis.T @ products.times(basis)).double())
    values, vectors = shares.first(values).flip(0)[:rank].clamp_min(0), shares.first(vectors).flip(1)[:, :rank]
    factor = (own_basis.double() @ vectors) * values.sqrt()
    remainder = max(0.0, float(trace - values.sum()) / shares.total)
    return Kernel(products, factor.to(basis.dtype), remainder, shares)


class Preconditioner:
    """Approximate inverses of K + diag(softness) on the active rows, from the kernel's factor."""

    def __init__(self, kernel: Kernel) -> None:
        self.factor, self.remainder, self.shares = kernel.factor, kernel.remainder, kernel.shares
        self.upper = torch.triu_indices(self.factor.shape[-1], self.factor.shape[-1], device=self.factor.device)
        self.pairs = self.factor[..., self.upper[0]] * self.factor[..., self.upper[1]]  # (..., N, R (R + 1) / 2)

    def prepare(self, active: Tensor, softness: Tensor) -> Callable[[Tensor], Tensor]:
        """Invert factor @ factor.T + diag(remainder + softness), for each column on its active rows.

        Woodbury: with E = 1 / (remainder + softness) the inverse is E - E F (1 + F' E F)^-1 F' E.
        """
        inverse_diagonal = torch.where(active, 1 / (softness + self.remainder), 0)  # (..., N, P)
        rank = self.factor.shape[-1]
        entries = self.shares.sum(self.pairs.mT @ inverse_diagonal).mT  # (..., P, R (R + 1) / 2)
        core = entries.new_zeros(*entries.shape[:-1], rank, rank)
        core[..., self.upper[1], self.upper[0]] = entries
        diagonal = core.diagonal(dim1=-2, dim2=-1)
        rounding = 32 * torch.finfo(core.dtype).eps * diagonal.amax(-1, keepdim=True)  # keeps it positive definite
        diagonal.add_(1 + rounding)
        triangle = torch.linalg.cholesky(core)  # of the lower triangle, which alone is read

        def apply(residual: Tensor) -> Tensor:
            weighted = inverse_diagonal * residual
            inner = self.shares.sum(self.factor.mT @ weighted).mT[..., None]  # (..., P, R, 1)
            inner = torch.cholesky_solve(inner, triangle)[..., 0].mT
            return weighted - inverse_diagonal * (self.factor @ inner)

        return apply
