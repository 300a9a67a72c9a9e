"""The rotation task: which of |R| equally spaced angles was the picture turned by? (PSL 3.3.2; Gidaris et al. 2018)

Turning a square picture by 45 degrees leaves black corners, and resampling blurs odd multiples of 45 degrees more than
multiples of 90, so the task can be solved without looking at the picture. By default neither is so here: the crop
always lies inside the turned picture, and every view is resampled twice, first by an angle drawn uniformly and
then by what is left to the wanted one, so that what the resampling leaves behind does not depend on the class. Where
a picture has to be enlarged, bilinear weights would leave a trace along its own rows and columns, which turn with it; a
round blur of half a picture's pixel hides it. (Measured as in `tests/tasks/test_rotation_leaks.py`.)
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rayssl.data.augment import Draws, crop, flip, gaussian_blur, normalize, rotated_crop
from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.recipe_file import parse_section
from rayssl.schema import Config
from rayssl.tasks.base import TaskConfig, TaskLoss, TaskSetting, Views

_MARGIN = 4
"""Pixels around the first resampling that the second may touch when it interpolates."""


class RotationLevel(Config):
    """How hard the task is: R1, R2, R3 of the paper are 2, 4 and 8 angles (Table 2)."""

    angles: int = Field(ge=2, le=36)
    """Number of angles, 360 / angles degrees apart."""


class RotationConfig(TaskConfig):
    """Tell the angle that a picture was turned by."""

    name: Literal["rotation"] = "rotation"
    copies: Literal["all", "one"] = "all"
    """all: every picture in all its angles, batch_size / angles pictures a batch; one: one random angle a picture."""
    corners: Literal["inside", "mask", "paper"] = "inside"
    """inside: the crop lies inside the turned picture; mask: a disc cut from it; paper: the paper's literal
    geometry, whose black corners tell odd multiples of 45 degrees from the others."""

    def parse_level(self, level: object) -> RotationLevel:
        """See `TaskConfig`."""
        return parse_section(RotationLevel, level)

    def build(self, level: RotationLevel, setting: TaskSetting) -> "RotationTask":
        """Make the task at one level."""
        return RotationTask(level.angles, image_size=setting.image_size, copies=self.copies, corners=self.corners)

    def examples_per_image(self, level: RotationLevel) -> int:
        """All angles, or one."""
        return level.angles if self.copies == "all" else 1


class RotationTask:
    """Rotation at one level; see `RotationConfig` for the arguments and `PretextTask` for the methods."""

    def __init__(self, num_angles: int, *, image_size: int, copies: str = "all", corners: str = "inside") -> None:
        self.num_angles = num_angles
        self.image_size = image_size
        self.copies = copies
        self.corners = corners
        self.chance = 1 / num_angles
        self.examples_per_image = num_angles if copies == "all" else 1
        self._buffers = Buffers()

    def make_views(self, batch: Batch) -> Views:
        """Flip, turn and crop: N * examples_per_image views, all angles of a picture next to each other."""
        draws = batch.draws
        images = flip(batch.images, draws.chance(0.5))  # before turning: the label means the flipped picture's angle
        if self.copies == "all":
            targets = torch.arange(self.num_angles).repeat(len(images))
        else:
            targets = draws.integers(self.num_angles)
        angles = targets * (360 / self.num_angles)
        views = (
            self._paper_views(images, angles, draws) if self.corners == "paper" else self._views(images, angles, draws)
        )
        on_cpu = views.device.type == "cpu"
        inputs = normalize(views, out=self._buffers.lend_views(len(views), self.image_size) if on_cpu else None)
        if self.corners == "mask":
            inputs *= _disc(self.image_size, inputs.device)
        return Views(inputs, targets.to(images.device, non_blocking=True))

    def build_head(self, channels: int, blocks: Sequence[nn.Module]) -> nn.Module:
        """One linear layer from the pooled map to the angles."""
        return nn.Linear(channels, self.num_angles)

    def compute_loss(self, head: nn.Module, feature_map: Tensor, targets: Tensor) -> TaskLoss:
        """Cross entropy over the angles, on the global average of the map."""
        logits = head(feature_map.mean((2, 3))).float()
        accuracy = (logits.detach().argmax(1) == targets).float().mean()
        return TaskLoss(functional.cross_entropy(logits, targets), {"accuracy": accuracy})

    def facts(self) -> dict[str, float]:
        """Nothing beyond the level."""
        return {}

    def _views(self, images: Tensor, angles: Tensor, draws: Draws) -> Tensor:
        """Crops whose content and sharpness are the same for every angle.

        A crop of side s turned by any angle stays within a circle of diameter s * sqrt 2 ("inside"; a disc needs
        only s), so the picture is enlarged until the circle fits, if it has to be; the centre is drawn where it does.
        """
        diameter = self.image_size * (math.sqrt(2) if self.corners == "inside" else 1)
        side = images.shape[-1]
        zoom = max(1.0, _short_side(self.image_size, self.corners) / side)
        reach = side / 2 - diameter / (2 * zoom)
        centers = side / 2 + reach * draws.uniform(-1.0, 1.0, 2)
        first = draws.uniform(0.0, 360.0)
        turned = rotated_crop(
            images, first, size=math.ceil(diameter) + _MARGIN, zoom=zoom, centers=centers, padding="border"
        )
        if zoom > 1:
            turned = _blur(turned, 0.5 * zoom)
        copies = self.examples_per_image
        if copies > 1:
            turned, first = turned.repeat_interleave(copies, 0), first.repeat_interleave(copies)
        middle = torch.full((len(turned), 2), turned.shape[-1] / 2)
        return rotated_crop(turned, angles - first, size=self.image_size, zoom=1.0, centers=middle, padding="border")

    def _paper_views(self, images: Tensor, angles: Tensor, draws: Draws) -> Tensor:
        """Resize (256 for 224), turn with black corners, crop the centre to that size, crop at random (section 4.1)."""
        short_side = _short_side(self.image_size, "paper")
        offsets = draws.integers(short_side - self.image_size + 1, 2)
        copies = self.examples_per_image
        if copies > 1:
            images, offsets = images.repeat_interleave(copies, 0), offsets.repeat_interleave(copies, 0)
        side = images.shape[-1]
        middle = torch.full((len(images), 2), side / 2)
        turned = rotated_crop(images, angles.float(), size=short_side, zoom=short_side / side, centers=middle)
        return crop(turned, offsets[:, 0], offsets[:, 1], self.image_size)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of all images alike."""
    count, reach = len(images), math.ceil(2.5 * sigma)
    return gaussian_blur(
        images, torch.full((count,), sigma), kernel_size=2 * reach + 1, mask=torch.ones(count, dtype=torch.bool)
    )


def _short_side(image_size: int, corners: str) -> int:
    """Short side of the picture that a view is cut from: 317 for 224 (inside), 256 (mask, paper)."""
    return math.ceil(image_size * math.sqrt(2)) if corners == "inside" else round(image_size * 256 / 224)


def _disc(size: int, device: torch.device) -> Tensor:
    """1 inside the circle that touches the view's sides, 0 outside; (size, size)."""
    distance = torch.arange(size, device=device) + 0.5 - size / 2
    return ((distance[:, None] ** 2 + distance[None, :] ** 2) <= (size / 2) ** 2).float()
