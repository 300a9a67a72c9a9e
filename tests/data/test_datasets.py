"""Listings, splits and messages of every data set, on tiny copies of their layouts."""

import os
import pickle
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torchvision
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from sklearn.datasets import load_digits

import rayssl.data
from rayssl.data import (
    AnyData,
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    FolderConfig,
    ImageList,
    ImageNetConfig,
    NpzConfig,
    Stl10Config,
    Voc2007Config,
    decode_image,
)
from rayssl.data.datasets import hold_out, stratified_subset
from rayssl.errors import DataError


def make_folder(root: Path, *names: str) -> Path:
    """Tiny pictures at these paths below the root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return root


def folder_config(root: Path, **options: Any) -> FolderConfig:
    return FolderConfig(root=root, image_size=8, **({"validation_fraction": 0.0} | options))


def names(images: ImageList, root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in images.items]


def labelled(*counts: int) -> ImageList:
    """As many pictures of each class; the value of every pixel is the picture's index."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(labels))[:, None, None, None]
    return ImageList(np.broadcast_to(pixels, (len(labels), 4, 4, 3)), labels, tuple("abcdefgh"[: len(counts)]))


def indices(images: ImageList) -> list[int]:
    return np.asarray(images.items)[:, 0, 0, 0].tolist()


# ---- sizes and rules ----


@pytest.mark.parametrize(
    ("image_size", "decode_size", "eval_resize"), [(224, 317, 256), (96, 136, 110), (32, 46, 32), (64, 91, 64)]
)
def test_sizes_follow_from_the_view(image_size: int, decode_size: int, eval_resize: int) -> None:
    config = DigitsConfig(image_size=image_size)
    assert (config.decode_size, config.eval_resize) == (decode_size, eval_resize)


def test_a_given_resize_is_taken_but_must_cover_the_view() -> None:
    assert DigitsConfig(image_size=32, resize=40).decode_size == 40
    with pytest.raises(ValidationError, match="resize: must be at least image_size, 32, got 31"):
        DigitsConfig(image_size=32, resize=31)


@pytest.mark.parametrize(
    "values", [{"validation_fraction": 1.0}, {"limit": 0}, {"max_bad_fraction": -0.1}, {"image_size": 4}, {"rot": "x"}]
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DigitsConfig(**values)


def test_the_tag_chooses_the_class() -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(AnyData)
    config = adapter.validate_python({"name": "folder", "root": "x", "image_size": 64})
    assert isinstance(config, FolderConfig)
    assert config.root == Path("x")


def test_every_field_is_documented() -> None:
    configs = [value for name, value in vars(rayssl.data).items() if name.endswith("Config")]
    missing = [
        f"{config.__name__}.{name}"
        for config in configs
        for name, field in config.model_fields.items()
        if not field.description
    ]
    assert len(configs) == 8
    assert missing == []


def test_the_public_names_are_sorted_and_exist() -> None:
    assert rayssl.data.__all__ == sorted(rayssl.data.__all__)
    assert all(hasattr(rayssl.data, name) for name in rayssl.data.__all__)


# ---- subsets ----


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


def test_a_seed_decides_the_splits() -> None:
    def digests(seed: int) -> list[bytes]:
        splits = DigitsConfig(limit=300).build(seed=seed)
        assert splits.validation is not None and splits.test is not None
        return [np.asarray(each.items).tobytes() for each in (splits.train, splits.validation, splits.test)]

    assert digests(0) == digests(0)
    assert all(one != other for one, other in zip(digests(0), digests(1), strict=True))


def test_the_limit_comes_before_the_hold_out() -> None:
    splits = DigitsConfig(limit=100, validation_fraction=0.2).build(seed=0)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (80, 20)
    assert set(splits.train.labels) == set(splits.validation.labels) == set(range(10))


# ---- digits ----


def test_digits_are_the_pictures_of_scikit_learn() -> None:
    """Averaged back over 4 x 4 squares, an enlarged digit is close to the original, and its label follows it."""
    splits = DigitsConfig(validation_fraction=0.0).build(seed=0)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.train.classes == tuple("0123456789")
    originals, targets = load_digits(return_X_y=True)
    shrunk = np.asarray(splits.test.items)[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64) / 255 * 16
    nearest = ((shrunk[:, None] - originals) ** 2).mean(axis=-1)
    assert nearest.min(axis=1).max() < 2
    assert np.array_equal(targets[nearest.argmin(axis=1)], splits.test.labels)
    assert len(set(nearest.argmin(axis=1))) == 359


# ---- folders ----


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


# ---- npz ----


def npz(folder: Path, **arrays: Any) -> NpzConfig:
    np.savez(folder / "set.npz", **arrays)
    return NpzConfig(file=folder / "set.npz", image_size=8, validation_fraction=0.0)


COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
LABELS = np.array([7, 3, -1, 7, 3, 12])


def test_npz_arrays_become_pictures_with_numbered_classes(tmp_path: Path) -> None:
    config = npz(tmp_path, images=COLOUR, labels=LABELS, test_images=COLOUR[:2], test_labels=LABELS[[5, 1]])
    splits = config.build(seed=0)
    assert splits.test is not None
    assert np.array_equal(np.asarray(splits.train.items), COLOUR)
    assert splits.train.classes == splits.test.classes == ("3", "7", "12")
    assert splits.train.labels.tolist() == [1, 0, -1, 1, 0, 2]
    assert splits.test.labels.tolist() == [2, 0]


@pytest.mark.parametrize("grey", [COLOUR[..., 0], COLOUR[..., :1]], ids=["N H W", "N H W 1"])
def test_grey_npz_pictures_fill_three_channels(tmp_path: Path, grey: np.ndarray) -> None:
    images = npz(tmp_path, images=grey).build(seed=0).train
    assert np.array_equal(np.asarray(images.items), np.repeat(COLOUR[..., :1], 3, axis=-1))
    assert images.classes == ()
    assert (images.labels == -1).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": COLOUR}, r"needs `images`, .* got \['pictures'\]"),
        ({"images": COLOUR, "label": LABELS}, "may hold .* got"),
        ({"images": COLOUR / 255}, "images must be uint8, .* got float64"),
        ({"images": COLOUR.transpose(0, 3, 1, 2)}, r"images must have the shape .* got \(6, 3, 9, 8\)"),
        ({"images": COLOUR[0, 0]}, r"images must have the shape .* got \(8, 3\)"),
        ({"images": COLOUR[:0]}, "images must be at least one"),
        ({"images": COLOUR[:, :3]}, "images must be at least one of 4 x 4 px"),
        ({"images": COLOUR, "labels": LABELS[:5]}, r"labels must be integers of the shape \(6,\), got int64 \(5,\)"),
        ({"images": COLOUR, "labels": LABELS / 2}, "labels must be integers .* got float64"),
        ({"images": COLOUR, "labels": LABELS - 5}, r"labels must be -1 \(none\) or more, got -6"),
        ({"images": COLOUR, "test_labels": LABELS}, "test_labels without test_images"),
        (
            {"images": COLOUR, "labels": LABELS, "test_images": COLOUR, "test_labels": LABELS + 1},
            r"test_labels must occur among the training labels, got \[0, 4, 8, 13\]",
        ),
        ({"images": COLOUR, "labels": np.array([{}] * 6)}, "is damaged or holds more than plain arrays"),
    ],
)
def test_npz_arrays_that_break_a_rule_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=f"^data.file: .*{message}"):
        npz(tmp_path, **arrays).build(seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        (b"", "must be an .npz file"),
        (b"text", "must be an .npz file"),
        (b"PK\3\4", "must be an .npz file"),
    ],
)
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=f"^data.file: .*{message}"):
        NpzConfig(file=tmp_path / "set.npz", image_size=8).build(seed=0)


