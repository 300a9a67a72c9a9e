"""What features can be: views of pictures, and poolings of a block's map, as values that tell kept features apart."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rayssl.data import Pictures
from rayssl.data.ahead import windows_on
from rayssl.data.augment import normalize, to_float
from rayssl.data.loaders import plain_views
from rayssl.evaluation.features import MOST_FEATURES, pool_block


@dataclass(frozen=True)
class CenterViews:
    """The centre of each picture, its short side brought to `eval_resize` px before; see `plain_views`."""

    image_size: int
    """Side of the views, in pixels."""
    eval_resize: int
    views_at_once: int = 128
    """Views of a batch; rounding may depend on it."""

    def batches(self, pictures: Pictures, rows: np.ndarray, *, device: torch.device) -> Iterator[Tensor]:
        """Normalised views of the pictures at these indices, in their order: (n, 3, image_size, image_size)."""
        return plain_views(
            pictures,
            rows,
            image_size=self.image_size,
            eval_resize=self.eval_resize,
            batch_size=self.views_at_once,
            device=device,
        )


@dataclass(frozen=True)
class WholeViews:
    """Whole pictures, resized to a square with their aspect distorted and without a crop (Goyal et al. 2019)."""

    image_size: int
    """Side of the views, in pixels."""
    views_at_once: int = 64
    """Views of a batch; rounding may depend on it."""

    def batches(self, pictures: Pictures, rows: np.ndarray, *, device: torch.device) -> Iterator[Tensor]:
        """Normalised views of the pictures at these indices, in their order: (n, 3, image_size, image_size)."""
        chunks = np.array_split(rows, -(-len(rows) // self.views_at_once))
        size = (self.image_size, self.image_size)
        with closing(windows_on(device, pictures.batches((chunk, None) for chunk in chunks))) as batches:
            for windows in batches:
                views = to_float(windows)
                if views.shape[-1] != self.image_size:
                    views = functional.interpolate(views, size, mode="bilinear", align_corners=False, antialias=True)
                yield normalize(views).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class GoyalPool:
    """The papers' pooling to at most `max_features` features; see `pool_block`."""

    max_features: int = MOST_FEATURES
    """Most of a block, but for one cell at least."""

    @property
    def name(self) -> str:
        """For file names."""
        return f"goyal-{self.max_features}"

    def __call__(self, feature_map: Tensor, block: int) -> Tensor:
        """Features (N, F) of a block's map (N, C, H, W)."""
        return pool_block(feature_map, block, max_features=self.max_features)


@dataclass(frozen=True)
class MeanPool:
    """The average over a map's cells, one feature a channel."""

    @property
    def name(self) -> str:
        """For file names."""
        return "mean"

    def __call__(self, feature_map: Tensor, block: int) -> Tensor:
        """Features (N, C) of a block's map (N, C, H, W)."""
        return feature_map.mean((2, 3))


Views = CenterViews | WholeViews
Pool = GoyalPool | MeanPool
