"""Inner products of pictures' features, kept so that SVMs on any subset of the pictures are solved fast and precisely.

Features after a ReLU all point about the same way, and single precision would lose their differences in sums over
inner products: these are kept centred, with the mean's part apart in float64. And the linear systems of all SVMs are
preconditioned by the same leading eigenvectors, found once, whatever rows are left out (Frangella et al. 2023,
"Randomized Nystrom preconditioning").
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_RANK = 48
"""Leading eigenvectors that are found."""
_FEATURES_A_CHUNK = 1024
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


def inner_products(features: Tensor, others: Tensor | None = None) -> InnerProducts:
    """Inner products of all rows with all rows, or with those of another set.

    Args:
        features: Columns of the result, (N, D), any floating-point type; computed in float64 if they are, otherwise in
            float32, a thousand features at a time, so that no copy is held.
        others: Rows of the result, (M, D); None: `features`, which takes about half the work.

    Returns:
        M x N inner products, each with 1 added for the intercept, centred on the mean of `features`.
    """
    rows = features if others is None else others
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    centred = features.new_zeros(len(rows), len(features), dtype=dtype)
    row_offsets = features.new_zeros(len(rows), 1, dtype=torch.float64)
    column_offsets = features.new_zeros(1, len(features), dtype=torch.float64)
    constant = features.new_ones((), dtype=torch.float64)
    for start in range(0, features.shape[1], _FEATURES_A_CHUNK):
        part = features[:, start : start + _FEATURES_A_CHUNK].double()
        mean = part.mean(0)
        part = part - mean  # not in place: float64 features are not copied by double()
        column_offsets += mean @ part.T
        other_part = part if others is None else others[:, start : start + _FEATURES_A_CHUNK].double() - mean
        row_offsets += other_part @ mean[:, None]
        constant += mean @ mean
        _add_products(centred, other_part.to(dtype), part.to(dtype), symmetric=others is None)
    if others is None:
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
    """Inner products of the training rows, and factor @ factor.T + remainder * identity, which is close to them."""

    products: InnerProducts
    """(..., N, N)."""
    factor: Tensor
    """(..., N, R), leading eigenvectors times the roots of their eigenvalues."""
    remainder: float
    """Mean eigenvalue of what the factor leaves out."""

    def subset(self, rows: Tensor) -> "Kernel":
        """The kernel of some rows.

        Args:
            rows: Indices, (n,), or (B, n) for B subsets of one size.

        Returns:
            Kernel with products (n, n) or (B, n, n).
        """
        row_offsets = self.products.row_offsets[rows]
        return Kernel(
            InnerProducts(
                self.products.centred[rows[..., :, None], rows[..., None, :]],
                row_offsets,
                row_offsets.mT,
                self.products.constant,
            ),
            self.factor[rows],
            self.remainder,
        )


def build_kernel(features: Tensor) -> Kernel:
    """Prepare training rows for any number of `solve_svms`.

    Args:
        features: (N, D); see `inner_products`. The result holds N * N numbers, so N is at most some ten thousands.

    Returns:
        The kernel, the same for the same features: the start of the search for eigenvectors is fixed.

    Raises:
        ValueError: If a feature is nan or infinite.
    """
    products = inner_products(features)
    trace = products.centred.diagonal().double().sum() + 2 * products.row_offsets.sum()
    trace = trace + len(features) * products.constant
    if not trace.isfinite():
        raise ValueError("features: must be finite, got nan or inf")
    rank = min(_RANK, len(features))
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(features), min(rank + 8, len(features)), generator=generator, dtype=torch.float64)
    basis = basis.to(products.centred)
    for _ in range(3):
        basis = torch.linalg.qr(products.times(basis)).Q
    values, vectors = torch.linalg.eigh((basis.T @ products.times(basis)).double())
    values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
    factor = (basis.double() @ vectors) * values.sqrt()
    remainder = max(0.0, float(trace - values.sum()) / len(features))
    return Kernel(products, factor.to(basis.dtype), remainder)


class Preconditioner:
    """Approximate inverses of K + diag(softness) on the active rows, from the kernel's factor."""

    def __init__(self, kernel: Kernel) -> None:
        self.factor, self.remainder = kernel.factor, kernel.remainder
        self.upper = torch.triu_indices(self.factor.shape[-1], self.factor.shape[-1], device=self.factor.device)
        self.pairs = self.factor[..., self.upper[0]] * self.factor[..., self.upper[1]]  # (..., N, R (R + 1) / 2)

    def prepare(self, active: Tensor, softness: Tensor) -> Callable[[Tensor], Tensor]:
        """Invert factor @ factor.T + diag(remainder + softness), for each column on its active rows.

        Woodbury: with E = 1 / (remainder + softness) the inverse is E - E F (1 + F' E F)^-1 F' E.
        """
        inverse_diagonal = torch.where(active, 1 / (softness + self.remainder), 0)  # (..., N, P)
        rank = self.factor.shape[-1]
        entries = (self.pairs.mT @ inverse_diagonal).mT  # (..., P, R (R + 1) / 2)
        core = entries.new_zeros(*entries.shape[:-1], rank, rank)
        core[..., self.upper[1], self.upper[0]] = entries
        diagonal = core.diagonal(dim1=-2, dim2=-1)
        rounding = 32 * torch.finfo(core.dtype).eps * diagonal.amax(-1, keepdim=True)  # keeps it positive definite
        diagonal.add_(1 + rounding)
        triangle = torch.linalg.cholesky(core)  # of the lower triangle, which alone is read

        def apply(residual: Tensor) -> Tensor:
            weighted = inverse_diagonal * residual
            inner = (self.factor.mT @ weighted).mT[..., None]  # (..., P, R, 1)
            inner = torch.cholesky_solve(inner, triangle)[..., 0].mT
            return weighted - inverse_diagonal * (self.factor @ inner)

        return apply
