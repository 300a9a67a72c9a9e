"""Which centre is nearest to each row, by those distances alone that bounds don't rule out."""

import warnings

import numpy as np
import torch
from torch import Tensor

from rayssl.clustering.assignment import Assignment, PlainAssignment, centred_scores
from rayssl.clustering.rows import Rows, row_blocks, take_rows

_ROUNDING = 4e-6
"""Bounds the error of a squared distance that products in float32 gave, relative to the squared norms in it."""
_PAIR_COST, _ROW_COST = 30, 50
"""A single distance costs what the product of a row with this many centres does, and fetching a row for its product
what this many do; measured with D = 2,048."""
_LEAST_DIM = 256
"""With fewer dimensions a distance is cheaper than the bookkeeping that avoids it."""
_MOST_OFFSET = 100.0
"""Squared distance of the mean from 0, relative to the variance, above which products of whole rows lose digits."""


def choose_assignment(rows: Rows, num_clusters: int) -> Assignment:
    """The faster way for these rows and so many clusters; a GPU multiplies faster than it keeps books.

    Bounds take at most as much memory as the rows themselves: for more clusters than dimensions there are none.
    """
    dim = rows.values.shape[1]
    is_centred = rows.mean.double().square().sum().item() <= _MOST_OFFSET * rows.scatter / rows.num_rows
    if rows.values.device.type == "cpu" and max(_LEAST_DIM, num_clusters) <= dim and is_centred:
        return BoundedAssignment(rows)
    return PlainAssignment(rows)


class BoundedAssignment:
    """The same labels as PlainAssignment, from few distances.

    For each row an upper bound of the distance to its own centre and a lower bound for each other one are kept. When
    centres move, the triangle inequality moves the bounds, and a distance is computed only where a lower bound falls
    below the upper one: once the centres move little, for about one pair in a hundred. All bounds leave room for
    rounding, so that a label differs from the plain one only where two centres are equally near to rounding.

    The bounds take K numbers a row beside the row's D. On CPUs only.

    Source: Elkan 2003; lemma 1 of it, which compares centres, rules out nothing in many dimensions and is left out.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._slack = 2e-7 * (rows.scatter / rows.num_rows) ** 0.5
        self._centers: Tensor | None = None
        self._labels = torch.empty(len(rows.values), dtype=torch.int64)
        self._upper = torch.empty(len(rows.values))
        self._lower = torch.empty(0)

    def __call__(self, centers: Tensor) -> Tensor:
        """The nearest centre of each row."""
        num_rows = len(self._labels)
        geometry = _Geometry(self._rows, centers)
        if self._centers is None:
            self._lower = torch.empty(num_rows, len(centers))
            self._measure_rows(torch.arange(num_rows), geometry)
        else:
            shifts = torch.linalg.vector_norm(centers - self._centers, dim=1) * (1 + 1e-6) + self._slack
            for block in row_blocks(num_rows, len(centers), centers.device):
                self._update(block, shifts, geometry)
        self._centers = centers.clone()
        return self._labels.clone()

    def _update(self, block: slice, shifts: Tensor, geometry: "_Geometry") -> None:
        """Label a block of rows after the centres moved by at most `shifts`."""
        labels, upper, lower = self._labels[block], self._upper[block], self._lower[block]
        lower -= shifts
        upper += shifts[labels]
        loose = (lower.amin(dim=1) < upper).nonzero().flatten()
        if len(loose) == 0:
            return
        own, errors = torch.empty_like(upper), torch.empty_like(upper)
        own[loose], errors[loose] = geometry.measure_pairs(block, loose, labels[loose])
        upper[loose] = (own[loose] + errors[loose]).sqrt_()
        # numpy finds the few places several times faster.
        places = np.flatnonzero(np.less(lower.numpy(), upper.numpy()[:, None]))
        rows, others = (torch.from_numpy(part) for part in np.divmod(places, len(shifts)))
        is_dense = torch.bincount(rows, minlength=len(labels)) * _PAIR_COST > len(shifts) + _ROW_COST
        self._measure_rows(is_dense.nonzero().flatten() + block.start, geometry)
        is_sparse = ~is_dense[rows]
        rows, others = rows[is_sparse], others[is_sparse]
        square_distances, pair_errors = geometry.measure_pairs(block, rows, others)
        lower[rows, others] = (square_distances - pair_errors).clamp_(min=0).sqrt_()
        # Rows that may have a nearer centre, now that all their open bounds are measured.
        rows = rows[lower[rows, others] < upper[rows]].unique()
        lower[rows, labels[rows]] = (own - errors)[rows].clamp_(min=0).sqrt_()
        lowest, nearest = lower[rows].min(dim=1)
        labels[rows] = nearest
        upper[rows] = (lowest.square() + 2 * errors[rows]).sqrt_()
        lower[rows, nearest] = float("inf")

    def _measure_rows(self, chosen: Tensor, geometry: "_Geometry") -> None:
        """Label rows by all distances and take fresh bounds from these."""
        mean = self._rows.mean
        for block, values in take_rows(self._rows.values, chosen, width=len(geometry.centred)):
            rows = chosen[block]
            norms = self._rows.square_norms[rows, None]
            errors = geometry.errors(norms)
            square_distances = centred_scores(values.sub_(mean), geometry.centred).add_(norms)
            lowest, nearest = square_distances.min(dim=1, keepdim=True)
            self._labels[rows] = nearest[:, 0]
            self._upper[rows] = (lowest + errors).clamp_(min=0).sqrt_()[:, 0]
            bounds = square_distances.sub_(errors).clamp_(min=0).sqrt_()
            self._lower[rows] = bounds.scatter_(1, nearest, float("inf"))


class _Geometry:
    """What distances from rows to centres are computed from."""

    def __init__(self, rows: Rows, centers: Tensor) -> None:
        self._rows = rows
        self.centred = centers - rows.mean
        self._square_norms = self.centred.square().sum(dim=1)
        self._offsets = self._square_norms + 2 * (self.centred @ rows.mean)
        self._error_norm = float(self._square_norms.max() + rows.mean.square().sum())

    def errors(self, square_norms: Tensor) -> Tensor:
        """Most that rounding can add to the squared distances of rows with these squared norms."""
        return _ROUNDING * (square_norms + self._error_norm)

    def measure_pairs(self, block: slice, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances of single rows and centres, and their errors, (P,) each.

        Args:
            block: Of this worker's rows.
            rows: Ascending numbers within the block, (P,).
            labels: Numbers of centres, ascending for a row, (P,).
        """
        values, norms = self._rows.values[block], self._rows.square_norms[block][rows]
        row_ends = torch.zeros(len(values) + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(rows, minlength=len(values)), dim=0, out=row_ends[1:])
        shape = (len(values), len(self.centred))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            pairs = torch.sparse_csr_tensor(row_ends, labels, norms, shape, check_invariants=False)
        products = torch.sparse.sampled_addmm(pairs, values, self.centred.T, beta=0.0).values()
        square_distances = norms + self._offsets[labels] - 2 * products
        return square_distances.clamp_(min=0), self.errors(norms)
