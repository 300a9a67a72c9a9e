"""The public data sets that torchvision can fetch or unpack: CIFAR-10, STL-10, ImageNet, Places365, iNaturalist."""

import http.client
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.error import HTTPError, URLError

import numpy as np
from pydantic import Field

from rayssl.data.datasets import RootedConfig
from rayssl.data.folders import list_folder
from rayssl.data.pictures import ImageList
from rayssl.errors import DataError

_Loaded = TypeVar("_Loaded")


class Downloadable(Protocol):
    """A data set that torchvision may fetch."""

    @property
    def root_folder(self) -> Path:
        """Where it lies."""

    @property
    def download(self) -> bool:
        """Whether it may be fetched if it is not there."""


class Cifar10Config(RootedConfig):
    """CIFAR-10: 50,000 training and 10,000 test pictures of 32 px, 10 classes."""

    name: Literal["cifar10"] = "cifar10"
    """The set's tag."""
    image_size: int = Field(default=32, ge=8)
    """Side of the square view that the network sees, in pixels."""
    download: bool = True
    """Whether to download the set into root if it is not there."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`."""
        from torchvision.datasets import CIFAR10

        def load(*, train: bool) -> ImageList:
            loaded = load_set(self, CIFAR10, files=("cifar-10-python.tar.gz", "cifar-10-batches-py/"), train=train)
            return ImageList(loaded.data, np.asarray(loaded.targets, dtype=np.int64), tuple(loaded.classes))

        return load(train=True), load(train=False)


class Stl10Config(RootedConfig):
    """STL-10: 5,000 labelled and 100,000 unlabelled training pictures of 96 px, 8,000 test pictures, 10 classes."""

    name: Literal["stl10"] = "stl10"
    """The set's tag."""
    image_size: int = Field(default=96, ge=8)
    """Side of the square view that the network sees, in pixels."""
    download: bool = True
    """Whether to download the set into root if it is not there."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`; the labelled training pictures come first."""
        from torchvision.datasets import STL10

        def load(split: str) -> ImageList:
            loaded = load_set(self, STL10, files=("stl10_binary.tar.gz", "stl10_binary/"), split=split)
            return ImageList(loaded.data.transpose(0, 2, 3, 1), loaded.labels.astype(np.int64), tuple(loaded.classes))

        return load("train+unlabeled"), load("test")


class ImageNetConfig(RootedConfig):
    """ImageNet (ILSVRC 2012): root/train/WNID and root/val/WNID, or the archives, which are unpacked into these.

    The validation pictures, whose labels are public, are the test set here. Subsets with fewer classes will do.
    """

    name: Literal["imagenet"] = "imagenet"
    """The set's tag."""
    image_size: int = Field(default=224, ge=8)
    """Side of the square view that the network sees, in pixels."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`; classes are named by their WordNet ids, a missing val is warned about."""
        train = list_folder(self._unpacked("train"), key="data.root")
        if not train.classes:
            raise DataError(
                f"data.root: {self.root_folder / 'train'} has no class folders. It needs train/WNID/*.JPEG."
            )
        if not any((self.root_folder / name).exists() for name in ("val", "ILSVRC2012_img_val.tar")):
            warnings.warn(
                f"data.root: {self.root_folder} has no val folder. Going on without test pictures.", stacklevel=2
            )
            return train, None
        return train, list_folder(self._unpacked("val"), key="data.root", classes=train.classes)

    def _unpacked(self, split: str) -> Path:
        """The split's folder; torchvision checks and unpacks its archive if only that is there."""
        from torchvision.datasets import ImageNet

        folder = self.root_folder / split
        if not folder.is_dir():
            try:
                ImageNet(self.root_folder, split=split)
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"data.root: {self.root_folder} has no {split}/WNID/*.JPEG folders, and no archives that could be "
                    f"unpacked ({error}). ImageNet can't be downloaded without an account: place "
                    f"ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz in it."
                ) from error
        if leftover := next(folder.glob("*.tar"), None):
            raise DataError(f"data.root: {leftover} was not unpacked to the end. Remove {folder} and start again.")
        return folder


