"""Good clusters of a few thousand points of few dimensions: greedy k-means++, swaps of centres, Lloyd's steps."""

import math

import torch
from torch import Tensor

_STEPS_BEFORE_SWAPS = 2
_STEPS_AFTER_SWAPS = 10
_NUM_CANDIDATES = 16
_PATIENCE = 12
_STARTED_CLUSTERS = 100
"""Clusters of all starts together: few clusters are started several times, as starts differ more and cost less."""
_MOST_STARTS = 8
_LEAST_GAIN = 1e-4
"""Share of the inertia that a swap must save; smaller savings come cheaper by Lloyd's steps."""


def cluster_points(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Cluster points so that clearly separate clusters are all found.

    Greedy k-means++ alone misses some of 100 planted clusters, and Lloyd's steps don't mend that.

    Args:
        points: (S, P), float32, around 0.
        num_clusters: At most S.
        generator: On the CPU.

    Returns:
        Labels, (S,), int64; every cluster has a point.
    """
    num_starts = min(_MOST_STARTS, max(1, _STARTED_CLUSTERS // num_clusters))
    starts = [_cluster_once(points, num_clusters, generator) for _ in range(num_starts)]
    square_distances, labels = min(starts, key=lambda start: start[0].sum(dtype=torch.float64).item())
    counts = torch.bincount(labels, minlength=num_clusters)
    empty = (counts == 0).nonzero().flatten()
    if len(empty) > 0:
        labels[movable_rows(square_distances, labels, counts)[: len(empty)]] = empty
    return labels


def plus_plus(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Choose points far from each other: each the best of a few draws with the odds of the squared distance.

    Args:
        points: (S, P), float32.
        num_clusters: Number of points to choose, at most S.
        generator: On the CPU.

    Returns:
        Numbers of the chosen points, (num_clusters,).

    Source: Arthur and Vassilvitskii 2007, section 2; several draws a centre as in their section 7 and scikit-learn.
    """
    num_draws = 2 + int(math.log(num_clusters))
    draws = torch.rand(num_clusters, num_draws, dtype=torch.float64, generator=generator).to(points.device)
    norms = points.square().sum(dim=1, keepdim=True)
    chosen = (draws[0, :1] * len(points)).long()
    nearest = _square_distances(points, points[chosen], norms)[:, 0]
    for step in range(1, num_clusters):
        candidates = _draw_by_weight(nearest, draws[step])
        distances = torch.minimum(_square_distances(points, points[candidates], norms), nearest[:, None])
        best = distances.sum(dim=0).argmin(dim=0, keepdim=True)
        # `candidates[best]` would wait for the device.
        chosen = torch.cat([chosen, candidates.index_select(0, best)])
        nearest = distances.index_select(1, best)[:, 0]
    return chosen


def swap_centers(points: Tensor, centers: Tensor, generator: torch.Generator) -> Tensor:
    """Move superfluous centres to where one is missing, as long as draws of new places find a worthwhile swap.

    Args:
        points: (S, P), float32.
        centers: (K, P).
        generator: On the CPU.

    Returns:
        (K, P), of an inertia that is at most the given centres'.

    Source: Lattanzi and Sohler 2019 (LS++), algorithm 2; here several draws are weighed at once.
    """
    centers, norms = centers.clone(), points.square().sum(dim=1, keepdim=True)
    first, second, labels = _two_nearest(points, centers, norms)
    num_failures = 0
    for _ in range(len(centers)):
        draws = torch.rand(_NUM_CANDIDATES, dtype=torch.float64, generator=generator).to(points.device)
        candidates = points[_draw_by_weight(first, draws)]
        distances = _square_distances(points, candidates, norms)
        with_candidate = torch.minimum(distances, first[:, None])
        losses = torch.minimum(distances, second[:, None]) - with_candidate
        inertias = torch.zeros(len(centers), _NUM_CANDIDATES, device=points.device).index_add_(0, labels, losses)
        inertias += with_candidate.sum(dim=0)
        removed, added = divmod(int(inertias.argmin()), _NUM_CANDIDATES)
        if inertias[removed, added] < first.sum() * (1 - _LEAST_GAIN):
            centers[removed] = candidates[added]
            first, second, labels = _two_nearest(points, centers, norms)
            num_failures = 0
        else:
            num_failures += 1
            if num_failures == _PATIENCE:
                break
    return centers


def movable_rows(square_distances: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Rows that can be taken from their clusters without emptying one, the farthest from their centres first.

    Args:
        square_distances: Of the rows to their centres, (N,).
        labels: (N,).
        counts: Rows of each cluster, (K,), also of rows that are not among the N.

    Returns:
        Numbers of rows; of equally far ones the first comes first.
    """
    order = square_distances.argsort(descending=True, stable=True)
    left = counts.tolist()
    movable = []
    for row, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        if left[label] > 1:
            left[label] -= 1
            movable.append(row)
    return torch.tensor(movable, dtype=torch.int64, device=labels.device)


def _cluster_once(points: Tensor, num_clusters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squared distances to the nearest centre and its number, each (S,)."""
    centers = points[plus_plus(points, num_clusters, generator)]
    centers = _lloyd_steps(points, centers, _STEPS_BEFORE_SWAPS)
    centers = swap_centers(points, centers, generator)
    centers = _lloyd_steps(points, centers, _STEPS_AFTER_SWAPS)
    norms = points.square().sum(dim=1, keepdim=True)
    lowest, labels = _square_distances(points, centers, norms).min(dim=1)
    return lowest, labels


def _lloyd_steps(points: Tensor, centers: Tensor, num_steps: int) -> Tensor:
    """An empty cluster's centre stays."""
    for _ in range(num_steps):
        labels = torch.addmm(centers.square().sum(dim=1), points, centers.T, alpha=-2).argmin(dim=1)
        counts = torch.bincount(labels, minlength=len(centers))[:, None]
        sums = torch.zeros_like(centers).index_add_(0, labels, points)
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return centers


def _two_nearest(points: Tensor, centers: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances to the nearest and the second nearest centre, and the nearest, each (S,)."""
    distances, numbers = _square_distances(points, centers, norms).topk(2, dim=1, largest=False)
    return distances[:, 0].contiguous(), distances[:, 1].contiguous(), numbers[:, 0].contiguous()


def _draw_by_weight(weights: Tensor, draws: Tensor) -> Tensor:
    """Numbers of points drawn with odds in proportion to weights, from draws in [0, 1)."""
    cumulated = weights.cumsum(dim=0, dtype=torch.float64)
    return torch.searchsorted(cumulated, draws * cumulated[-1], right=True).clamp_(max=len(weights) - 1)


def _square_distances(points: Tensor, centers: Tensor, norms: Tensor) -> Tensor:
    """(S, K), from the points' squared norms (S, 1); few enough points to hold all at once."""
    return torch.addmm(norms, points, centers.T, alpha=-2).add_(centers.square().sum(dim=1)).clamp_(min=0)
