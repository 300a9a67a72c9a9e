"""k-means over the rows of all workers: Lloyd's steps on all-reduced sums."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.clustering.assignment import Assignment
from rayssl.clustering.bounds import choose_assignment
from rayssl.clustering.criteria import variance_ratio
from rayssl.clustering.rows import Group, Rows, add_rows, share_rows, square_distances
from rayssl.clustering.sampling import draw_sample, sample_clusters, starting_centers
from rayssl.clustering.seeding import movable_rows


@dataclass(frozen=True, eq=False)
class KMeansResult:
    """Clusters of all workers' rows."""

    labels: Tensor
    """This worker's rows' clusters, (N_r,), int64 in 0..K - 1: the centre that is nearest in float32."""
    centers: Tensor
    """(K, D), float32, the same on every worker."""
    inertia: float
    """Sum over all workers' rows of the squared distance to their centre."""
    num_iterations: int
    """Lloyd's steps that were made."""
    num_reseeded: int
    """Times that an empty cluster was given a row far from its centre."""
    calinski_harabasz: float
    """The score of the labels, see `calinski_harabasz`; nan if there are as many clusters as rows."""


@torch.no_grad()
def kmeans(
    features: Tensor,
    num_clusters: int,
    *,
    seed: int = 0,
    max_iterations: int = 25,
    tolerance: float = 1e-4,
    group: Group = None,
) -> KMeansResult:
    """Cluster the rows of all workers by Lloyd's algorithm, started by greedy k-means++ on a sample.

    Rows stay where they are: what travels are sums, counts and a projected sample of bounded size. The result depends
    on the seed and on the rows in rank order, not on how they are shared out (up to rounding).
    On a GPU the products are as exact as torch's setting for float32 lets them be.

    Args:
        features: This worker's rows, (N_r, D), floats on any device; computed in float32.
        num_clusters: K, from 2 to the number of all workers' rows.
        seed: Decides the start.
        max_iterations: Most steps, at least 1.
        tolerance: Ends when the squared shifts of all centres together are at most this times the mean variance of
            the dimensions (scikit-learn's rule), or when no label changes; at least 0.
        group: The workers that hold the rows, see the package; None: this process alone.

    Returns:
        The clusters.

    Raises:
        ValueError: If an argument is out of its range, or features are not (N, D) or not finite.

    Warns:
        UserWarning: If clusters are left empty, as with fewer different rows than clusters.

    Source: Lloyd 1982; the start: see `draw_sample` and `cluster_points`.
    """
    check_settings(max_iterations=max_iterations, tolerance=tolerance)
    rows = share_rows(features, group)
    check_num_clusters(num_clusters, rows.num_rows)
    sample = draw_sample(rows, num_clusters=num_clusters, seed=seed)
    labels = sample_clusters(rows, sample, [num_clusters], seed=seed)[num_clusters]
    centers = starting_centers(rows, sample, labels, num_clusters)
    return run_lloyd(rows, centers, max_iterations=max_iterations, tolerance=tolerance)


def run_lloyd(
    rows: Rows, centers: Tensor, *, max_iterations: int, tolerance: float, assignment: Assignment | None = None
) -> KMeansResult:
    """Make Lloyd's steps from given centres.

    An empty cluster is given the row that is farthest from its centre, as in scikit-learn, unless that would empty
    the row's own cluster or the row lies on its centre.

    Args:
        rows: All workers' rows.
        centers: (K, D), the same on every worker.
        max_iterations: Most steps.
        tolerance: See `kmeans`.
        assignment: How rows find their centre; None: the faster way.

    Returns:
        The clusters.
    """
    assignment = assignment or choose_assignment(rows, len(centers))
    largest_shift = tolerance * rows.scatter / rows.num_rows / rows.values.shape[1]
    statistics = ClusterStatistics(rows, len(centers))
    labels = assignment(centers)
    sums, counts, _ = statistics.update(labels)
    num_reseeded, num_iterations, is_settled = 0, 0, False
    while not is_settled and num_iterations < max_iterations:
        num_reseeded += reseed_empty(rows, labels, centers, sums, counts)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers.double()).float()
        shift = (moved - centers).square().sum(dtype=torch.float64).item()
        centers, labels = moved, assignment(moved)
        num_iterations += 1
        sums, counts, num_changed = statistics.update(labels)
        is_settled = num_changed == 0 or shift <= largest_shift
    return _describe(rows, labels, centers, sums, counts, num_iterations=num_iterations, num_reseeded=num_reseeded)


