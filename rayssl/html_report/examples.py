"""Pictures as the network sees them: the views that a stage's task makes, put back together for the eye."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.utils import make_grid

from rayssl.config import ExperimentConfig
from rayssl.data import Pictures
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Draws
from rayssl.data.loaders import Batch
from rayssl.methods import MGTAConfig
from rayssl.methods.mgta_stage import AutoEncoderTask
from rayssl.tasks import JigsawConfig, MoCoConfig, RotationConfig, SimCLRConfig, TaskConfig, TaskSetting
from rayssl.tasks.jigsaw import JigsawTask

_TILE = 80
"""Largest side of a view on the page, in pixels; a row of eight then fills its width."""
_GAP = 4
_CONTRAST = 0.22
"""Of tiles that are normalised each by itself: two deviations fill the range."""


@dataclass(frozen=True)
class Example:
    """Views of some pictures."""

    title: str
    """Stages that see them."""
    picture: str
    """A grid as data URI: a column a picture."""
    caption: str
    """What the rows are."""


def task_examples(config: ExperimentConfig, pictures: Pictures) -> Iterator[Example]:
    """Views of all of `pictures` at each level of the recipe's task, by the seed's own draws.

    Args:
        config: The recipe.
        pictures: A few, such as 8.
    """
    batch = _batch(pictures, seed=config.seed)
    if isinstance(config.method, MGTAConfig):
        task = AutoEncoderTask(config.method.views, image_size=config.data.image_size)
        views = task.make_views(batch).inputs
        yield Example("All stages", grid_uri([_visible(views)]), "What both auto-encoders see, and have to give back.")
        return
    setting = config.task_setting(pictures.classes)
    stages = config.method.stages
    for level in dict.fromkeys(stage.level for stage in stages):
        seen_by = [number for number, stage in enumerate(stages, start=1) if stage.level == level]
        rows, caption = _rows(config.method.task, level, setting, _batch(pictures, seed=config.seed))
        yield Example(f"Stage {', '.join(map(str, seen_by))}", grid_uri(rows), caption)


def grid_uri(rows: Sequence[Tensor]) -> str:
    """Rows of as many images, each (N, 3, S, S) in [0, 1], as one PNG; gaps are transparent."""
    images = torch.cat([_small(row) for row in rows])
    opaque = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
    grid = make_grid(opaque, nrow=len(rows[0]), padding=_GAP, pad_value=0.0)
    return array_uri((grid * 255).round().byte().permute(1, 2, 0).numpy())


def image_uri(image: Tensor) -> str:
    """A normalised view (3, S, S) as PNG."""
    return array_uri((_small(_visible(image[None]))[0] * 255).round().byte().permute(1, 2, 0).numpy())


def file_uri(path: Path, *, width: int) -> str:
    """A PNG file, reduced to `width` pixels if it is wider."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.BOX)
    return array_uri(np.asarray(picture))


def array_uri(pixels: np.ndarray) -> str:
    """Pixels uint8 (H, W, 3 or 4) as a PNG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _batch(pictures: Pictures, *, seed: int) -> Batch:
    """The pictures' centres, and the random numbers of the run's first step."""
    rows = np.arange(len(pictures))
    (windows,) = pictures.batches([(rows, np.full(len(rows), 0.5))])
    draws = Draws(seed, 0, 0, batch_size=len(rows))
    return Batch(windows, draws, torch.from_numpy(rows), torch.from_numpy(pictures.labels))


def _rows(task: TaskConfig, level: Any, setting: TaskSetting, batch: Batch) -> tuple[list[Tensor], str]:
    """What the task makes of a batch, as rows of images in [0, 1], and a sentence about them."""
    count = len(batch.images)
    if isinstance(task, JigsawConfig):
        return _jigsaw_rows(task.build(level, setting), batch)
    if isinstance(task, RotationConfig):
        every_angle = task.model_copy(update={"copies": "all"})
        turned = _visible(every_angle.build(level, setting).make_views(batch).inputs)
        num_angles = len(turned) // count
        rows = [turned[angle::num_angles] for angle in range(num_angles)]
        angles = ", ".join(f"{360 * angle / num_angles:g}°" for angle in range(num_angles))
        return rows, f"A column is a picture, a row an angle, from above: {angles}. The network has to tell the row."
    views = task.build(level, setting).make_views(batch)
    if isinstance(task, MoCoConfig):
        return [_visible(views.inputs), _visible(views.targets)], (
            "Above what the query encoder sees, below the key encoder's view. The network has to find the key of the "
            "same picture among those of others."
        )
    rows = list(_visible(views.inputs).split(count))
    if isinstance(task, SimCLRConfig):
        return rows, "Two views of each picture. The network has to find the other one among all views of the batch."
    return rows, "What the network sees of each picture."


def _jigsaw_rows(task: JigsawTask, batch: Batch) -> tuple[list[Tensor], str]:
    """The tiles in their own cells, and in the order in which they are shown."""
    views = task.make_views(batch)
    tiles = _CONTRAST * views.inputs + 0.5 if task.normalize_tiles else _visible(views.inputs)
    shown = tiles.clamp(0, 1).unflatten(0, (len(batch.images), -1))  # (N, T, 3, t, t)
    order = task.permutations[views.targets]
    rows = torch.arange(len(shown))[:, None]
    in_place = torch.empty_like(shown)
    in_place[rows, order] = shown
    contrast = " Each tile has been given the same mean and contrast." if task.normalize_tiles else ""
    return [_assemble(in_place, task.grid), _assemble(shown, task.grid)], (
        f"Above the tiles in their places, below as the network gets them: it has to tell which of "
        f"{task.num_permutations:,} orders this is.{contrast}"
    )


def _assemble(tiles: Tensor, grid: int) -> Tensor:
    """Tiles (N, grid * grid, 3, t, t) side by side, with white gaps: (N, 3, S, S)."""
    padded = functional.pad(tiles, (0, 1, 0, 1), value=1.0)
    rows = padded.unflatten(1, (grid, grid))
    whole = rows.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)
    return whole[..., :-1, :-1]


def _visible(views: Tensor) -> Tensor:
    """Normalised views as pixels in [0, 1]."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (views.float().cpu() * deviation + mean).clamp(0, 1)


def _small(images: Tensor) -> Tensor:
    """(N, 3, S, S) with S at most the page's."""
    if images.shape[-1] <= _TILE:
        return images
    return functional.interpolate(images, size=(_TILE, _TILE), mode="bilinear", antialias=True).clamp(0, 1)
