"""torchvision's sets on tiny copies of their layouts, without a network."""

import pickle
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torchvision

from rayssl.data import Cifar10Config, ImageNetConfig, Stl10Config, Voc2007Config
from rayssl.errors import DataError
from tests.data.picture_files import make_folder


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
