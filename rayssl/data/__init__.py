"""Pictures: where they come from, how they are split, decoded, kept and augmented."""

from typing import Annotated

from pydantic import Field

from rayssl.data.cache import CachedPictures, build_cache
from rayssl.data.datasets import DataConfig, DigitsConfig, FolderConfig, NpzConfig
from rayssl.data.images import BadImageError, decode_image
from rayssl.data.opening import open_pictures
from rayssl.data.pictures import BadFile, ImageList, Pictures, check_size, header_sizes
from rayssl.data.splits import Splits
from rayssl.data.stream import StreamedPictures
from rayssl.data.torchvision_sets import Cifar10Config, ImageNetConfig, Stl10Config, Voc2007Config

AnyData = Annotated[
    DigitsConfig | FolderConfig | NpzConfig | Cifar10Config | Stl10Config | ImageNetConfig | Voc2007Config,
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
    "ImageList",
    "ImageNetConfig",
    "NpzConfig",
    "Pictures",
    "Splits",
    "Stl10Config",
    "StreamedPictures",
    "Voc2007Config",
    "build_cache",
    "check_size",
    "decode_image",
    "header_sizes",
    "open_pictures",
]
