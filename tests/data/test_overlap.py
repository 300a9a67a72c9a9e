"""Test pictures among the training pictures are found by path and by content."""

from pathlib import Path

import numpy as np

from rayssl.data import ImageList, find_overlap
from tests.data.picture_files import noise, write_pictures


def unlabelled(items: list[Path] | np.ndarray) -> ImageList:
    return ImageList(items, np.full(len(items), -1), ())


def test_the_same_file_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    train = write_pictures(tmp_path / "train", [noise(8, 8, 3, seed=number) for number in range(3)])
    (tmp_path / "link").symlink_to(tmp_path / "train")
    overlap = find_overlap(train, unlabelled([tmp_path / "link" / "001.png", tmp_path / "other.png"]))
    assert overlap.same_files == [str(tmp_path / "link" / "001.png")]
    assert overlap.same_content == []


def test_a_copy_is_found_by_its_bytes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    train = write_pictures(tmp_path / "train", [noise(8, 8, 3, seed=number) for number in range(3)])
    test = write_pictures(tmp_path / "test", [noise(8, 8, 3, seed=number) for number in (7, 2, 8)])
    overlap = find_overlap(train, test)
    assert overlap.same_files == []
    assert overlap.same_content == [f"{tmp_path}/test/001.png is {tmp_path}/train/002.png"]


def test_arrays_are_compared_picture_by_picture() -> None:
    train = noise(20, 8, 8, 3)
    test = np.concatenate([noise(5, 8, 8, 3, seed=1), train[[4]]])
    assert find_overlap(unlabelled(train), unlabelled(test)).same_content == ["picture 5 is picture 4"]
    assert find_overlap(unlabelled(train), unlabelled(noise(5, 8, 8, 3, seed=1))).same_content == []