def test_damaged_npz_arrays_are_refused(tmp_path: Path) -> None:
    config = npz(tmp_path, images=COLOUR)
    content = bytearray(config.file.read_bytes())
    content[600] ^= 1
    config.file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged or holds more than plain arrays: .*CRC"):
        config.build(seed=0)


def test_a_single_array_is_not_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", COLOUR)
    with pytest.raises(DataError, match="must be an .npz file"):
        NpzConfig(file=tmp_path / "set.npy", image_size=8).build(seed=0)


# ---- torchvision's sets ----


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("config", "archive"),
    [
        (Cifar10Config, "cifar-10-python.tar.gz"),
        (Stl10Config, "stl10_binary.tar.gz"),
        (Voc2007Config, "VOCtrainval_06-Nov-2007.tar"),
    ],
)
def test_a_failed_download_says_what_to_place_where(tmp_path: Path, config: Any, archive: str) -> None:
    root = tmp_path / "sets"
    with pytest.raises(DataError) as caught:
        config(root=root).build(seed=0)
    message = str(caught.value)
    assert message.startswith("data.root: ")
    assert f"Place {archive}, or " in message
    assert f"in {root}" in message
    assert "seems to have no network" in message
    assert "http" not in message
    assert list(tmp_path.iterdir()) in ([], [root])


def test_without_download_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **options: pytest.fail("went online"))
    with pytest.raises(DataError, match=r"Place cifar-10-python.tar.gz, .* or set data.download=true"):
        Cifar10Config(root=tmp_path, download=False).build(seed=0)


