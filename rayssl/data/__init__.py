"""Pictures: where they come from, how they are split, decoded, kept and augmented."""

from typing import Annotated

from pydantic import Field

from rayssl.data.cache import CachedPictures, build_cache
from rayssl.data.datasets import DataConfig, DigitsConfig, FolderConfig, NpzConfig
from rayssl.data.images import BadImageError, decode_image
from rayssl.data.opening import open_pictures
from rayssl.data.overlap import Overlap, find_overlap
from rayssl.data.pictures import BadFile, ImageList, Pictures, Targets, check_size, header_sizes
from rayssl.data.splits import Splits
from rayssl.data.stream import StreamedPictures
from rayssl.data.torchvision_sets import (
    Cifar10Config,
    ImageNetConfig,
    INaturalistConfig,
    Places365Config,
    Stl10Config,
)
from rayssl.data.voc import Voc0712Config, Voc2007Config, Voc2012Config

AnyData = Annotated[
    DigitsConfig
    | FolderConfig
    | NpzConfig
    | Cifar10Config
    | Stl10Config
    | ImageNetConfig
    | Places365Config
    | INaturalistConfig
    | Voc2007Config
    | Voc2012Config
    | Voc0712Config,
    Field(discriminator="name"),
]
"""All data sets that a recipe may name."""

__all__ = [
    "AnyData",
    "BadFile",
    "BadImageError",
    "CachedPictures",
    "Cifar10Config",
    "DataConfig",
    "DigitsConfig",
    "FolderConfig",
    "INaturalistConfig",
    "ImageList",
    "ImageNetConfig",
    "NpzConfig",
    "Overlap",
    "Pictures",
    "Places365Config",
    "Splits",
    "Stl10Config",
    "StreamedPictures",
    "Targets",
    "Voc0712Config",
    "Voc2007Config",
    "Voc2012Config",
    "build_cache",
    "check_size",
    "decode_image",
    "find_overlap",
    "header_sizes",
    "open_pictures",
]
