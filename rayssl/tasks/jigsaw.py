"""The jigsaw task: in which order are the tiles of a picture shown? (PSL 3.3.1; Noroozi and Favaro 2016)

A crop is divided into grid x grid cells, a tile is cut at a random place in each, and the tiles are shown in the order
of one of P permutations, the class. The paper stacks the tiles along the channels; a first layer of 27 channels could
see no ordinary picture afterwards, so every tile passes the same network, as one batch of all tiles, and only the head
sees them side by side (Siamese, as Noroozi and Favaro, and Goyal et al. 2019, whose 45.7 the paper compares with).

Gaps between tiles keep lines from running on across them. Grey pictures, and tiles normalised each by itself, keep lens
and light from telling where in the picture a tile has its place (Noroozi and Favaro 2016; the paper says neither).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional

from rayssl.data.augment import crop, flip, grayscale, normalize, resize, to_float
from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.recipe_file import parse_section
from rayssl.schema import Config
from rayssl.tasks.base import TaskConfig, TaskLoss, TaskSetting, Views
from rayssl.tasks.permutations import count_permutations, hamming_summary, permutation_set

__all__ = ["JigsawConfig", "JigsawHead", "JigsawLevel", "JigsawTask", "hamming_summary", "permutation_set"]


class JigsawLevel(Config):
    """How hard the task is: C1, C2, C3 of the paper are 500, 1000 and 2000 permutations (Table 1)."""

    num_permutations: int = Field(ge=2)
    """Number of permutations P; there are 24 for a grid of 2, 362,880 for 3 and 262,144 to choose from for 4."""


class JigsawConfig(TaskConfig):
    """Tell the order in which the tiles of a picture are shown."""

    name: Literal["jigsaw"] = "jigsaw"
    grid: Literal[2, 3, 4] = 3
    """Cells a side (the paper: 3)."""
    crop: int | None = Field(default=None, ge=4)
    """Side in pixels of the square that is divided into cells, a multiple of grid; None: the largest one in the paper's
    proportion, 225 of 224 image_size, so 225 for 224, 126 for 128 and 30 for 32."""
    tile_size: int | None = Field(default=None, ge=1)
    """Side of a tile in pixels; None: the paper's 64 of a cell's 75, so 64 for 224, 36 for 128 and 9 for 32."""
    normalize_tiles: bool = True
    """Whether each tile is given mean 0 and deviation 1 in each channel by itself, instead of ImageNet's for all:
    Noroozi and Favaro's remedy against low-level shortcuts, which the paper does not mention."""
    gray_probability: float = Field(default=0.3, ge=0, le=1)
    """Share of pictures shown in grey, against colour fringes of lenses (Noroozi and Favaro; the paper: unstated)."""
    head_width: int = Field(default=1000, ge=1)
    """Features of each tile in the head (Goyal et al. 2019)."""
    permutation_seed: int = Field(default=0, ge=0)
    """Seed of the permutations, apart from the run's, so that classes mean the same in runs to be compared."""

    @field_validator("crop")
    @classmethod
    def _whole_cells(cls, crop: int | None, info: ValidationInfo) -> int | None:
        grid = info.data.get("grid")
        if crop is not None and grid is not None and crop % grid:
            raise ValueError(f"must be a multiple of grid, {grid}, got {crop}. Write {crop // grid * grid}")
        return crop

    def parse_level(self, level: object) -> JigsawLevel:
        """See `TaskConfig`; there must be as many permutations of the grid's tiles."""
        most = count_permutations(self.grid)
        tiling = f"{self.grid} x {self.grid} tiles"

        class Bounded(JigsawLevel):
            @field_validator("num_permutations")
            @classmethod
            def _exist(cls, number: int) -> int:
                if number > most:
                    raise ValueError(f"must be at most {most}, the permutations for {tiling}, got {number}")
                return number

        # As a plain level: another process could not unpickle a class that was made here.
        return JigsawLevel(num_permutations=parse_section(Bounded, level).num_permutations)

    def build(self, level: JigsawLevel, setting: TaskSetting) -> "JigsawTask":
        """Make the task at one level."""
        return JigsawTask(
            level.num_permutations,
            image_size=setting.image_size,
            grid=self.grid,
            crop=self.crop,
            tile_size=self.tile_size,
            normalize_tiles=self.normalize_tiles,
            gray_probability=self.gray_probability,
            head_width=self.head_width,
            permutation_seed=self.permutation_seed,
        )

    def check(self, level: JigsawLevel, setting: TaskSetting) -> None:
        """A tile must fit its cell."""
        task = self.build(level, setting)
        if task.tile_size > task.cell:
            raise ValueError(
                f"method.task.tile_size: must be at most {task.cell}, the side of a cell ({task.crop} px crop, "
                f"{self.grid} cells a side), got {task.tile_size}. Lower it, or leave it out"
            )


