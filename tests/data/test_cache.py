"""The cache against plain slicing of the pictures that it was given."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayssl.data import CachedPictures, ImageList
from rayssl.errors import DataError
from tests.data.picture_files import cached, noise, spoil, windows, write_pictures


def test_equal_squares_come_back_untouched_and_in_order(tmp_path: Path) -> None:
    pictures = [noise(16, 16, 3, seed=seed) for seed in range(5)]
    store = cached(write_pictures(tmp_path, pictures), tmp_path / "cache")
    assert store.side == 16
    assert np.array_equal(windows(store, [3, 0, 3]), np.stack([pictures[3], pictures[0], pictures[3]]))


def test_windows_are_slices_along_the_long_side(tmp_path: Path) -> None:
    tall, wide = noise(30, 16, 3), noise(16, 25, 3, seed=1)
    store = cached(write_pictures(tmp_path, [tall, wide]), tmp_path / "cache")
    assert np.array_equal(windows(store, [0, 1], 0.0), np.stack([tall[:16], wide[:, :16]]))
    assert np.array_equal(windows(store, [0, 1], 0.5), np.stack([tall[7:23], wide[:, 4:20]]))
    assert np.array_equal(windows(store, [0, 1], 1.0), np.stack([tall[14:], wide[:, 9:]]))


def test_smaller_pictures_are_enlarged_to_the_largest_short_side(tmp_path: Path) -> None:
    wide, tall, large = noise(10, 15, 3), noise(17, 11, 3, seed=1), noise(20, 20, 3, seed=2)
    store = cached(write_pictures(tmp_path, [wide, tall, large]), tmp_path / "cache")
    enlarged_wide = np.asarray(Image.fromarray(wide).resize((30, 20), Image.Resampling.BICUBIC))
    enlarged_tall = np.asarray(Image.fromarray(tall).resize((20, 31), Image.Resampling.BICUBIC))
    assert store.side == 20
    assert np.array_equal(windows(store, [0, 1, 2], 0.0), np.stack([enlarged_wide[:, :20], enlarged_tall[:20], large]))


def test_arrays_are_reduced_like_files(tmp_path: Path) -> None:
    array = np.stack([noise(40, 60, 3, seed=seed) for seed in range(3)])
    of_array = cached(ImageList(array, np.arange(3), ("a", "b", "c")), tmp_path / "array", resize=20)
    of_files = cached(write_pictures(tmp_path, list(array)), tmp_path / "files", resize=20)
    assert of_array.side == 20
    assert np.array_equal(windows(of_array, [0, 1, 2], 0.3), windows(of_files, [0, 1, 2], 0.3))


def test_grey_arrays_may_be_broadcast_views(tmp_path: Path) -> None:
    grey = noise(4, 8, 8)
    view = np.broadcast_to(grey[..., None], (4, 8, 8, 3))
    store = cached(ImageList(view, np.full(4, -1), ()), tmp_path)
    assert np.array_equal(windows(store, [2])[0], view[2])


def test_bad_files_are_left_out_with_their_labels_and_listed(tmp_path: Path) -> None:
    pictures = [noise(16, 16, 3, seed=seed) for seed in range(6)]
    images = write_pictures(tmp_path, pictures)
    spoil(images, 1, 4)
    store = cached(images, tmp_path / "cache")
    assert len(store) == 4
    assert store.labels.tolist() == [0, 2, 3, 5]
    assert np.array_equal(windows(store, [0, 1, 2, 3]), np.stack([pictures[label] for label in store.labels]))
    listed = json.loads((tmp_path / "cache" / "cache.json").read_text())["bad_files"]
    assert listed == [{"path": str(images.items[index]), "reason": "empty file"} for index in (1, 4)]
    assert [bad.path for bad in store.bad_files] == [bad["path"] for bad in listed]


def test_too_many_bad_files_stop_with_the_list(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)] * 14)
    spoil(images, *range(12))
    with pytest.raises(DataError) as caught:
        cached(images, tmp_path / "cache", max_bad_fraction=0.1)
    message = str(caught.value)
    assert "data.max_bad_fraction: at most 10.00% of the pictures may be unusable, found 12 of 14 (85.71%)" in message
    assert message.count("empty file") == 10
    assert str(images.items[0]) in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_set_without_a_readable_picture_is_refused_whatever_the_share(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)] * 2)
    spoil(images, 0, 1)
    with pytest.raises(DataError, match="found 2 of 2"):
        cached(images, tmp_path / "cache", max_bad_fraction=1.0)


def test_a_complete_cache_is_not_built_again(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(16, 20, 3), noise(12, 12, 3)])
    cached(images, tmp_path / "cache")
    before = (tmp_path / "cache" / "pictures.bin").stat()
    cached(images, tmp_path / "cache")
    assert (tmp_path / "cache" / "pictures.bin").stat().st_ino == before.st_ino
    with pytest.raises(DataError, match="data.max_bad_fraction"):
        spoil(images, 0)
        cached(images, tmp_path / "cache", max_bad_fraction=0.1)


def changed_file(images: ImageList) -> ImageList:
    path = Path(images.items[0])
    Image.fromarray(noise(16, 16, 3, seed=9)).save(path)
    os.utime(path, (1, 1))
    return images


@pytest.mark.parametrize(
    "change",
    [
        changed_file,
        lambda images: images.select(np.array([1, 0])),
        lambda images: ImageList(images.items, images.labels[::-1].copy(), images.classes),
    ],
    ids=["file", "order", "labels"],
)
def test_changed_input_builds_the_cache_again(tmp_path: Path, change: Callable[[ImageList], ImageList]) -> None:
    images = write_pictures(tmp_path, [noise(16, 16, 3), noise(16, 16, 3, seed=1)])
    cached(images, tmp_path / "cache")
    images = change(images)
    store = cached(images, tmp_path / "cache")
    expected = np.stack([np.asarray(Image.open(path)) for path in images.items])
    assert np.array_equal(windows(store, [0, 1]), expected)
    assert np.array_equal(store.labels, images.labels)


def test_changed_pixels_of_an_array_and_another_size_build_again(tmp_path: Path) -> None:
    array = noise(3, 16, 16, 3)
    images = ImageList(array, np.full(3, -1), ())
    cached(images, tmp_path)
    array[1, 2, 3] ^= 1
    assert np.array_equal(windows(cached(images, tmp_path), [0, 1, 2]), array)
    assert cached(images, tmp_path, resize=8).side == 8


def test_an_open_cache_survives_a_rebuild(tmp_path: Path) -> None:
    first, second = noise(3, 8, 8, 3), noise(3, 8, 8, 3, seed=1)
    store = cached(ImageList(first, np.full(3, -1), ()), tmp_path)
    cached(ImageList(second, np.full(3, -1), ()), tmp_path)
    assert np.array_equal(windows(store, [0, 1, 2]), first)


def test_two_openings_map_the_same_file(tmp_path: Path) -> None:
    """Both see a byte changed in the file afterwards, so neither holds a copy of its own."""
    store = cached(ImageList(noise(3, 8, 8, 3), np.full(3, -1), ()), tmp_path)
    other = CachedPictures.open(tmp_path)
    changed = np.memmap(tmp_path / "pictures.bin", dtype=np.uint8, mode="r+")
    changed[0] ^= 255
    changed.flush()
    assert windows(store, [0])[0, 0, 0, 0] == windows(other, [0])[0, 0, 0, 0] == changed[0]


def test_a_folder_without_a_cache_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete cache"):
        CachedPictures.open(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.cache_gib: .* set data.cache_gib=0"):
        cached(ImageList(noise(3, 8, 8, 3), np.full(3, -1), ()), tmp_path / "file" / "cache")
