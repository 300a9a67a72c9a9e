"""k-means by hand, against scikit-learn, on planted clusters, and where clusters run empty."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.clustering import kmeans, normalized_mutual_information
from rayssl.clustering.assignment import PlainAssignment
from rayssl.clustering.bounds import BoundedAssignment, choose_assignment
from rayssl.clustering.lloyd import run_lloyd
from rayssl.clustering.rows import row_blocks, share_rows
from rayssl.clustering.seeding import cluster_points, movable_rows, plus_plus, swap_centers


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(num_clusters: int, dim: int, *, size: int = 30, separation: float = 6.0) -> tuple[Tensor, Tensor]:
    """Balls of radius about 1 whose centres are about `separation` apart, shuffled, and the balls' numbers."""
    labels = torch.arange(num_clusters).repeat(size)[torch.randperm(num_clusters * size)]
    centers = normal(num_clusters, dim, seed=1) * separation / (2 * dim) ** 0.5
    return centers[labels] + normal(len(labels), dim, seed=2) / dim**0.5, labels


def test_four_points_by_hand() -> None:
    """Two pairs 10 apart; within a pair the points are 1 apart, so each is 0.5 from its centre."""
    result = kmeans(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 1.0], [10.0, 1.0]]), 2)
    assert result.labels[0] == result.labels[2] != result.labels[1] == result.labels[3]
    assert result.centers[result.labels[0]].tolist() == [0.0, 0.5]
    assert result.centers[result.labels[1]].tolist() == [10.0, 0.5]
    assert result.inertia == pytest.approx(4 * 0.25)
    assert result.calinski_harabasz == pytest.approx((4 * 25 / 1) / ((4 * 0.25) / 2))
    assert result.num_reseeded == 0


@pytest.mark.parametrize("dim", [16, 300])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_hundred_planted_clusters_are_all_found(dim: int, seed: int) -> None:
    """Greedy k-means++ with Lloyd's steps alone, as in scikit-learn, misses some of these."""
    features, labels = planted(100, dim)
    result = kmeans(features, 100, seed=seed)
    assert normalized_mutual_information(result.labels, labels) == pytest.approx(1.0)


def test_a_thousand_rows_each_their_own_cluster() -> None:
    features = normal(1000, 4)
    result = kmeans(features, 1000)
    assert result.labels.unique().numel() == 1000
    assert result.inertia == pytest.approx(0, abs=1e-6)
    assert np.isnan(result.calinski_harabasz)


@pytest.mark.parametrize("dim", [5, 300])
@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_lloyds_steps_equal_scikit_learns(dim: int, tolerance: float) -> None:
    from sklearn.cluster import KMeans

    features = normal(1500, dim)
    start = features[:20]
    theirs = KMeans(20, init=start.numpy(), n_init=1, max_iter=200, tol=tolerance, algorithm="lloyd").fit(
        features.numpy()
    )
    ours = run_lloyd(share_rows(features, None), start, max_iterations=200, tolerance=tolerance)
    torch.testing.assert_close(ours.centers, torch.from_numpy(theirs.cluster_centers_))
    assert ours.labels.tolist() == theirs.labels_.tolist()
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.num_iterations == pytest.approx(theirs.n_iter_, abs=1)  # theirs counts the step that changes nothing


@pytest.mark.parametrize("num_clusters", [10, 60])
def test_the_inertia_on_digits_is_no_worse_than_scikit_learns(num_clusters: int) -> None:
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits

    features = load_digits().data.astype("float32")
    theirs = np.mean([KMeans(num_clusters, n_init=1, random_state=seed).fit(features).inertia_ for seed in range(3)])
    ours = kmeans(torch.from_numpy(features), num_clusters)
    assert ours.inertia < 1.01 * theirs


def test_the_result_describes_its_own_labels() -> None:
    """Labels are the nearest centres, and the inertia and score are what scikit-learn says of them."""
    from sklearn.metrics import calinski_harabasz_score

    features = normal(700, 280) + 3
    result = kmeans(features, 9, max_iterations=1)
    distances = torch.cdist(features.double(), result.centers.double())
    assert result.labels.tolist() == distances.argmin(dim=1).tolist()
    assert result.inertia == pytest.approx(distances.min(dim=1).values.square().sum().item(), rel=1e-6)
    assert result.calinski_harabasz == pytest.approx(calinski_harabasz_score(features, result.labels), rel=1e-4)
    assert result.num_iterations == 1
    assert result.labels.dtype == torch.int64


