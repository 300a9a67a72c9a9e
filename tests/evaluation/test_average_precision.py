import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve

from rayssl.evaluation.average_precision import average_precision, average_precisions


def area_under_the_envelope(scores: np.ndarray, positive: np.ndarray) -> float:
    """Scikit-learn's curve, each precision raised to the highest at that recall or above, added up point by point."""
    precision, recall, _ = precision_recall_curve(positive, scores)  # recall falls from 1 to 0
    area = 0.0
    for point in range(len(recall) - 1):
        area += (recall[point] - recall[point + 1]) * max(precision[: point + 1])
    return area


def reference_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The benchmark's way, for scores without ties: recall padded with 0 and 1, precision with 0 and 0, envelope."""
    hits = positive[np.argsort(-scores)].astype(float)
    recall = np.concatenate([[0], np.cumsum(hits) / hits.sum(), [1]])
    precision = np.concatenate([[0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]])
    for point in range(len(precision) - 2, -1, -1):
        precision[point] = max(precision[point], precision[point + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


def random_ranking(seed: int, *, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    positive = generator.random(200) < generator.uniform(0.02, 0.6)
    positive[0] = True
    scores = generator.normal(size=200) + positive
    return (np.round(scores * 2) if tied else scores), positive


@pytest.mark.parametrize("tied", [False, True])
def test_area_equals_that_under_scikit_learns_curve_made_monotone(tied: bool) -> None:
    for seed in range(20):
        scores, positive = random_ranking(seed, tied=tied)
        assert average_precision(scores, positive) == pytest.approx(area_under_the_envelope(scores, positive))


def test_area_equals_the_benchmarks_where_no_scores_are_equal() -> None:
    for seed in range(20):
        scores, positive = random_ranking(seed, tied=False)
        assert average_precision(scores, positive) == pytest.approx(reference_average_precision(scores, positive))


@pytest.mark.parametrize("tied", [False, True])
def test_without_interpolation_it_is_scikit_learns(tied: bool) -> None:
    for seed in range(20):
        scores, positive = random_ranking(seed, tied=tied)
        expected = average_precision_score(positive, scores)
        assert average_precision(scores, positive, interpolated=False) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "targets", "interpolated", "plain"),
    [
        ([4, 3, 2, 1], [1, 1, -1, -1], 1.0, 1.0),
        ([4, 3, 2, 1], [-1, -1, -1, 1], 1 / 4, 1 / 4),
        ([4, 3, 2, 1], [-1, 1, 1, -1], 2 / 3, (1 / 2 + 2 / 3) / 2),  # the envelope raises 1/2 to 2/3
        ([3, 2, 2, 1], [1, -1, 1, -1], (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),  # a tie enters together, as 2 of 3
        ([0, 0, 0, 0], [1, 0, 0, 0], 1 / 4, 1 / 4),
        ([0.5], [True], 1.0, 1.0),
    ],
)
def test_small_rankings_counted_by_hand(
    scores: list[float], targets: list[int], interpolated: float, plain: float
) -> None:
    assert average_precision(scores, targets) == pytest.approx(interpolated)
    assert average_precision(scores, targets, interpolated=False) == pytest.approx(plain)


def test_the_order_of_the_rows_does_not_matter() -> None:
    scores, positive = random_ranking(0, tied=True)
    shuffled = np.random.default_rng(1).permutation(len(scores))
    assert average_precision(scores, positive) == average_precision(scores[shuffled], positive[shuffled])


def test_a_class_without_positives_has_no_precision() -> None:
    assert math.isnan(average_precision([1.0, 2.0], [0, -1]))
    assert math.isnan(average_precision([], []))


def test_lists_tensors_and_read_only_arrays_give_the_same() -> None:
    scores, positive = random_ranking(3, tied=False)
    expected = average_precision(scores.tolist(), positive.tolist())
    frozen = scores.copy()
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert average_precision(frozen, positive) == expected
        assert average_precision(torch.from_numpy(scores), torch.from_numpy(positive)) == expected
        assert average_precision(scores[::-1], positive[::-1]) == expected


def test_many_rankings_at_once_equal_one_at_a_time() -> None:
    scores = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).mul(3).round()
    targets = torch.where(torch.arange(60) % 4 == 0, 1, -1)
    for interpolated in (True, False):
        together = average_precisions(scores, targets, interpolated=interpolated)
        alone = [average_precision(column, targets, interpolated=interpolated) for column in scores.T]
        assert together.tolist() == alone


def test_scores_that_are_not_numbers_and_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="scores: must be numbers"):
        average_precision([1.0, math.nan], [1, 0])
    with pytest.raises(ValueError, match="must be of one shape"):
        average_precision([1.0, 2.0], [1])
