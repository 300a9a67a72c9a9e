"""What an evaluation is, and what all of them need to know about labels and seeds."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures


class Evaluation(Protocol):
    """A measurement of a finished encoder. Its config class is the evaluation: it holds the settings and runs them."""

    @property
    def name(self) -> str:
        """The tag in a recipe, and the first part of its metrics' names."""

    def evaluate(
        self, encoder: Backbone, train: Pictures, test: Pictures, *, data: DataConfig, seed: int, device: torch.device
    ) -> Iterator[tuple[str, float]]:
        """Yield (metric name, value) pairs, names like `linear_probe/b3/top1`; the encoder is left as it was."""

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""


def chance_level(labels: Tensor, num_classes: int) -> float:
    """Accuracy of the best guess that does not look at the picture: always the most frequent class.

    For evenly distributed classes that is 1 / num_classes, and it is never less: the most frequent of at most
    num_classes classes has at least that share. An accuracy must exceed this level to say anything.

    Args:
        labels: Classes of the pictures that are tested, (N,) in 0..num_classes - 1; -1 (no label) is left out.
        num_classes: Number of classes, at least 1.

    Returns:
        A share in (0, 1]; 1 / num_classes if there are no labels at all.
    """
    labelled = labels[labels >= 0]
    if len(labelled) == 0:
        return 1 / num_classes
    return int(labelled.bincount().max()) / len(labelled)


def balanced_subset(labels: Tensor, per_class: int, *, seed: int) -> Tensor:
    """Choose the same number of pictures of every class.

    For one seed the subsets are nested: that of 10 a class contains that of 5.

    Args:
        labels: (N,); -1 (no label) is never chosen.
        per_class: Pictures of each class, at least 1; a class with fewer gives all that it has.
        seed: Decides which ones, at least 0.

    Returns:
        Indices into `labels`, (M,) int64, ascending.

    Raises:
        ValueError: If `per_class` is less than 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class: must be at least 1, got {per_class}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = shuffled[labels[shuffled] >= 0]
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    _, sizes = labels[by_class].unique_consecutive(return_counts=True)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rank_in_class = torch.arange(len(by_class)) - first
    return by_class[rank_in_class < per_class].sort().values


def derive_seed(*numbers: int) -> int:
    """A seed for one part of a computation: (seed, repetition), (seed, block); different parts don't share draws."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
