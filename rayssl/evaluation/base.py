"""What an evaluation is, and what all of them need to know about labels and seeds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Annotated, Protocol, Self, runtime_checkable

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from rayssl.backbones import NUM_BLOCKS, Backbone
from rayssl.clustering.rows import Group
from rayssl.data import DataConfig, ImageList, Pictures
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.runtime import Runtime
from rayssl.schema import Config

_BLOCK = re.compile(r"/b(\d)/")
_DEVIATIONS = 4
"""Standard deviations above chance that are still taken for noise: five blocks are tried."""


@dataclass(frozen=True)
class Sanity:
    """What a measurement must not exceed once the labels are shuffled."""

    metric: str
    """The number that is judged."""
    chance: float
    """Its level of chance."""
    bound: float
    """Values up to this one are chance and noise."""


class Evaluation(Protocol):
    """A measurement of a finished encoder. Its config class is the evaluation: it holds the settings and runs them."""

    @property
    def name(self) -> str:
        """The tag in a recipe, and the first part of its metrics' names."""

    def evaluate(
        self,
        encoder: Backbone,
        train: Pictures,
        test: Pictures,
        *,
        data: DataConfig,
        seed: int,
        device: torch.device,
        features: FeatureStore,
    ) -> Iterator[tuple[str, float]]:
        """Yield (metric name, value) pairs, names like `linear_probe/b3/top1`; the encoder is left as it was.

        Args:
            encoder: On `device`.
            train: Pictures to learn from.
            test: Pictures to tell.
            data: How the pictures are read.
            seed: Of all draws.
            device: Where it runs.
            features: Where whole sets' features are kept, and found again if they were asked for before.
        """

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """Why these pictures can't be measured, as a clause; None if they can."""

    def parts(self, count: int) -> tuple["Evaluation", ...]:
        """At most `count` evaluations that can run apart; together, by `merge_parts`, they give what this one does."""

    def sanity(self, train: Pictures, test: Pictures) -> Sanity:
        """What a measurement with shuffled labels must not exceed."""

    def chosen_pictures(self, train: Pictures, *, seed: int) -> dict[str, np.ndarray]:
        """Subsets of the training pictures that should be kept on record: name of the list -> indices (N,)."""


@runtime_checkable
class SharedEvaluation(Evaluation, Protocol):
    """An evaluation that several workers can make together, each with the features of its own share of the pictures."""

    def evaluate_shared(
        self,
        encoder: Backbone,
        train: Pictures,
        test: Pictures,
        *,
        data: DataConfig,
        seed: int,
        device: torch.device,
        features: FeatureStore,
        group: Group,
    ) -> Iterator[tuple[str, float]]:
        """Yield on every worker what `evaluate` does, to rounding.

        Args:
            encoder: See `evaluate`, as for the other arguments; the same on all workers, whole pictures included.
            train: As there.
            test: As there.
            data: As there.
            seed: As there.
            device: As there.
            features: As there.
            group: The workers, all of which are at the same measurement; None: this process alone.
        """


@dataclass(frozen=True)
class Outcome:
    """What all workers together have measured."""

    metrics: dict[str, float]
    """Names and values; none if the training diverged."""
    notes: list[str]
    """What a reader of the numbers has to know."""
    sanity: Sanity | None = None
    """What the numbers must not exceed, where the labels were shuffled."""


@runtime_checkable
class GroupEvaluation(Protocol):
    """A measurement that trains a large network on whole pictures: all workers make it together."""

    @property
    def name(self) -> str:
        """The tag in a recipe, and the first part of its metrics' names."""

    def check(self, train: ImageList, test: ImageList, *, num_workers: int) -> None:
        """Look at all that the measurement needs besides the pictures; raises a DataError or ConfigError."""

    def evaluate_together(
        self,
        encoder: Backbone,
        train: ImageList,
        test: ImageList,
        *,
        data: DataConfig,
        seed: int,
        shuffled: bool,
        runtime: Runtime,
        folder: Path | None,
    ) -> Outcome:
        """Measure; called by all workers at once with the same arguments. The encoder is left as it was.

        Args:
            encoder: On the runtime's device.
            train: Files to learn from.
            test: Files to tell.
            data: How the pictures are read.
            seed: Of all draws.
            shuffled: Whether each picture gets the annotations of another one, which must give chance.
            runtime: The workers.
            folder: Where drawn examples go, with captions; None: nothing is drawn.
        """

    def describe(self, train: Pictures, test: Pictures) -> str:
        """See `Evaluation`."""

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """See `Evaluation`."""


def listed_pictures(
    data: DataConfig, train: Pictures, test: Pictures, *, data_seed: int
) -> tuple[ImageList, ImageList]:
    """The files behind opened pictures, unusable ones left out as far as they are known.

    Args:
        data: The set, to be listed again.
        train: The opened training pictures.
        test: Those that are tested on: the set's own, or held-out ones.
        data_seed: The seed that the set was split by.
    """
    splits = data.build(seed=data_seed)
    told = splits.test if splits.test is not None and len(splits.test) else splits.validation
    assert told is not None
    return splits.train.select(train.numbers), told.select(test.numbers)


class BlockEvaluation(Config):
    """What measurements of frozen blocks have in common: each block can be measured apart."""

    blocks: tuple[Annotated[int, Field(ge=1, le=NUM_BLOCKS)], ...] = (1, 2, 3, 4, 5)
    """Blocks that are measured."""

    @field_validator("blocks")
    @classmethod
    def _each_once(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if not blocks or len(set(blocks)) < len(blocks):
            raise ValueError(f"must be at least one, each once, got {list(blocks)}")
        return blocks

    def parts(self, count: int) -> tuple[Self, ...]:
        """Groups of blocks of about equal cost; see `Evaluation`."""
        groups = [self.blocks[start::count] for start in range(min(count, len(self.blocks)))]
        return tuple(self.model_copy(update={"blocks": group}) for group in groups)

    def chosen_pictures(self, train: Pictures, *, seed: int) -> dict[str, np.ndarray]:
        """None."""
        return {}


def merge_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of parts together, block by block; of ".../best/..." the highest counts, and they come last."""
    merged: dict[str, float] = {}
    for metrics in parts:
        for name, value in metrics.items():
            merged[name] = max(value, merged.get(name, value)) if "/best/" in name else value
    return dict(sorted(merged.items(), key=lambda item: _block_of(item[0])))


def _block_of(name: str) -> int:
    """The block that a metric belongs to; those of none come after all blocks."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else NUM_BLOCKS + 1


def without_labels(train: Pictures, test: Pictures) -> str | None:
    """Why pictures can't be told apart by labels, as a clause; None if they can."""
    if train.targets is not None:
        return "these pictures show several classes each: take voc07_svm"
    if not train.classes:
        return "these pictures have no labels to learn from"
    return None if (test.labels >= 0).any() else "no picture of the test set has a label"


def shuffled_top(metric: str, test: Pictures, *, num_classes: int, highest: int = 1) -> Sanity:
    """The sanity of an accuracy: the most frequent classes' share, plus four deviations of as many coin tosses.

    Args:
        metric: Its name.
        test: The pictures that are told.
        num_classes: Number of classes.
        highest: Guesses that count, 1 for top-1.
    """
    labels = test.labels[test.labels >= 0]
    counts = np.sort(np.bincount(labels, minlength=num_classes))[::-1]
    chance = float(counts[:highest].sum() / max(1, len(labels)))
    noise = sqrt(chance * (1 - chance) / max(1, len(labels)))
    return Sanity(metric, chance, min(1.0, chance + _DEVIATIONS * noise))


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
