"""What evaluations of pictures with several classes share: features of whole pictures, classes that can be told."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.evaluation.average_precision import average_precisions
from rayssl.evaluation.base import BlockEvaluation, Sanity
from rayssl.evaluation.feature_kinds import GoyalPool, WholeViews
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import MOST_FEATURES, unchanged
from rayssl.evaluation.linear_svm import l2_normalize

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
    """Most memory for features, in GiB; they are kept in float16 if float32 does not fit."""

    @property
    def least_rows(self) -> tuple[int, int]:
        """Positives and negatives that a class needs among the training pictures."""
        return 1, 1

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
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each block with its L2-normalised features of both sets, (N, F) and (M, F).

        Only those of the current block are copied into this process, if the caller drops them before the next.
        """
        with unchanged(encoder):
            both = features.extract(
                encoder,
                [(pictures, np.arange(len(pictures))) for pictures in (train, test)],
                views=WholeViews(data.image_size),
                blocks=self.blocks,
                pool=GoyalPool(self.max_features),
                memory_gib=self.feature_cache_gib,
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
