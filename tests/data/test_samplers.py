"""P x K batches: by counting, against a brute-force search, and against pytorch-metric-learning's structure."""

import itertools
from functools import cache

import numpy as np
import pytest

from rayssl.data.samplers import PKPlan, pk_batches


def labels_of_sizes(*sizes: int) -> np.ndarray:
    """As many images of each cluster, mixed."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def plan_of(labels: np.ndarray, *, p: int, k: int, seed: int = 0, epoch: int = 0) -> PKPlan:
    return pk_batches(labels, num_classes=p, num_instances=k, seed=seed, epoch=epoch)


def groups_of(plan: PKPlan, k: int) -> np.ndarray:
    return plan.batches.reshape(-1, k)


def assert_pk_structure(batches: np.ndarray, labels: np.ndarray, *, p: int, k: int) -> None:
    """Each batch: P distinct clusters, each in K adjacent places."""
    clusters = labels[batches].reshape(len(batches), p, k)
    assert (clusters == clusters[:, :, :1]).all()
    assert all(len(set(row)) == p for row in clusters[:, :, 0].tolist())


def test_batches_have_the_structure_of_pytorch_metric_learnings() -> None:
    samplers = pytest.importorskip("pytorch_metric_learning.samplers")
    labels = labels_of_sizes(9, 2, 4, 30, 17, 8)
    reference = samplers.MPerClassSampler(labels, m=4, batch_size=12, length_before_new_iter=48)
    assert_pk_structure(np.array(list(reference)).reshape(-1, 12), labels, p=3, k=4)
    plan = plan_of(labels, p=3, k=4)
    assert plan.batches.dtype == np.int64
    assert plan.batches.shape == (6, 12)
    assert_pk_structure(plan.batches, labels, p=3, k=4)


def test_an_epoch_takes_every_image_once_where_everything_divides() -> None:
    plan = plan_of(labels_of_sizes(8, 8, 8, 8), p=2, k=4)
    assert sorted(plan.batches.ravel()) == list(range(32))
    assert (plan.num_dropped_groups, plan.num_dropped_images, plan.num_singletons) == (0, 0, 0)


def test_clusters_of_one_three_and_ten_images() -> None:
    """P = 2, K = 4: the singleton is left out; 1 group and 3 groups make one batch, so two groups are dropped.

    One of these is the last of the ten's, which adds two images, since full groups are kept first.
    """
    labels = labels_of_sizes(1, 3, 10)
    plan = plan_of(labels, p=2, k=4)
    assert plan.batches.shape == (1, 8)
    assert (plan.num_dropped_groups, plan.num_dropped_images, plan.num_singletons) == (2, 6, 1)
    counts = np.bincount(plan.batches.ravel(), minlength=14)
    assert counts[labels == 0].tolist() == [0]
    assert sorted(counts[labels == 1]) == [1, 1, 2]
    assert sorted(counts[labels == 2]) == [0] * 6 + [1] * 4


def test_the_last_group_is_filled_up_with_other_images_of_its_cluster() -> None:
    """10 and 11 images in groups of 4: all are covered, 2 and 1 of them twice, never within a group."""
    labels = labels_of_sizes(10, 11)
    plan = plan_of(labels, p=2, k=4)
    assert plan.num_dropped_groups == 0
    counts = np.bincount(plan.batches.ravel(), minlength=21)
    assert sorted(counts[labels == 0]) == [1] * 8 + [2] * 2
    assert sorted(counts[labels == 1]) == [1] * 10 + [2]
    assert all(len(set(group)) == 4 for group in groups_of(plan, 4).tolist())


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_no_image_occurs_twice_in_a_group_unless_its_cluster_is_smaller(k: int) -> None:
    """Where it is smaller, its images occur equally often to within one."""
    labels = labels_of_sizes(2, 3, 4, 5, 6, 7, 8, 13, 29)
    sizes = np.bincount(labels)
    for group in groups_of(plan_of(labels, p=3, k=k), k):
        size = sizes[labels[group[0]]]
        counts = np.unique(group, return_counts=True)[1]
        assert len(counts) == min(size, k)
        assert counts.max() - counts.min() <= (1 if size < k else 0)


def test_a_cluster_with_half_of_all_groups_is_in_every_batch_of_two() -> None:
    labels = labels_of_sizes(40, 8, 12, 20)
    plan = plan_of(labels, p=2, k=4)
    assert len(plan.batches) == 10
    assert ((labels[plan.batches] == 0).sum(axis=1) == 4).all()
    assert plan.num_dropped_images == 0


def test_what_a_giant_cluster_has_too_much_is_dropped_and_counted() -> None:
    """100 groups of one cluster, 5 of the others together: 5 batches of two."""
    plan = plan_of(labels_of_sizes(400, 8, 12), p=2, k=4)
    assert len(plan.batches) == 5
    assert (plan.num_dropped_groups, plan.num_dropped_images) == (95, 380)


@pytest.mark.parametrize("p", [2, 3])
def test_no_plan_could_hold_more_batches(p: int) -> None:
    """Against trying every choice of clusters for every batch."""
    generator = np.random.default_rng(1)
    for _ in range(30):
        num_groups = generator.integers(1, 6, size=int(generator.integers(p, 6)))
        plan = plan_of(labels_of_sizes(*(2 * num_groups)), p=p, k=2)
        assert len(plan.batches) == most_batches(tuple(sorted(num_groups.tolist())), p)
        assert plan.num_dropped_groups == num_groups.sum() - p * len(plan.batches)


@cache
def most_batches(num_groups: tuple[int, ...], p: int) -> int:
    """The exhaustive reference; `num_groups` ascend."""
    choices = itertools.combinations([i for i, n in enumerate(num_groups) if n], p)
    rests = [tuple(sorted(n - (i in choice) for i, n in enumerate(num_groups))) for choice in choices]
    return max((1 + most_batches(rest, p) for rest in rests), default=0)


def test_the_counts_add_up_and_the_structure_holds_on_uneven_clusters() -> None:
    """What k-means gives: many sizes, singletons, and cluster numbers that do not occur."""
    sizes = np.random.default_rng(2).geometric(0.04, size=120) - 1
    labels = labels_of_sizes(*sizes)
    plan = plan_of(labels, p=16, k=4)
    assert_pk_structure(plan.batches, labels, p=16, k=4)
    num_singletons = int((sizes == 1).sum())
    assert plan.num_singletons == num_singletons > 0
    assert len(np.unique(plan.batches)) == len(labels) - num_singletons - plan.num_dropped_images
    num_groups = int(np.ceil(sizes[sizes > 1] / 4).sum())
    assert plan.batches.size == 4 * (num_groups - plan.num_dropped_groups)
    assert plan.num_dropped_groups < 16


def test_images_left_over_change_from_epoch_to_epoch() -> None:
    """5 clusters of one group, batches of 2: one cluster waits, and each of them waits now and then."""
    labels = labels_of_sizes(4, 4, 4, 4, 4)
    waiting = [
        set(range(5)) - set(labels[plan_of(labels, p=2, k=4, epoch=epoch).batches.ravel()]) for epoch in range(40)
    ]
    assert {len(clusters) for clusters in waiting} == {1}
    assert set.union(*waiting) == set(range(5))


def test_every_pair_of_equal_clusters_meets_in_some_batch() -> None:
    """Hard negatives must be able to come from any cluster: no fixed blocks of clusters within an epoch."""
    labels = labels_of_sizes(*[40] * 8)
    batches = labels[plan_of(labels, p=4, k=2).batches]
    met = {pair for row in batches.tolist() for pair in itertools.combinations(sorted(set(row)), 2)}
    assert len(met) == 28


def test_images_that_fill_up_groups_come_at_any_time_of_an_epoch() -> None:
    """9 images in groups of 4: how many of a batch's images occur twice in the epoch does not tell its place."""
    labels = labels_of_sizes(*[9] * 12)
    twice = []
    for epoch in range(200):
        batches = plan_of(labels, p=3, k=4, epoch=epoch).batches
        twice.append((np.bincount(batches.ravel())[batches] > 1).sum(axis=1))
    assert np.mean(twice, axis=0) == pytest.approx(np.full(12, 6.0), abs=0.8)


