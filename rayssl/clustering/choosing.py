"""How many clusters: the number with the highest variance ratio."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayssl.clustering.lloyd import KMeansResult, check_settings, run_lloyd
from rayssl.clustering.rows import Group, Rows, share_rows
from rayssl.clustering.sampling import Sample, draw_sample, sample_clusters, starting_centers

_NUM_RESTARTED = 3


@dataclass(frozen=True, eq=False)
class ClusterChoice:
    """The best of several numbers of clusters."""

    num_clusters: int
    """The number with the highest score; of equally good ones the least."""
    scores: dict[int, float]
    """Number -> its Calinski-Harabasz score, by ascending number: the whole curve, for logging."""
    result: KMeansResult
    """The clusters of the best number."""


@torch.no_grad()
def choose_num_clusters(
    features: Tensor,
    grid: Sequence[int],
    *,
    seed: int = 0,
    max_iterations: int = 25,
    tolerance: float = 1e-4,
    group: Group = None,
) -> ClusterChoice:
    """Cluster with each number of a grid and choose the one with the highest Calinski-Harabasz score.

    All share the rows' moments and one projected sample. Each number is started afresh (grown from the solution of
    the number before, a wrong one wins), and the best three are started a second time. The workers find the starts of
    different numbers at the same time, and make Lloyd's steps of one number together.

    Args:
        features: This worker's rows, (N_r, D), floats.
        grid: At least two different numbers, each from 2 to one fewer than all workers' rows.
        seed: Decides the starts.
        max_iterations: Most of Lloyd's steps a start.
        tolerance: See `kmeans`.
        group: The workers that hold the rows, see the package; None: this process alone.

    Returns:
        The number, the scores and the clusters.

    Raises:
        ValueError: If the grid or a setting is out of its range, or features are not (N, D) or not finite.

    Warns:
        UserWarning: If the best number is at the grid's edge: without real structure the score picks the least.

    Source: MGTA, section 3.
    """
    check_settings(max_iterations=max_iterations, tolerance=tolerance)
    numbers = sorted(set(grid))
    if len(numbers) < 2:
        raise ValueError(
            f"grid: must hold at least two different numbers, got {list(grid)}; for a known number call kmeans"
        )
    rows = share_rows(features, group)
    if numbers[0] < 2 or numbers[-1] >= rows.num_rows:
        raise ValueError(
            f"grid: must hold numbers from 2 to {rows.num_rows - 1}, one fewer than there are rows, got {numbers}"
        )
    sample = draw_sample(rows, num_clusters=numbers[-1], seed=seed)
    trials = _Trials(rows, sample, max_iterations=max_iterations, tolerance=tolerance)
    trials.run(numbers, seed=seed)
    trials.run(sorted(numbers, key=lambda number: -trials.scores[number])[:_NUM_RESTARTED], seed=seed + 1)
    result = trials.best
    chosen = len(result.centers)
    if chosen in (numbers[0], numbers[-1]):
        warnings.warn(
            f"choose_num_clusters: the best number, {chosen}, is at the edge of the grid {numbers}; a better one "
            "may lie beyond it, or the features have no clear clusters: widen the grid, or look at the scores",
            stacklevel=3,
        )
    return ClusterChoice(chosen, trials.scores, result)


class _Trials:
    """Clusterings of the same rows; the best one is kept, of the others the scores."""

    def __init__(self, rows: Rows, sample: Sample, *, max_iterations: int, tolerance: float) -> None:
        self._rows = rows
        self._sample = sample
        self._max_iterations = max_iterations
        self._tolerance = tolerance
        self._best: KMeansResult | None = None
        self.scores: dict[int, float] = {}

    @property
    def best(self) -> KMeansResult:
        """The clusters with the highest score; of equally good ones the first."""
        assert self._best is not None
        return self._best

    def run(self, numbers: Sequence[int], *, seed: int) -> None:
        """Cluster once more with each number, in their order."""
        for number, labels in sample_clusters(self._rows, self._sample, numbers, seed=seed).items():
            centers = starting_centers(self._rows, self._sample, labels, number)
            result = run_lloyd(self._rows, centers, max_iterations=self._max_iterations, tolerance=self._tolerance)
            score = result.calinski_harabasz
            self.scores[number] = max(score, self.scores.get(number, score))
            if self._best is None or score > self._best.calinski_harabasz:
                self._best = result
