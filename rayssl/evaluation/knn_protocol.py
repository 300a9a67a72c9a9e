"""Nearest neighbours on every block's averaged features, as an evaluation."""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.evaluation.base import BlockEvaluation, Sanity, chance_level, shuffled_top, without_labels
from rayssl.evaluation.feature_kinds import CenterViews, MeanPool
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import unchanged
from rayssl.evaluation.knn import knn_top1


class KnnConfig(BlockEvaluation):
    """A weighted vote of the most similar training pictures; nothing is trained (Wu et al. 2018)."""

    name: Literal["knn"] = "knn"
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(20, 200), min_length=1)
    """Numbers of neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """Divides the cosine similarities; small values listen to the nearest alone."""

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
        """Yield `knn/b3/k20/top1` for each block, its map averaged over the cells, and `knn/best/k20/top1`."""
        rows = [np.flatnonzero(pictures.labels >= 0) for pictures in (train, test)]
        with unchanged(encoder):
            train_features, test_features = features.extract(
                encoder,
                ((train, rows[0]), (test, rows[1])),
                views=CenterViews(data.image_size, data.eval_resize),
                blocks=self.blocks,
                pool=MeanPool(),
                device=device,
            )
        best = dict.fromkeys(self.k, 0.0)
        for block in self.blocks:
            accuracies = knn_top1(
                train_features[block].to(device),
                torch.from_numpy(train.labels[rows[0]]),
                test_features[block],
                torch.from_numpy(test.labels[rows[1]]),
                k=self.k,
                temperature=self.temperature,
                num_classes=len(train.classes),
            )
            for k, accuracy in accuracies.items():
                yield f"knn/b{block}/k{k}/top1", accuracy
                best[k] = max(best[k], accuracy)
        for k, accuracy in best.items():
            yield f"knn/best/k{k}/top1", accuracy

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """Why these pictures can't be measured, as a clause; None if they can."""
        return without_labels(train, test)

    def sanity(self, train: Pictures, test: Pictures) -> Sanity:
        """What a measurement with shuffled labels must not exceed."""
        return shuffled_top(f"knn/best/k{max(self.k)}/top1", test, num_classes=len(train.classes))

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""
        chance = chance_level(torch.from_numpy(test.labels), len(train.classes))
        return (
            f"knn: top-1 of a vote of {' or '.join(map(str, self.k))} neighbours among {len(train):,} pictures, cosine "
            f"of averaged features, temperature {self.temperature:g}; {chance:.1%} is chance."
        )
