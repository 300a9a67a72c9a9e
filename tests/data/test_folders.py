"""Listings of folders, and what is said about those that can't be listed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayssl.data import FolderConfig, ImageList, decode_image
from rayssl.errors import DataError
from tests.data.picture_files import make_folder


def folder_config(root: Path, **options: Any) -> FolderConfig:
    return FolderConfig(root=root, image_size=8, **({"validation_fraction": 0.0} | options))


def names(images: ImageList, root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in images.items]


def test_class_folders_are_listed_sorted_at_any_depth(tmp_path: Path) -> None:
    make_folder(tmp_path, "b/2.PNG", "b/1.jpg", "a/deep/er/x.webp", "a/z.tif", "a/.hidden.png", ".cache/c.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").touch()
    images = folder_config(tmp_path).build(seed=0).train
    assert names(images, tmp_path) == ["a/deep/er/x.webp", "a/z.tif", "b/1.jpg", "b/2.PNG"]
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 0, 1, 1]


def test_every_extension_counts(tmp_path: Path) -> None:
    kinds = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "JPG"]
    make_folder(tmp_path, *(f"{index}.{kind}" for index, kind in enumerate(kinds)))
    images = folder_config(tmp_path).build(seed=0).train
    assert len(images) == len(kinds)
    assert all(decode_image(Path(path), short_side=None).shape == (8, 8, 3) for path in images.items)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    splits = folder_config(make_folder(tmp_path, *(f"{index}.png" for index in range(10))), validation_fraction=0.2)
    built = splits.build(seed=0)
    assert built.validation is not None
    assert not built.train.has_labels
    assert built.train.classes == ()
    assert (len(built.train), len(built.validation), built.test) == (8, 2, None)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make_folder(tmp_path, "elsewhere/a/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "elsewhere" / "a" / "loop").symlink_to(tmp_path / "elsewhere" / "a")
    assert names(folder_config(tmp_path / "root").build(seed=0).train, tmp_path / "root") == ["a/1.png"]


def test_test_pictures_get_the_numbers_of_the_training_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png", "test/b/1.png")
    splits = folder_config(tmp_path / "train", test_root=tmp_path / "test").build(seed=0)
    assert splits.test is not None
    assert splits.test.labels.tolist() == [1, 2]
    assert splits.test.classes == splits.train.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a/1.png"], ["a/1.png", "x/1.png"], r"data.test_root: .* has classes that data.root lacks: \['x'\]"),
        (["a/1.png"], ["1.png"], "data.test_root: .* has no class folders, but data.root does"),
        (["1.png"], ["a/1.png"], r"data.test_root: .* has classes that data.root lacks: \['a'\]"),
        (["a/1.png"], [], "data.test_root: .* does not exist"),
    ],
)
def test_test_folders_that_do_not_fit_are_refused(
    tmp_path: Path, train: list[str], test: list[str], message: str
) -> None:
    make_folder(tmp_path / "train", *train)
    make_folder(tmp_path / "test", *test)
    with pytest.raises(DataError, match=message):
        folder_config(tmp_path / "train", test_root=tmp_path / "test").build(seed=0)


def test_test_pictures_inside_the_training_folder_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match="data.test_root: must not lie inside data.root"):
        folder_config(tmp_path, test_root=tmp_path / "b").build(seed=0)


def test_splits_in_the_root_are_not_taken_for_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, "train/a/1.png", "val/a/1.png", "test/a/1.png")
    (tmp_path / "readme.txt").touch()
    expected = f"Set data.root={tmp_path / 'train'} data.test_root={tmp_path / 'val'}"
    with pytest.raises(DataError) as caught:
        folder_config(tmp_path).build(seed=0)
    assert expected in str(caught.value)


def test_classes_that_are_called_train_and_test_may_be_flat(tmp_path: Path) -> None:
    make_folder(tmp_path, "train/1.png", "plane/1.png")
    assert folder_config(tmp_path).build(seed=0).train.classes == ("plane", "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist. Set it to"),
        (lambda root: root.touch(), "must be a folder, .* is a file. Unpack it"),
        (lambda root: root.mkdir(), "holds no pictures"),
        (lambda root: (root / "a").mkdir(parents=True), "holds no pictures"),
        (lambda root: make_folder(root, "1.png", "a/1.png"), r"holds pictures \(1.png, ...\) beside class folders"),
    ],
    ids=["missing", "file", "empty", "empty class", "mixed"],
)
def test_unusable_roots_say_what_to_do(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "root")
    with pytest.raises(DataError, match=f"^data.root: .*{message}"):
        folder_config(tmp_path / "root").build(seed=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_forbidden_class_folder_is_a_data_error(tmp_path: Path) -> None:
    make_folder(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(DataError, match="data.root: .* can't be read: Permission denied"):
            folder_config(tmp_path).build(seed=0)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_a_root_may_begin_with_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "pictures", "a/1.png")
    assert len(folder_config(Path("~/pictures")).build(seed=0).train) == 1
