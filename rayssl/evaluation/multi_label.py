"""What evaluations of pictures with several classes share: features of whole pictures, classes that can be told."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.clustering.rows import Group, Workers
from rayssl.data import DataConfig, Pictures
from rayssl.evaluation.average_precision import average_precisions
from rayssl.evaluation.base import BlockEvaluation, Sanity
from rayssl.evaluation.feature_kinds import GoyalPool, WholeViews
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import MOST_FEATURES, unchanged
from rayssl.evaluation.linear_svm import l2_normalize
from rayssl.evaluation.svm_rows import own_share

_DRAWS = 50
_DEVIATIONS = 5
"""Standard deviations of a random ranking's mean AP that are still noise."""


class MultiLabelEvaluation(BlockEvaluation):
    """What both SVM protocols have in common."""

    difficult: Literal["negative", "drop"] = "negative"
    """Training pictures in which a class has difficult objects only: negatives, as in the reference code, or left out.
    In the test they are always left out."""
    max_features: int = Field(default=MOST_FEATURES, ge=1)
    """Most features of a block: its map is averaged to so many, but for one cell at least (Goyal et al.: 9216)."""
    feature_cache_gib: float = Field(default=8.0, gt=0)
    """Most memory for features, in GiB, of all workers together; they are kept in float16 if float32 does not fit."""

    @property
    def least_rows(self) -> tuple[int, int]:
        """Positives and negatives that a class needs among the training pictures."""
        return 1, 1

    def parts(self, count: int) -> tuple[Self, ...]:
        """Itself: several workers share its pictures, not its blocks."""
        return (self,)

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
        """Do as `evaluate_shared`, in this process alone."""
        return self.evaluate_shared(
            encoder, train, test, data=data, seed=seed, device=device, features=features, group=None
        )

    @abstractmethod
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
        """See `SharedEvaluation`."""

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """Why these pictures can't be measured, as a clause; None if they can."""
        if train.targets is None or test.targets is None:
            return "it needs pictures with several classes each, such as data.name=voc2007 with its annotations"
        if not self.told_classes(train, test).indices:
            positives, negatives = self.least_rows
            return (
                f"no class has {positives} positive and {negatives} negative training pictures and a test picture that "
                "shows it"
            )
        return None

    def told_classes(self, train: Pictures, test: Pictures) -> "ToldClasses":
        """The classes that can be learned and told, and the others."""
        assert train.targets is not None
        assert test.targets is not None
        learned, told = self.train_targets(train), test.targets.values
        positives, negatives = self.least_rows
        fits = ((learned == 1).sum(0) >= positives) & ((learned == -1).sum(0) >= negatives) & (told == 1).any(0)
        names = train.targets.classes
        return ToldClasses(
            tuple(np.flatnonzero(fits).tolist()), tuple(name for name, fit in zip(names, fits, strict=True) if not fit)
        )

    def own_targets(
        self, train: Pictures, test: Pictures, *, group: Group, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Targets of this worker's pictures for the classes that are told, int8 (N_r, C) and (M_r, C)."""
        assert test.targets is not None
        classes = list(self.told_classes(train, test).indices)
        both = self.train_targets(train)[:, classes], test.targets.values[:, classes]
        learned, told = (torch.from_numpy(side[own_share(len(side), group)].copy()).to(device) for side in both)
        return learned, told

    def train_targets(self, train: Pictures) -> np.ndarray:
        """int8 (N, C): 1, -1, or 0 for rows that a class ignores."""
        assert train.targets is not None
        values = train.targets.values
        return np.where(values == 0, -1, values).astype(np.int8) if self.difficult == "negative" else values

    def features_of(
        self,
        encoder: Backbone,
        train: Pictures,
        test: Pictures,
        *,
        data: DataConfig,
        device: torch.device,
        features: FeatureStore,
        group: Group = None,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each block with the L2-normalised features of this worker's pictures of both sets, (N_r, F) and (M_r, F).

        A worker computes those of its pictures alone. Only those of the current block are copied into this process, if
        the caller drops them before the next.
        """
        with unchanged(encoder):
            both = features.extract(
                encoder,
                [(pictures, np.arange(len(pictures))[own_share(len(pictures), group)]) for pictures in (train, test)],
                views=WholeViews(data.image_size),
                blocks=self.blocks,
                pool=GoyalPool(self.max_features),
                memory_gib=self.feature_cache_gib,
                rows_of_all=len(train) + len(test),
                device=device,
            )
        for block in self.blocks:
            yield block, _normalized(both[0].pop(block)), _normalized(both[1].pop(block))

    def shuffled_map(self, metric: str, train: Pictures, test: Pictures) -> Sanity:
        """The sanity of a mean average precision: what random rankings reach."""
        assert test.targets is not None
        told = test.targets.values[:, list(self.told_classes(train, test).indices)]
        draws = random_average_precision(told)
        return Sanity(metric, float(draws.mean()), float(draws.mean() + _DEVIATIONS * draws.std()))

    def data_sentence(self, train: Pictures, test: Pictures) -> str:
        """How many pictures and classes there are, which are left out, and the level of chance."""
        assert test.targets is not None
        classes = self.told_classes(train, test)
        chance = random_average_precision(test.targets.values[:, list(classes.indices)]).mean()
        left_out = f", without {', '.join(classes.left_out)} (too few pictures)" if classes.left_out else ""
        return (
            f"{len(classes.indices)} classes{left_out}, {len(train):,} training pictures; difficult ones are "
            f"{'negatives' if self.difficult == 'negative' else 'left out'} in training and left out in the test; "
            f"{chance:.1%} is chance"
        )


def fitting_group(train: Pictures, test: Pictures, group: Group) -> Group:
    """The group, or none if a worker would be left without a picture: each then measures all of the few."""
    return group if min(len(train), len(test)) >= Workers(group).size else None


@dataclass(frozen=True)
class ToldClasses:
    """Which classes can be learned and told."""

    indices: tuple[int, ...]
    """Their numbers."""
    left_out: tuple[str, ...]
    """Names of the others."""


def random_average_precision(targets: np.ndarray) -> np.ndarray:
    """Mean average precisions of 50 random rankings of targets (N, C); a class ignores its rows with 0."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.from_numpy(column[column != 0]) for column in targets.T]
    draws = [
        average_precisions(torch.rand(len(column), _DRAWS, generator=generator, dtype=torch.float64), column)
        for column in columns
    ]
    return torch.stack(draws).nanmean(0).numpy()


def _normalized(features: Tensor) -> Tensor:
    """In place: of a copy-on-write map this makes the process's own copy."""
    return l2_normalize(features, out=features)
