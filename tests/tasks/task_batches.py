"""Batches for tests of tasks: pictures with a step's draws, without a loader."""

import torch
from torch import Tensor

from rayssl.data.augment import Draws
from rayssl.data.loaders import Batch


def as_batch(images: Tensor, draws: Draws, labels: Tensor | None = None) -> Batch:
    """The batch that a loader would make of these windows; pictures are numbered in order, without labels."""
    numbers = torch.arange(len(images))
    return Batch(images, draws, numbers, torch.full_like(numbers, -1) if labels is None else labels)