class JigsawTask:
    """Jigsaw at one level; see `JigsawConfig` for the arguments and `PretextTask` for the methods.

    Pictures whose short side is above the paper's, 256 for 224, or above the crop if that is larger, are reduced
    to it; smaller ones stay as they are as long as the crop fits, since enlarging only blurs.
    """

    examples_per_image = 1

    def __init__(
        self,
        num_permutations: int,
        *,
        image_size: int,
        grid: int = 3,
        crop: int | None = None,
        tile_size: int | None = None,
        normalize_tiles: bool = True,
        gray_probability: float = 0.3,
        head_width: int = 1000,
        permutation_seed: int = 0,
    ) -> None:
        self.num_permutations = num_permutations
        self.grid = grid
        self.crop = image_size * 225 // 224 // grid * grid if crop is None else crop
        self.cell = self.crop // grid
        self.tile_size = round(self.cell * 64 / 75) if tile_size is None else tile_size
        self.short_side = max(self.crop, round(image_size * 256 / 224))
        self.normalize_tiles = normalize_tiles
        self.gray_probability = gray_probability
        self.head_width = head_width
        self.permutation_seed = permutation_seed
        self.chance = 1 / num_permutations
        self._buffers = Buffers()

    @cached_property
    def permutations(self) -> Tensor:
        """int64 (P, grid * grid), as `permutation_set`; made at first use, since it may take seconds."""
        return permutation_set(self.num_permutations, grid=self.grid, seed=self.permutation_seed)

    def make_views(self, batch: Batch) -> Views:
        """Flip, crop, cut and reorder.

        Returns:
            Tiles (N * T, 3, tile_size, tile_size), the T = grid * grid of a picture next to each other in the order in
            which they are shown, and the numbers of their permutations, (N,).
        """
        draws = batch.draws
        images = flip(batch.images, draws.chance(0.5))  # before cutting: the label means the flipped picture's cells
        side = min(max(images.shape[-1], self.crop), self.short_side)
        if images.shape[-1] != side:
            images = resize(images, side)
        corners = draws.integers(side - self.crop + 1, 2)
        num_tiles = self.grid**2
        offsets = draws.integers(self.cell - self.tile_size + 1, num_tiles, 2)
        gray = draws.chance(self.gray_probability)
        targets = draws.integers(self.num_permutations)  # last: all levels see the same tiles

        tops, lefts = self._places(corners, offsets, self.permutations[targets])
        tiles = self._as_floats(crop(images, tops, lefts, self.tile_size).flatten(0, 1))
        # From here on in place: nobody else has seen the tiles.
        grayscale(tiles, gray.repeat_interleave(num_tiles), out=tiles)
        inputs = _normalize_each(tiles) if self.normalize_tiles else normalize(tiles, out=tiles)
        return Views(inputs, targets.to(inputs.device, non_blocking=True))

    def build_head(self, channels: int, blocks: Sequence[nn.Module]) -> "JigsawHead":
        """What sees the tiles side by side."""
        return JigsawHead(channels, self.grid**2, self.head_width, self.num_permutations)

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """Cross entropy over the permutations, on the global average of each tile's map."""
        logits = head(feature_map.mean((2, 3))).float()
        accuracy = (logits.detach().argmax(1) == targets).float().mean()
        return TaskLoss(functional.cross_entropy(logits, targets), {"accuracy": accuracy})

    def _places(self, corners: Tensor, offsets: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Tops and lefts of a picture's tiles in the order in which they are shown, (N, T) each.

        Args:
            corners: Top and left of each crop, (N, 2).
            offsets: Top and left of each cell's tile inside it, (N, T, 2), the cells row by row.
            order: The cells to show, first to last, (N, T).
        """
        starts = torch.arange(self.grid) * self.cell
        cells = torch.cartesian_prod(starts, starts)  # (T, 2)
        places = corners[:, None] + cells + offsets
        tops, lefts = places.gather(1, order[..., None].expand_as(places)).unbind(2)
        return tops, lefts

    def _as_floats(self, tiles: Tensor) -> Tensor:
        """In [0, 1], in memory of their own."""
        if tiles.device.type != "cpu" or tiles.is_floating_point():
            return to_float(tiles)
        return self._buffers.lend_views(len(tiles), self.tile_size).copy_(tiles).div_(255)

    def facts(self) -> dict[str, float]:
        """Mean and smallest Hamming distance between two permutations, in tiles (Table 1: about 8.0 on average)."""
        mean, minimum = hamming_summary(self.permutations)
        return {"permutations/mean_hamming": mean, "permutations/minimum_hamming": minimum}


class JigsawHead(nn.Module):
    """The same layer for every tile, then one over all of them in the order in which they are shown.

    Args:
        channels: Features of a tile, C.
        num_tiles: Tiles of a picture, T.
        width: Features of a tile that the last layer sees.
        num_permutations: Classes, P.

    Source: Goyal et al. 2019, whose head for ResNet-50 is 2048 -> 1000 for a tile, then 9 * 1000 -> P.
    """

    def __init__(self, channels: int, num_tiles: int, width: int, num_permutations: int) -> None:
        super().__init__()
        self.num_tiles = num_tiles
        self.each = nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.together = nn.Linear(num_tiles * width, num_permutations)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, P) of pooled features (N * T, C), the T tiles of a picture next to each other."""
        hidden = self.each(features)
        return self.together(hidden.unflatten(0, (-1, self.num_tiles)).flatten(1))


def _normalize_each(images: Tensor) -> Tensor:
    """Mean 0 and deviation 1 in each channel of each image, in place; even ones become 0.

    Deviations below one level of an 8-bit picture count as one: what is left there is rounding.
    """
    images -= images.mean((2, 3), keepdim=True)
    deviations = images.square().mean((2, 3), keepdim=True).sqrt_()
    return images.div_(deviations.clamp_min_(1 / 255))
