"""Scores of clusterings and the choice of their number, against scikit-learn and planted structure."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.clustering import (
    calinski_harabasz,
    choose_num_clusters,
    kmeans,
    normalized_mutual_information,
    whiten,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def balls(num_clusters: int, *, size: int = 40, dim: int = 20) -> Tensor:
    """Well separated: centres about 6 apart, radius about 1."""
    centers = normal(num_clusters, dim, seed=1) * 6 / (2 * dim) ** 0.5
    return centers.repeat(size, 1) + normal(num_clusters * size, dim, seed=2) / dim**0.5


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_score_of_random_labels_equals_scikit_learns(offset: float) -> None:
    from sklearn.metrics import calinski_harabasz_score

    features = normal(500, 30) + offset
    labels = torch.randint(0, 11, (500,), generator=torch.Generator().manual_seed(3))
    expected = calinski_harabasz_score(features.double(), labels)
    assert calinski_harabasz(features, labels) == pytest.approx(expected, rel=1e-4)


def test_the_score_by_hand() -> None:
    """Pairs 10 apart, 1 wide: B = 4 x 25, W = 4 x 0.25, (N - K) / (K - 1) = 2."""
    features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]])
    assert calinski_harabasz(features, torch.tensor([0, 0, 1, 1])) == pytest.approx(200.0)


def test_names_of_clusters_and_unused_numbers_do_not_matter() -> None:
    features, labels = normal(60, 3), torch.arange(60) % 4
    assert calinski_harabasz(features, 3 * labels + 5) == pytest.approx(calinski_harabasz(features, labels))


def test_rows_that_equal_their_mean_score_one_as_in_scikit_learn() -> None:
    assert calinski_harabasz(torch.tensor([[0.0], [0.0], [4.0], [4.0]]), torch.tensor([0, 0, 1, 1])) == 1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), "labels: must name from 2 to 3 clusters.*got 1"),
        (torch.arange(4), "labels: must name from 2 to 3 clusters.*got 4"),
        (torch.arange(3), "labels: must be whole numbers from 0, one for each of this worker's 4 rows"),
        (torch.tensor([0, 1, -1, 0]), "labels: must be whole numbers from 0"),
        (torch.zeros(4), "labels: must be whole numbers from 0"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calinski_harabasz(normal(4, 2), labels)


def test_the_number_of_planted_clusters_is_chosen() -> None:
    features = balls(12)
    choice = choose_num_clusters(features, [16, 4, 8, 12, 8, 20])
    assert choice.num_clusters == 12
    assert list(choice.scores) == [4, 8, 12, 16, 20]
    assert max(choice.scores, key=choice.scores.__getitem__) == 12
    assert choice.scores[12] == pytest.approx(calinski_harabasz(features, choice.result.labels), rel=1e-4)
    assert len(choice.result.centers) == 12


def test_scores_along_the_grid_are_those_of_kmeans_or_better() -> None:
    features = normal(300, 6).exp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which number wins does not matter here
        choice = choose_num_clusters(features, [2, 5, 9])
    for number, score in choice.scores.items():
        assert score >= kmeans(features, number).calinski_harabasz * (1 - 1e-5)


@pytest.mark.parametrize("grid", [[6, 8, 10], [2, 4, 6]])
def test_a_best_number_at_the_edge_warns(grid: list[int]) -> None:
    with pytest.warns(UserWarning, match="the best number, 6, is at the edge of the grid .*: widen the grid"):
        assert choose_num_clusters(balls(6), grid).num_clusters == 6


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([5], r"grid: must hold at least two different numbers, got \[5\]"),
        ([], "grid: must hold at least two different numbers"),
        ([1, 5], r"grid: must hold numbers from 2 to 19, one fewer than there are rows, got \[1, 5\]"),
        ([5, 20], "grid: must hold numbers from 2 to 19"),
    ],
)
def test_a_grid_that_cannot_be_searched_is_refused(grid: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_num_clusters(normal(20, 2), grid)


def test_mutual_information_knows_clusters_by_their_rows() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert normalized_mutual_information(labels, (labels + 1) % 3) == pytest.approx(1.0)
    assert normalized_mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])) == pytest.approx(0.0)


def test_mutual_information_by_hand() -> None:
    """One labelling merges two of the other's three equal parts."""
    fine, coarse = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])
    entropy_fine = math.log(3)
    entropy_coarse = math.log(3) - 2 / 3 * math.log(2)
    expected = entropy_coarse / ((entropy_fine + entropy_coarse) / 2)
    assert normalized_mutual_information(fine, coarse) == pytest.approx(expected)


@pytest.mark.parametrize("other", [torch.arange(3), torch.zeros(4, 1), torch.zeros(0)])
def test_labellings_of_different_rows_are_refused(other: Tensor) -> None:
    with pytest.raises(ValueError, match="labels: must be two vectors of one length"):
        normalized_mutual_information(torch.arange(4), other)


@pytest.mark.parametrize("num_components", [None, 3])
def test_whitening_equals_scikit_learns_up_to_signs(num_components: int | None) -> None:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    features = normal(200, 8) @ normal(8, 8, seed=1) + 7
    expected = normalize(PCA(num_components, whiten=True).fit_transform(features.double()))
    ours = whiten(features, num_components=num_components)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours.abs(), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-4)


def test_directions_without_variance_are_left_out() -> None:
    features = normal(100, 3) @ normal(3, 10, seed=1) + 2
    assert whiten(features).shape == (100, 3)
    with pytest.raises(ValueError, match="num_components: must be from 1 to 3, .* got 4"):
        whiten(features, num_components=4)


def test_features_that_do_not_vary_cannot_be_whitened() -> None:
    with pytest.raises(ValueError, match="num_components: must be from 1 to 0"):
        whiten(torch.ones(5, 4))
    with pytest.raises(ValueError, match="num_components: must be at least 1, got 0"):
        whiten(normal(5, 4), num_components=0)
