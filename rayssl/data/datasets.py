"""What a recipe's `data` section may name, and how each set is listed.

A config lists its training and test pictures; `DataConfig.build` applies the limit and holds out the validation
pictures, so every set is split by the same rules.
"""

import math
import zipfile
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from rayssl.data.folders import list_folder
from rayssl.data.images import MIN_SIDE
from rayssl.data.pictures import ImageList
from rayssl.data.splits import TEST_STREAM, Splits, hold_out, stratified_subset
from rayssl.errors import DataError
from rayssl.schema import Config

_NPZ_NAMES = ("images", "labels", "test_images", "test_labels")


class DataConfig(Config):
    """What all data sets have in common."""

    image_size: int = Field(ge=8)
    """Side of the square view that the network sees, in pixels."""
    resize: int | None = None
    """Short side to which pictures are reduced when decoded; None: image_size * sqrt 2 rounded up, enough for rotated
    views (317 for 224)."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many training pictures, a seeded subset with all classes in it; taken before the hold-out."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training pictures held out for probes, of each class alike; 0 holds out none."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of pictures that may be unreadable; they are left out and listed. More stop the run."""
    allow_upscaling: bool = False
    """Whether pictures smaller than image_size may be enlarged."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Decoded pictures up to this size are kept in one file, read through the page cache; larger sets are decoded while
    training. In GiB, for each of the train, validation and test pictures."""
    cache_path: Path | None = None
    """Folder on each node's own disk for these files, which one worker of each node then writes; null: they lie in the
    run's folder, written once for all nodes."""
    loader_workers: int = Field(default=2, ge=0)
    """Processes that decode while training, for each worker; 0 decodes in the training process."""

    @property
    def decode_size(self) -> int:
        """Short side of decoded pictures, in pixels."""
        return self.resize if self.resize is not None else math.ceil(self.image_size * math.sqrt(2))

    @property
    def eval_resize(self) -> int:
        """Short side from which evaluations take the centre: 256 for 224 and in proportion; small views whole."""
        return round(self.image_size * 256 / 224) if self.image_size >= 96 else self.image_size

    @model_validator(mode="after")
    def _resize_covers_the_view(self) -> Self:
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(f"resize: must be at least image_size, {self.image_size}, got {self.resize}")
        return self

    def build(self, *, seed: int) -> Splits:
        """Lists the pictures and splits them, the same on every machine for a seed.

        Raises:
            DataError: If the pictures are missing or don't follow the set's layout.
        """
        train, test = self.list_images(seed=seed)
        if self.limit is not None and self.limit < len(train):
            train = train.select(stratified_subset(train.labels, self.limit, seed=seed))
        train, validation = hold_out(train, self.validation_fraction, seed=seed)
        return Splits(train, validation, test)

    @abstractmethod
    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """All training pictures, and the test pictures if there are any; the seed is for sets without a split."""


class RootedConfig(DataConfig):
    """A data set that lies in a folder."""

    root: Path = Path("data")
    """Where the pictures are; relative to the working directory, `~` is the home."""

    @property
    def root_folder(self) -> Path:
        """`root` with the home filled in."""
        return self.root.expanduser()


class DigitsConfig(DataConfig):
    """1,797 handwritten digits that ship with scikit-learn, enlarged from 8 to 32 px; a fifth of them for the test."""

    name: Literal["digits"] = "digits"
    """The set's tag."""
    image_size: int = Field(default=32, ge=8)
    """Side of the square view that the network sees, in pixels."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`; the test pictures are a stratified draw by the seed."""
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), from 0..16
        large = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in grey]
        labels = digits.target.astype(np.int64)
        images = ImageList(_three_channels(np.stack(large)), labels, tuple(str(name) for name in digits.target_names))
        return hold_out(images, 0.2, seed=seed, stream=TEST_STREAM)


class FolderConfig(RootedConfig):
    """Pictures in class folders, root/CLASS/*.jpg with any depth below CLASS, or without labels in one flat folder."""

    name: Literal["folder"] = "folder"
    """The set's tag."""
    test_root: Path | None = None
    """Test pictures, in the same layout and with the same classes; None: there are none."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`."""
        train = list_folder(self.root_folder, key="data.root")
        if self.test_root is None:
            return train, None
        test_root = self.test_root.expanduser()
        if test_root.resolve().is_relative_to(self.root_folder.resolve()):
            raise DataError(f"data.test_root: must not lie inside data.root, which is trained on, got {test_root}")
        return train, list_folder(test_root, key="data.test_root", classes=train.classes)


class NpzConfig(DataConfig):
    """Pictures in one .npz file: images, and optionally labels, test_images and test_labels."""

    name: Literal["npz"] = "npz"
    """The set's tag."""
    file: Path
    """Holds `images`, uint8 (N, H, W) or (N, H, W, 1 or 3), and `labels`, integers (N,), -1 for none."""

    def list_images(self, *, seed: int) -> tuple[ImageList, ImageList | None]:
        """See `DataConfig.list_images`."""
        arrays = _read_npz(self.file.expanduser())
        if "images" not in arrays or not set(arrays) <= set(_NPZ_NAMES):
            raise DataError(f"data.file: needs `images`, and may hold {_NPZ_NAMES[1:]}, got {sorted(arrays)}")
        if "test_labels" in arrays and "test_images" not in arrays:
            raise DataError("data.file: holds test_labels without test_images. Add them or leave out the labels.")
        values = np.unique(arrays["labels"]) if "labels" in arrays else np.array([], dtype=np.int64)
        train = _from_arrays(arrays, values, prefix="")
        return train, _from_arrays(arrays, values, prefix="test_") if "test_images" in arrays else None


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise DataError(f"data.file: must be an .npz file with `images`, {file} is none.")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as arrays:
                return dict(arrays)
    except OSError as error:
        raise DataError(
            f"data.file: {file} can't be read: {error.strerror or error}. Set it to an .npz file."
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"data.file: {file} is damaged or holds more than plain arrays: {error}") from error


def _from_arrays(arrays: dict[str, np.ndarray], values: np.ndarray, *, prefix: str) -> ImageList:
    """One split of the file; `values` are the labels that occur in training, the classes in their order."""
    key, images = f"data.file: {prefix}images", arrays[f"{prefix}images"]
    if images.dtype != np.uint8:
        raise DataError(f"{key} must be uint8, from 0 to 255, got {images.dtype}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(f"{key} must have the shape (N, H, W) or (N, H, W, 1 or 3), got {images.shape}")
    if len(images) == 0 or min(images.shape[1:3]) < MIN_SIDE:
        raise DataError(f"{key} must be at least one of {MIN_SIDE} x {MIN_SIDE} px, got {images.shape}")
    key, labels = f"data.file: {prefix}labels", arrays.get(f"{prefix}labels", np.full(len(images), -1))
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{key} must be integers of the shape ({len(images)},), got {labels.dtype} {labels.shape}")
    if (labels.astype(np.int64) < -1).any():
        raise DataError(f"{key} must be -1 (none) or more, got {labels.min()}")
    classes = values[values != -1]
    unknown = np.setdiff1d(labels[labels != -1], classes)
    if len(unknown):
        raise DataError(f"{key} must occur among the training labels, got {unknown[:5].tolist()} beside them")
    numbers = np.where(labels == -1, -1, np.searchsorted(classes, labels)).astype(np.int64)
    return ImageList(_three_channels(images), numbers, tuple(str(value) for value in classes.tolist()))


def _three_channels(images: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, 1 or 3) as (N, H, W, 3), without copying."""
    images = images[..., None] if images.ndim == 3 else images
    return np.broadcast_to(images, (*images.shape[:3], 3))
