"""PASCAL VOC 2007 and 2012, whose pictures show several of 20 classes each."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from pydantic import Field

from rayssl.data.datasets import RootedConfig
from rayssl.data.pictures import ImageList, Targets
from rayssl.data.torchvision_sets import load_set
from rayssl.errors import DataError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""In the order of the development kit."""
_ARCHIVES = {
    ("2007", "trainval"): "VOCtrainval_06-Nov-2007.tar",
    ("2007", "test"): "VOCtest_06-Nov-2007.tar",
    ("2012", "train"): "VOCtrainval_11-May-2012.tar",
    ("2012", "val"): "VOCtrainval_11-May-2012.tar",
    ("2012", "trainval"): "VOCtrainval_11-May-2012.tar",
}
_MOST_NAMED = 5


class VocConfig(RootedConfig):
    """What the VOC sets have in common: several classes a picture, so targets in place of labels."""

    image_size: int = Field(default=224, ge=8)
    """Side of the square view that the network sees, in pixels."""
    download: bool = True
    """Whether to download the set into root if it is not there."""

    def load(self, year: str, image_set: str) -> ImageList:
        """The pictures of one of the year's sets, and what they show."""
        return self._with_targets(self._paths(year, image_set), year, image_set)

    def load_test_2007(self) -> ImageList | None:
        """The test pictures of 2007; None, with a warning, if they are not there and can't be downloaded."""
        try:
            paths = self._paths("2007", "test")
        except DataError as error:
            warnings.warn(f"Going on without test pictures. {error}", stacklevel=2)
            return None
        return self._with_targets(paths, "2007", "test")

    def _paths(self, year: str, image_set: str) -> list[Path]:
        from torchvision.datasets import VOCDetection

        files = (_ARCHIVES[year, image_set], f"VOCdevkit/VOC{year}/")
        loaded = load_set(self, VOCDetection, files=files, year=year, image_set=image_set)
        return [Path(path) for path in loaded.images]

    def _with_targets(self, paths: list[Path], year: str, image_set: str) -> ImageList:
        folder = self.root_folder / "VOCdevkit" / f"VOC{year}"
        targets = read_voc_targets(folder, image_set, [path.stem for path in paths])
        return ImageList(paths, np.full(len(paths), -1, dtype=np.int64), (), targets)


class Voc2007Config(VocConfig):
    """PASCAL VOC 2007: 5,011 trainval and 4,952 test pictures with 20 classes; subsets in its layout will do."""

    name: Literal["voc2007"] = "voc2007"
    """The set's tag."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`; a missing test archive is warned about."""
        return self.load("2007", "trainval"), self.load_test_2007()


class Voc2012Config(VocConfig):
    """PASCAL VOC 2012: 5,717 train pictures, and 5,823 val pictures as the test set, whose annotations are public."""

    name: Literal["voc2012"] = "voc2012"
    """The set's tag."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`."""
        return self.load("2012", "train"), self.load("2012", "val")


class Voc0712Config(VocConfig):
    """PASCAL VOC 2007 and 2012: both trainval sets, 16,551 pictures, and the test set of 2007."""

    name: Literal["voc0712"] = "voc0712"
    """The set's tag."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`; a missing test archive is warned about."""
        old, new = (self.load(year, "trainval") for year in ("2007", "2012"))
        targets = None
        if old.targets is not None and new.targets is not None:
            targets = Targets(old.targets.classes, np.concatenate([old.targets.values, new.targets.values]))
        train = ImageList([*old.items, *new.items], np.concatenate([old.labels, new.labels]), (), targets)
        return train, self.load_test_2007()


def read_voc_targets(folder: Path, image_set: str, names: Sequence[str]) -> Targets | None:
    """What each picture shows: by ImageSets/Main/CLASS_SPLIT.txt if all 20 are there, else by its annotation.

    Args:
        folder: VOC2007 or VOC2012.
        image_set: trainval, test, ...
        names: The pictures' names, without suffix.

    Returns:
        1 for classes with an object that is not difficult, 0 for those with difficult ones only; None if the folder
        has neither lists nor annotations.

    Raises:
        DataError: If a picture is missing in a list, has no annotation or a damaged one, or an unknown class.
    """
    lists = [folder / "ImageSets" / "Main" / f"{name}_{image_set}.txt" for name in VOC_CLASSES]
    if all(path.is_file() for path in lists):
        return Targets(VOC_CLASSES, np.stack([_read_list(path, names) for path in lists], axis=1))
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        return None
    files = [annotations / f"{name}.xml" for name in names]
    if missing := [path for path in files if not path.is_file()]:
        raise DataError(
            f"data.root: {len(missing):,} of {len(files):,} pictures of {folder.name} {image_set} have no annotation: "
            f"{_naming(missing)}. Restore the files, or take the names out of ImageSets/Main/{image_set}.txt."
        )
    rows = [_read_annotation(path) for path in files]
    return Targets(VOC_CLASSES, np.array(rows, dtype=np.int8).reshape(-1, len(VOC_CLASSES)))


def _read_list(path: Path, names: Sequence[str]) -> np.ndarray:
    """A class's column, int8 (N,)."""
    try:
        pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        values = {name: int(value) for name, value in pairs}
    except (OSError, ValueError) as error:
        raise DataError(f"data.root: {path} must have lines of a name and 1, 0 or -1: {error}") from error
    if missing := [name for name in names if values.get(name) not in (1, 0, -1)]:
        raise DataError(
            f"data.root: {path} does not say 1, 0 or -1 for {len(missing):,} of {len(names):,} pictures: "
            f"{_naming(missing)}. Restore the file; without the class lists the annotations are read."
        )
    return np.array([values[name] for name in names], dtype=np.int8)


def _read_annotation(path: Path) -> list[int]:
    """1, 0 or -1 for each class."""
    row = dict.fromkeys(VOC_CLASSES, -1)
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"data.root: {path} can't be read: {error}. Restore the annotation.") from error
    for each in objects:
        name = (each.findtext("name") or "").strip()
        if name not in row:
            raise DataError(
                f"data.root: {path} has an object of the unknown class '{name}'. VOC's classes are: "
                f"{', '.join(VOC_CLASSES)}."
            )
        is_difficult = (each.findtext("difficult") or "0").strip() == "1"
        row[name] = max(row[name], 0 if is_difficult else 1)
    return list(row.values())


def _naming(things: Sequence[object]) -> str:
    more = f" and {len(things) - _MOST_NAMED:,} more" if len(things) > _MOST_NAMED else ""
    return f"{', '.join(str(each) for each in things[:_MOST_NAMED])}{more}"