class ClusterStatistics:
    """Sums and counts of this worker's clusters, brought up to date by the rows whose label changed."""

    def __init__(self, rows: Rows, num_clusters: int) -> None:
        self._rows = rows
        self._labels: Tensor | None = None
        self._sums = torch.zeros(num_clusters, rows.values.shape[1], dtype=torch.float64, device=rows.values.device)

    def update(self, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Take new labels, and add up over the workers, all at once: an exchange costs more than what it carries.

        Returns:
            Sums (K, D), float64, and counts (K,), int64, of all workers' clusters, both the caller's to change; and how
            many rows' labels differ from the last ones.
        """
        values = self._rows.values
        if self._labels is None:
            add_rows(self._sums, values, labels)
            num_changed = len(labels)
        else:
            changed = (labels != self._labels).nonzero().flatten()
            add_rows(self._sums, values, self._labels[changed], changed, sign=-1.0)
            add_rows(self._sums, values, labels[changed], changed)
            num_changed = len(changed)
        self._labels = labels
        packed = self._sums.new_empty(self._sums.numel() + len(self._sums) + 1)
        sums, counts, total_changed = packed.split([self._sums.numel(), len(self._sums), 1])
        sums.copy_(self._sums.flatten())
        counts.copy_(torch.bincount(labels, minlength=len(counts)))  # float64 holds whole numbers up to 2^53
        total_changed.fill_(num_changed)
        self._rows.workers.sum(packed)
        return sums.view_as(self._sums), counts.long(), int(total_changed)


def reseed_empty(rows: Rows, labels: Tensor, centers: Tensor, sums: Tensor, counts: Tensor) -> int:
    """Move far rows into empty clusters, in their sums and counts.

    Args:
        rows: All workers' rows.
        labels: This worker's.
        centers: By which the rows were labelled, (K, D).
        sums: Of all workers' clusters, (K, D), float64; changed in place.
        counts: (K,); changed in place.

    Returns:
        Number of clusters that were given a row.
    """
    empty = (counts == 0).nonzero().flatten()
    if len(empty) == 0:
        return 0
    # Of the candidates at most one a cluster is refused, so these are enough; zeros fill up a short share.
    num_candidates = min(len(empty) + len(centers), rows.num_rows)
    distances = square_distances(rows.values, centers, labels)
    farthest = distances.argsort(descending=True, stable=True)[:num_candidates]
    own = torch.zeros(3, num_candidates, dtype=torch.float64, device=sums.device)
    own[:, : len(farthest)] = torch.stack([distances[farthest], labels[farthest], farthest + rows.first_row])
    everyone = rows.workers.gather(own).transpose(0, 1).flatten(1)
    square_distance, label, number = everyone[:, everyone[0] > 0]
    chosen = movable_rows(square_distance, label.long(), counts)[: len(empty)]
    local = number[chosen].long() - rows.first_row
    is_own = (local >= 0) & (local < len(rows.values))
    moved = torch.zeros(len(chosen), sums.shape[1], dtype=torch.float64, device=sums.device)
    moved[is_own] = rows.values[local[is_own]].double()
    rows.workers.sum(moved)
    donors, filled = label[chosen].long(), empty[: len(chosen)]
    sums.index_add_(0, donors, moved, alpha=-1)
    counts.index_add_(0, donors, torch.ones_like(donors), alpha=-1)
    sums[filled], counts[filled] = moved, 1
    return len(chosen)


def check_settings(*, max_iterations: int, tolerance: float) -> None:
    """Raise a ValueError for what Lloyd's steps can't work with."""
    if max_iterations < 1:
        raise ValueError(f"max_iterations: must be at least 1, got {max_iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: must be at least 0, got {tolerance}")


def check_num_clusters(num_clusters: int, num_rows: int) -> None:
    """Raise a ValueError for a number of clusters that these rows can't be cut into."""
    if num_clusters < 2:
        raise ValueError(f"num_clusters: must be at least 2, got {num_clusters}; one cluster tells nothing apart")
    if num_clusters > num_rows:
        raise ValueError(
            f"num_clusters: must be at most the number of rows over all workers, {num_rows}, got {num_clusters}; "
            "ask for fewer clusters or give more rows"
        )


def _describe(
    rows: Rows,
    labels: Tensor,
    centers: Tensor,
    sums: Tensor,
    counts: Tensor,
    *,
    num_iterations: int,
    num_reseeded: int,
) -> KMeansResult:
    """Measure the final clusters."""
    is_used = counts > 0
    num_used = int(is_used.sum())
    if num_used < len(counts):
        warnings.warn(
            f"k-means: {len(counts) - num_used} of {len(counts)} clusters are empty; there may be fewer different "
            "rows than clusters: ask for fewer clusters",
            stacklevel=5,
        )
    distances = square_distances(rows.values, centers, labels)
    inertia = rows.workers.sum(distances.sum(dtype=torch.float64)).item()
    means = sums[is_used] / counts[is_used, None]
    weights = counts[is_used, None].double()
    between = (weights * (means - rows.mean).square()).sum().item()
    within = inertia - (weights * (means - centers[is_used]).square()).sum().item()
    score = variance_ratio(between, within, num_clusters=num_used, num_rows=rows.num_rows)
    return KMeansResult(labels, centers, inertia, num_iterations, num_reseeded, score)