@pytest.mark.parametrize("dim", [3, 300])
def test_a_seed_gives_one_result_and_another_seed_another(dim: int) -> None:
    features = normal(600, dim)
    first, again, other = (kmeans(features, 12, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.labels, again.labels) and torch.equal(first.centers, again.centers)
    assert first.inertia == again.inertia
    assert not torch.equal(first.centers, other.centers)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    kmeans(normal(50, 70), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_neither_changed_nor_bound_to_float32() -> None:
    features = normal(200, 270)
    before = features.clone()
    result = kmeans(features.double().requires_grad_(), 5)
    assert torch.equal(kmeans(features, 5).labels, result.labels)
    assert torch.equal(kmeans(features.T.contiguous().T, 5).labels, result.labels)
    assert torch.equal(features, before)
    assert not result.centers.requires_grad


@pytest.mark.parametrize("dim", [2, 300])
def test_an_empty_cluster_is_given_the_farthest_row(dim: int) -> None:
    """The third centre is nearest to nothing; the outlier at 30 is farthest from its own, so it becomes a cluster."""
    values = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 30.0])
    features = torch.nn.functional.pad(values[:, None], (0, dim - 1))
    start = torch.nn.functional.pad(torch.tensor([[1.0], [10.5], [999.0]]), (0, dim - 1))
    result = run_lloyd(share_rows(features, None), start, max_iterations=10, tolerance=0)
    assert result.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert result.num_reseeded == 1
    assert result.centers[:, 0].tolist() == [1.0, 10.5, 30.0]


def test_reseeding_never_empties_another_cluster() -> None:
    """Far rows that are alone in their cluster stay; of two equally far ones the first is taken."""
    distances = torch.tensor([9.0, 5.0, 5.0, 1.0, 8.0])
    labels = torch.tensor([0, 1, 1, 1, 2])
    assert movable_rows(distances, labels, torch.tensor([1, 3, 1])).tolist() == [1, 2]


def test_fewer_different_rows_than_clusters_are_told() -> None:
    features = torch.tensor([[0.0, 1.0], [5.0, 5.0]]).repeat_interleave(10, dim=0)
    with pytest.warns(UserWarning, match="of 4 clusters are empty; there may be fewer different rows"):
        result = kmeans(features, 4)
    assert result.inertia == pytest.approx(0, abs=1e-6)
    assert result.centers.isfinite().all()


def test_rows_that_are_all_the_same_do_no_harm() -> None:
    with pytest.warns(UserWarning, match="1 of 2 clusters are empty"):
        result = kmeans(torch.full((6, 300), 2.5), 2)
    assert result.inertia == 0
    assert result.labels.unique().numel() == 1


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """Squared distances as differences of squared norms would have lost all of them here."""
    features, labels = planted(6, 300)
    result = kmeans(features + 3000, 6)
    assert normalized_mutual_information(result.labels, labels) == pytest.approx(1.0)


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("num_clusters", [4, 90])
def test_bounds_leave_the_labels_as_they_are(num_clusters: int, offset: float) -> None:
    """After each of many moves of the centres, among them a leap such as reseeding makes."""
    rows = share_rows(normal(3000, 64).relu() + offset, None)
    plain, bounded = PlainAssignment(rows), BoundedAssignment(rows)
    centers = rows.values[:num_clusters].clone()
    for step in range(12):
        labels = plain(centers)
        assert torch.equal(bounded(centers), labels)
        if step == 6:
            centers[1] = rows.values[2000]
        else:
            counts = torch.bincount(labels, minlength=num_clusters)[:, None].clamp(min=1)
            centers = torch.zeros_like(centers).index_add_(0, labels, rows.values) / counts


def test_more_clusters_than_dimensions_get_no_bounds_which_changes_nothing() -> None:
    """Bounds of K numbers a row would take more memory than the rows' D: 258 clusters in 257 dimensions."""
    rows = share_rows(normal(1200, 257), None)
    assert isinstance(choose_assignment(rows, 257), BoundedAssignment)
    assert isinstance(choose_assignment(rows, 258), PlainAssignment)
    start = rows.values[:258].clone()
    chosen = run_lloyd(rows, start, max_iterations=8, tolerance=0)
    bounded = run_lloyd(rows, start, max_iterations=8, tolerance=0, assignment=BoundedAssignment(rows))
    assert torch.equal(chosen.labels, bounded.labels)
    assert torch.equal(chosen.centers, bounded.centers)