class Places365Config(RootedConfig):
    """Places365-Standard: 1,803,460 training pictures, 36,500 validation pictures as the test set, 365 scenes.

    Places205, which the papers use, has the layout of class folders: `folder` reads it.
    """

    name: Literal["places365"] = "places365"
    """The set's tag."""
    image_size: int = Field(default=224, ge=8)
    """Side of the square view that the network sees, in pixels."""
    small: bool = True
    """Whether to read the pictures of 256 x 256 px (24 GB), or those of the original size (105 GB)."""
    download: bool = False
    """Whether to download the set into root if it is not there."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`."""
        from torchvision.datasets import Places365

        def load(split: str, variant: str) -> ImageList:
            archive = f"{variant}_{'256' if self.small else 'large'}"
            files = (f"{archive}.tar and filelist_places365-standard.tar", f"{archive}/")
            loaded = load_set(self, Places365, files=files, split=split, small=self.small)
            classes = tuple(name.strip("/") for name in loaded.classes)
            return ImageList(
                [Path(path) for path, _ in loaded.imgs], np.asarray(loaded.targets, dtype=np.int64), classes
            )

        return load("train-standard", "data"), load("val", "val")


class INaturalistConfig(RootedConfig):
    """iNaturalist 2018: 437,513 training pictures, 24,426 validation pictures as the test set, 8,142 species.

    torchvision unpacks the pictures; which are for training stands in train2018.json and val2018.json of the
    competition, which have to lie in root.
    """

    name: Literal["inaturalist"] = "inaturalist"
    """The set's tag."""
    image_size: int = Field(default=224, ge=8)
    """Side of the square view that the network sees, in pixels."""
    download: bool = False
    """Whether to download the pictures (120 GB) into root if they are not there."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`; classes are called by their numbers."""
        from torchvision.datasets import INaturalist

        listed = {split: self._listed(split) for split in ("train", "val")}
        files = ("train_val2018.tar.gz", "2018/")
        loaded = load_set(self, INaturalist, files=files, version="2018", target_type="full")
        classes = tuple(str(number) for number in range(len(loaded.all_categories)))
        train, test = (
            ImageList(
                [self.root_folder / path for path, _ in listed[split]],
                np.array([label for _, label in listed[split]], dtype=np.int64),
                classes,
            )
            for split in ("train", "val")
        )
        return train, test

    def _listed(self, split: str) -> list[tuple[str, int]]:
        """Path below root and species of each picture of a split."""
        file = self.root_folder / f"{split}2018.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            species = {each["image_id"]: each["category_id"] for each in content["annotations"]}
            return [
                (each["file_name"].replace("train_val2018/", "2018/", 1), species[each["id"]])
                for each in content["images"]
            ]
        except FileNotFoundError:
            raise DataError(
                f"data.root: {self.root_folder} does not hold {file.name}, which says what is for training. Place the "
                f"competition's {file.name} in it."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"data.root: {file} is damaged or of another format: {error}") from error


def load_set(
    config: Downloadable,
    build: Callable[..., _Loaded],
    *,
    files: tuple[str, str],
    **options: Any,
) -> _Loaded:
    """The set from `root`, downloaded into it only if it is not there and may be.

    Args:
        config: Says where it lies, and whether to download.
        build: torchvision's class.
        files: The archive's name, and that of the folder that it unpacks to.
        options: Passed on to the class.

    Raises:
        DataError: If it is not there and can't be downloaded.
    """
    root, (archive, folder) = config.root_folder, files
    place = f"Place {archive}, or {folder} unpacked from it, in {root}"
    try:
        return build(root, download=False, **options)
    except (OSError, RuntimeError) as error:
        if not config.download:
            raise DataError(
                f"data.root: {root} does not hold {folder}, or it is damaged. {place}, or set data.download=true."
            ) from error
    try:
        return build(root, download=True, **options)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        is_offline = isinstance(error, URLError | ConnectionError | TimeoutError) and not isinstance(error, HTTPError)
        cause = "This machine seems to have no network." if is_offline else f"It failed with: {error}."
        raise DataError(
            f"data.root: {root} does not hold {folder}, and {archive} could not be downloaded. {cause} {place}."
        ) from error