def test_a_refused_download_is_not_blamed_on_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise HTTPError("", 403, "Forbidden", Message(), None)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match="It failed with: HTTP Error 403: Forbidden"):
        Cifar10Config(root=tmp_path).build(seed=0)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Three pictures a batch, in the format of the original; returns all, (18, 32, 32, 3)."""
    dataset = torchvision.datasets.CIFAR10
    folder = root / dataset.base_folder
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3), dtype=np.uint8)
    planes = pictures.transpose(0, 3, 1, 2).reshape(6, 3, -1)
    for number, (name, _) in enumerate(dataset.train_list + dataset.test_list):
        batch = {"data": planes[number], "labels": [number, 9 - number, 5]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {index}" for index in range(10)]}))
    monkeypatch.setattr(dataset, "train_list", [[name, None] for name, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [[name, None] for name, _ in dataset.test_list])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": None})
    return pictures


@pytest.mark.usefixtures("offline")
def test_cifar10_is_read_from_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = write_cifar10(tmp_path, monkeypatch)
    splits = Cifar10Config(root=tmp_path, validation_fraction=0.0).build(seed=0)
    assert splits.test is not None
    assert np.array_equal(np.asarray(splits.train.items), pictures[:15])
    assert np.array_equal(np.asarray(splits.test.items), pictures[15:])
    assert splits.train.labels.tolist() == [0, 9, 5, 1, 8, 5, 2, 7, 5, 3, 6, 5, 4, 5, 5]
    assert splits.train.classes[9] == "class 9"


@pytest.mark.usefixtures("offline")
def test_stl10_keeps_its_unlabelled_pictures_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files hold planes by columns; only labelled pictures are held out."""
    dataset = torchvision.datasets.STL10
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (17, 96, 96, 3), dtype=np.uint8)
    columns = pictures.transpose(0, 3, 2, 1)
    for name, part in (("train_X", columns[:10]), ("unlabeled_X", columns[10:15]), ("test_X", columns[15:])):
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 2] * 5))
    (folder / "test_y.bin").write_bytes(bytes([2, 1]))
    (folder / "class_names.txt").write_text("bird\ncar\n")
    monkeypatch.setattr(dataset, "train_list", [[name, None] for name, _ in dataset.train_list])
    monkeypatch.setattr(dataset, "test_list", [[name, None] for name, _ in dataset.test_list])
    splits = Stl10Config(root=tmp_path, validation_fraction=0.2).build(seed=0)
    assert splits.test is not None and splits.validation is not None
    assert splits.validation.labels.tolist() == [0, 1]
    assert (splits.train.labels == -1).sum() == 5
    assert np.array_equal(np.asarray(splits.train.items)[-5:], pictures[10:15])
    assert np.array_equal(np.asarray(splits.test.items), pictures[15:])
    assert splits.test.labels.tolist() == [1, 0]


def test_extracted_imagenet_folders_need_no_archives(tmp_path: Path) -> None:
    make_folder(tmp_path, "train/n02/a.JPEG", "train/n01/b.JPEG", "val/n02/c.JPEG")
    splits = ImageNetConfig(root=tmp_path, validation_fraction=0.0).build(seed=0)
    assert splits.test is not None
    assert splits.train.classes == ("n01", "n02")
    assert splits.train.labels.tolist() == [0, 1]
    assert splits.test.labels.tolist() == [1]


def test_imagenet_names_its_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data.root: .* place ILSVRC2012_img_train.tar, .* in it"):
        ImageNetConfig(root=tmp_path).build(seed=0)


def test_imagenet_without_val_goes_on_with_a_warning(tmp_path: Path) -> None:
    make_folder(tmp_path, "train/n02/a.JPEG", "train/n01/b.JPEG")
    with pytest.warns(UserWarning, match="has no val folder. Going on without test pictures"):
        assert ImageNetConfig(root=tmp_path).build(seed=0).test is None


def test_half_unpacked_or_unsorted_imagenet_folders_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, "train/n01/b.JPEG", "val/c.JPEG")
    with pytest.raises(DataError, match="val has no class folders"):
        ImageNetConfig(root=tmp_path).build(seed=0)
    (tmp_path / "train" / "n02.tar").touch()
    with pytest.raises(DataError, match=r"n02.tar was not unpacked to the end. Remove"):
        ImageNetConfig(root=tmp_path).build(seed=0)


def write_voc(root: Path, **sets: list[str]) -> None:
    base = root / "VOCdevkit" / "VOC2007"
    make_folder(base / "JPEGImages", *(f"{name}.jpg" for listed in sets.values() for name in listed))
    (base / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name, listed in sets.items():
        (base / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{each}\n" for each in listed))


@pytest.mark.usefixtures("offline")
def test_voc_pictures_have_no_labels(tmp_path: Path) -> None:
    write_voc(tmp_path, trainval=["000005", "000007"], test=["000001"])
    splits = Voc2007Config(root=tmp_path, validation_fraction=0.0).build(seed=0)
    assert splits.test is not None
    assert [Path(path).name for path in splits.train.items] == ["000005.jpg", "000007.jpg"]
    assert [Path(path).name for path in splits.test.items] == ["000001.jpg"]
    assert not splits.train.has_labels
    assert splits.train.classes == ()


@pytest.mark.usefixtures("offline")
def test_voc_goes_on_without_its_test_pictures_but_says_so(tmp_path: Path) -> None:
    write_voc(tmp_path, trainval=["000005", "000007"])
    with pytest.warns(UserWarning, match=r"Going on without test pictures. .* Place VOCtest_06-Nov-2007.tar"):
        assert Voc2007Config(root=tmp_path).build(seed=0).test is None