def test_bounds_do_not_mind_rows_on_their_centre_or_between_two() -> None:
    rows = share_rows(torch.cat([normal(20, 8), normal(20, 8)]), None)
    plain, bounded = PlainAssignment(rows), BoundedAssignment(rows)
    centers = rows.values[:20].clone()
    for _ in range(4):
        distances = torch.cdist(rows.values.double(), centers.double())
        chosen = distances.gather(1, bounded(centers)[:, None])[:, 0]
        torch.testing.assert_close(chosen, distances.min(dim=1).values, atol=1e-3, rtol=1e-5)
        assert torch.equal(plain(centers), distances.argmin(dim=1))
        centers = (centers + centers.roll(1, dims=0)) / 2


def test_many_blocks_give_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    features = normal(500, 300)
    whole = kmeans(features, 7)
    monkeypatch.setattr("rayssl.clustering.rows._CHUNK_NUMBERS", 5000)
    parts = kmeans(features, 7)
    assert torch.equal(whole.labels, parts.labels)
    assert parts.inertia == pytest.approx(whole.inertia)


def test_a_gpu_passes_over_rows_in_few_blocks_and_a_cpu_in_blocks_that_fit_its_cache() -> None:
    for device, size in (("cpu", 2**20), ("cuda", 2**26)):
        blocks = list(row_blocks(60_000, 2048, torch.device(device)))
        assert [block.stop for block in blocks] == [*range(size // 2048, 60_000, size // 2048), 60_000]


def test_plus_plus_takes_each_far_point_once() -> None:
    """With five places, drawing by squared distance can't take one twice before all are taken."""
    points = (torch.arange(5) * 10.0)[:, None].repeat(8, 1)
    chosen = plus_plus(points, 5, torch.Generator().manual_seed(0))
    assert sorted(points[chosen, 0].tolist()) == [0, 10, 20, 30, 40]


def test_a_centre_moves_from_a_shared_cluster_to_a_missed_one() -> None:
    points = torch.cat([normal(50, 2), normal(50, 2) + 20, normal(50, 2) - 20])
    start = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [20.0, 20.0]])
    swapped = swap_centers(points, start, torch.Generator().manual_seed(0))
    assert sorted(round(center / 20) for center in swapped[:, 0].tolist()) == [-1, 0, 1]


def test_every_cluster_of_a_sample_has_a_point_even_among_copies() -> None:
    labels = cluster_points(torch.zeros(9, 2), 4, torch.Generator().manual_seed(0))
    assert labels.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4), r"features: must be floats of shape \(rows, dimensions\).*got torch.float32 of shape \(4,\)"),
        (torch.zeros(4, 2, dtype=torch.int64), r"features: must be floats .*got torch.int64"),
        (torch.zeros(0, 2), "features: must have at least one row"),
        (torch.zeros(4, 0), "features: must have at least one row and one dimension"),
        (torch.tensor([[0.0], [float("nan")], [1.0]]), "features: must be finite numbers, .* in 1 of 3 rows"),
        (torch.tensor([[0.0], [float("inf")], [float("-inf")]]), "must be finite numbers, .* in 2 of 3 rows"),
        (torch.tensor([[-1e30], [1e30]]), "features: must have squares that float32 can hold"),
    ],
)
def test_features_that_cannot_be_clustered_are_refused(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(features, 2)


@pytest.mark.parametrize("num_clusters", [-1, 0, 1])
def test_fewer_than_two_clusters_are_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=f"num_clusters: must be at least 2, got {num_clusters}"):
        kmeans(normal(4, 2), num_clusters)


def test_more_clusters_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="num_clusters: must be at most the number of rows over all workers, 4, got 5"):
        kmeans(normal(4, 2), 5)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="max_iterations: must be at least 1, got 0"):
        kmeans(normal(4, 2), 2, max_iterations=0)
    with pytest.raises(ValueError, match="tolerance: must be at least 0, got -1"):
        kmeans(normal(4, 2), 2, tolerance=-1)
