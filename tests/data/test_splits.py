"""Subsets and hold-outs, by counting."""

import numpy as np

from rayssl.data import ImageList
from rayssl.data.splits import hold_out, stratified_subset


def labelled(*counts: int) -> ImageList:
    """As many pictures of each class; the value of every pixel is the picture's index."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(labels))[:, None, None, None]
    return ImageList(np.broadcast_to(pixels, (len(labels), 4, 4, 3)), labels, tuple("abcdefgh"[: len(counts)]))


def indices(images: ImageList) -> list[int]:
    return np.asarray(images.items)[:, 0, 0, 0].tolist()


def test_a_subset_keeps_the_classes_shares() -> None:
    labels = np.repeat([0, 1, 2], [100, 200, 700])
    for size in (10, 100, 500):
        counts = np.bincount(labels[stratified_subset(labels, size, seed=3)], minlength=3)
        assert np.abs(counts - size * np.array([0.1, 0.2, 0.7])).max() <= 1
        assert counts.sum() == size


def test_a_subset_covers_rare_classes() -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 2, 997, 1])
    assert set(labels[stratified_subset(labels, 4, seed=0)]) == {0, 1, 2, 3}


def test_a_subset_smaller_than_the_number_of_classes_does_not_prefer_the_first() -> None:
    labels = np.repeat(np.arange(10), 5)
    drawn = [labels[stratified_subset(labels, 3, seed=seed)] for seed in range(40)]
    assert all(len(set(each)) == 3 for each in drawn)
    assert set(np.concatenate(drawn)) == set(range(10))


def test_subsets_are_nested_ascending_and_follow_the_seed() -> None:
    labels = np.repeat([0, 1], [40, 60])
    small, large = (stratified_subset(labels, size, seed=1) for size in (10, 50))
    assert set(small) <= set(large)
    assert (np.diff(large) > 0).all()
    assert np.array_equal(small, stratified_subset(labels, 10, seed=1))
    assert not np.array_equal(small, stratified_subset(labels, 10, seed=2))


def test_holding_out_takes_the_share_of_each_class() -> None:
    images = labelled(50, 30, 20)
    train, held_out = hold_out(images, 0.1, seed=0)
    assert held_out is not None
    assert np.bincount(held_out.labels).tolist() == [5, 3, 2]
    assert sorted(indices(train) + indices(held_out)) == list(range(100))
    assert indices(train) == sorted(indices(train))
    assert all(images.labels[index] == label for index, label in zip(indices(train), train.labels, strict=True))


def test_holding_out_takes_at_least_one_of_a_class_but_never_its_last() -> None:
    train, held_out = hold_out(labelled(1, 2, 3), 0.01, seed=0)
    assert held_out is not None
    assert np.bincount(held_out.labels, minlength=3).tolist() == [0, 1, 1]
    train, held_out = hold_out(labelled(1, 2, 3), 0.99, seed=0)
    assert np.bincount(train.labels, minlength=3).tolist() == [1, 1, 1]


def test_nothing_is_held_out_of_a_single_picture_or_for_a_zero_share() -> None:
    assert hold_out(labelled(1), 0.5, seed=0)[1] is None
    assert hold_out(labelled(10), 0.0, seed=0)[1] is None


def test_unlabelled_pictures_are_held_out_only_where_none_has_a_label() -> None:
    mixed = ImageList(labelled(10).items, np.repeat([-1, 0], 5), ("a",))
    unlabelled = ImageList(labelled(10).items, np.full(10, -1), ())
    held_out_of_mixed, held_out = (hold_out(images, 0.4, seed=0)[1] for images in (mixed, unlabelled))
    assert held_out_of_mixed is not None and held_out_of_mixed.labels.tolist() == [0, 0]
    assert held_out is not None and len(held_out) == 4