def test_a_plan_is_a_function_of_its_arguments() -> None:
    labels = labels_of_sizes(20, 31, 12, 45)
    plan = plan_of(labels, p=2, k=4, seed=3, epoch=5)
    assert np.array_equal(plan.batches, plan_of(labels, p=2, k=4, seed=3, epoch=5).batches)
    others = [plan_of(labels, p=2, k=4, seed=seed, epoch=epoch) for seed, epoch in ((3, 6), (4, 5), (5, 3))]
    assert not any(np.array_equal(plan.batches, other.batches) for other in others)


def test_different_epochs_group_different_images() -> None:
    labels = labels_of_sizes(40, 40)
    first, second = (
        {frozenset(group) for group in groups_of(plan_of(labels, p=2, k=4, epoch=e), 4).tolist()} for e in (0, 1)
    )
    assert len(first & second) <= 2


def test_slices_of_workers_are_whole_groups() -> None:
    labels = labels_of_sizes(16, 16, 16, 16, 16)
    for share in np.split(plan_of(labels, p=4, k=4).batches, 2, axis=1):
        assert_pk_structure(share, labels, p=2, k=4)


def test_too_few_clusters_of_two_images_are_refused() -> None:
    message = (
        "num_classes: a batch takes 3 clusters of at least 2 images, got 2 such clusters among 4. Lower num_classes"
    )
    with pytest.raises(ValueError, match=message):
        plan_of(labels_of_sizes(1, 1, 2, 9), p=3, k=4)
    with pytest.raises(ValueError, match="got 0 such clusters among 0"):
        plan_of(np.array([], dtype=np.int64), p=2, k=2)


@pytest.mark.parametrize(
    ("labels", "p", "k", "message"),
    [
        ([0, 0, 1, 1], 1, 2, "num_classes: must be at least 2, or no image has a negative, got 1"),
        ([0, 0, 1, 1], 2, 1, "num_instances: must be at least 2, or no image has a positive, got 1"),
        ([0, 0, 1, -1], 2, 2, "labels: every image must be in a cluster, numbered from 0, got -1"),
        ([0.0, 0.0, 1.0], 2, 2, "labels: must be integers of shape"),
        ([[0, 0], [1, 1]], 2, 2, "labels: must be integers of shape"),
    ],
)
def test_what_cannot_be_planned_is_refused(labels: list[int], p: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(np.array(labels), p=p, k=k)
