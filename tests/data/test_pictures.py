"""Lists of pictures, and what their headers tell."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayssl.data.pictures import ImageList, Targets, check_size, fingerprint, header_sizes
from rayssl.errors import DataError
from tests.data.picture_files import noise, write_pictures


def test_a_list_needs_a_label_for_each_item() -> None:
    with pytest.raises(ValueError, match="as many as items, 2, got 1"):
        ImageList([Path("a"), Path("b")], np.zeros(1, dtype=np.int64), ("a",))


def test_selecting_keeps_pictures_and_labels_together() -> None:
    array = noise(5, 8, 8, 3)
    paths = [Path(f"{index}.png") for index in range(5)]
    labels = np.array([0, 1, -1, 1, 0])
    chosen = np.array([4, 2])
    of_array = ImageList(array, labels, ("a", "b")).select(chosen)
    of_paths = ImageList(paths, labels, ("a", "b")).select(chosen)
    assert np.array_equal(np.asarray(of_array.items), array[chosen])
    assert of_paths.items == [paths[4], paths[2]]
    assert of_paths.labels.tolist() == of_array.labels.tolist() == [0, -1]
    assert of_paths.has_labels
    assert not of_paths.select(np.array([1])).has_labels


def test_a_fingerprint_changes_with_files_pixels_labels_and_settings(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, [noise(8, 8, 3), noise(8, 8, 3)])
    pixels = ImageList(noise(2, 8, 8, 3), files.labels, files.classes)
    told = Targets(("a",), np.ones((2, 1), dtype=np.int8))
    other_pixels = np.array(pixels.items)
    other_pixels[1, 7, 7, 2] ^= 1
    before = fingerprint(files, 1)
    lists = [files, pixels, files.select(np.array([1, 0])), files.select(np.array([0]))]
    lists += [ImageList(other_pixels, pixels.labels, pixels.classes), ImageList(files.items, files.labels + 1, ("b",))]
    lists += [ImageList(files.items, files.labels, files.classes, told)]
    prints = {fingerprint(files, 2), *(fingerprint(each, 1) for each in lists)}
    assert len(prints) == len(lists) + 1
    assert fingerprint(files, 1) == before
    os.utime(Path(str(files.items[1])), (0, 0))
    assert fingerprint(files, 1) != before


def test_headers_tell_upright_sizes_and_skip_bad_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "c.tif", tiffinfo=exif)
    (tmp_path / "d.jpg").write_bytes(b"")
    images = ImageList(sorted(tmp_path.iterdir()), np.full(4, -1), ())
    assert header_sizes(images) == [(20, 30), (30, 20), (30, 20)]
    assert header_sizes(images, sample=1) == [(20, 30)]
    assert header_sizes(ImageList(noise(3, 8, 9, 3), np.full(3, -1), ())) == [(8, 9)] * 3


def test_views_larger_than_most_pictures_are_refused() -> None:
    images = ImageList(noise(3, 40, 32, 3), np.full(3, -1), ())
    check_size(images, image_size=32, allow_upscaling=False)
    check_size(images, image_size=224, allow_upscaling=True)
    with pytest.raises(
        DataError, match=r"data.image_size: 224 .* 3 sampled, median short side 32 px. Set data.image_size=32"
    ):
        check_size(images, image_size=224, allow_upscaling=False)


def test_half_of_the_pictures_may_be_smaller_than_the_view(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(20, 20, 3), noise(40, 40, 3)])
    check_size(images, image_size=40, allow_upscaling=False)
