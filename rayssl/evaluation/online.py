"""What is measured while a run trains: linear heads and kNN on a labelled split, and signs of collapse."""

from functools import partial

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.data.loaders import plain_views
from rayssl.evaluation.base import balanced_subset
from rayssl.evaluation.features import extract_features, feature_statistics, pool_block
from rayssl.evaluation.knn import knn_top1
from rayssl.evaluation.linear_heads import fit_linear_heads, top1
from rayssl.runtime import Runtime
from rayssl.schema import Config

_FEATURES = 1024
"""Most features of a block that an online probe sees, a ninth of the full probe's: cheap enough to leave on."""
_NEIGHBOURS = (20, 200)
_VIEWS_AT_ONCE = 250


class OnlineConfig(Config):
    """Measurements during pre-training; their accuracies are what a search maximises. They need labels."""

    probe: bool = True
    """Linear heads on B1 up to the stage's last block: probe/b3/top1, ..., and probe/best/top1."""
    knn: bool = True
    """Nearest neighbours (cosine, k = 20 and 200) on the stage's last block: knn/k20/top1, knn/k200/top1."""
    every: int = Field(default=1, ge=1)
    """Epochs between measurements; a stage's last epoch is always measured."""
    images: int = Field(default=2000, ge=20)
    """Labelled training pictures that they learn from, as many of each class; half as many held-out ones are told."""


class OnlineEvaluation:
    """Measures an encoder at the end of an epoch; each worker takes a share of the pictures and of the blocks.

    Without labels, or without pictures held out, only `feature/...` is measured.

    Args:
        config: What to measure.
        train: Pictures to learn from.
        held_out: Pictures to tell, never trained on; None: none were held out.
        data: For the size of the views.
        seed: The run's seed.
        runtime: The worker group.
    """

    def __init__(
        self,
        config: OnlineConfig,
        train: Pictures,
        held_out: Pictures | None,
        *,
        data: DataConfig,
        seed: int,
        runtime: Runtime,
    ) -> None:
        self._config = config
        self._data = data
        self._seed = seed
        self._runtime = runtime
        self._has_labels = bool(train.classes) and held_out is not None and bool((held_out.labels >= 0).any())
        self._train = train
        self._train_rows = _subset(train, config.images, seed=seed)
        self._told = train if held_out is None else held_out
        self._told_rows = _subset(self._told, config.images // 2, seed=seed)

    def measure(self, encoder: Backbone, last_block: int) -> dict[str, float]:
        """Measure blocks B1..`last_block`; accuracies in [0, 1]. The encoder is left as it was.

        Returns:
            `feature/std` and `feature/effective_rank` of the last block (see `feature_statistics`), and what the
            config asks for.
        """
        told = self._features(encoder, self._told, self._told_rows, last_block)
        pooled_told = _average(told[last_block], encoder, last_block)
        metrics = {f"feature/{name}": value for name, value in feature_statistics(pooled_told).items()}
        if not self._has_labels or not (self._config.probe or self._config.knn):
            return metrics
        train = self._features(encoder, self._train, self._train_rows, last_block)
        train_labels = torch.from_numpy(self._train.labels[self._train_rows])
        told_labels = torch.from_numpy(self._told.labels[self._told_rows])
        num_classes = len(self._train.classes)
        device = self._runtime.device

        def probe(block: int) -> float:
            heads = fit_linear_heads(
                {block: train[block].to(device)},  # some megabytes: there at once, not batch by batch
                train_labels,
                num_classes=num_classes,
                channels={block: encoder.block_channels[block - 1]},
                seed=self._seed,
                device=device,
            )
            return top1(heads, {block: told[block].to(device)}, told_labels)[block]

        if self._config.probe:
            blocks = list(train)
            accuracies = self._runtime.map(probe, blocks)
            metrics |= {f"probe/b{block}/top1": accuracy for block, accuracy in zip(blocks, accuracies, strict=True)}
            metrics["probe/best/top1"] = max(accuracies)
        if self._config.knn:
            pooled_train = _average(train[last_block], encoder, last_block)
            neighbours = knn_top1(
                pooled_train.to(device),
                train_labels,
                pooled_told.to(device),
                told_labels,
                k=_NEIGHBOURS,
                num_classes=num_classes,
            )
            metrics |= {f"knn/k{k}/top1": accuracy for k, accuracy in neighbours.items()}
        return metrics

    def _features(self, encoder: Backbone, pictures: Pictures, rows: np.ndarray, last_block: int) -> dict[int, Tensor]:
        """Block -> pooled map (N, F) of all rows, in order, gathered from the workers."""
        mine = np.array_split(rows, self._runtime.world_size)[self._runtime.rank]
        views = plain_views(
            pictures,
            mine,
            image_size=self._data.image_size,
            eval_resize=self._data.eval_resize,
            batch_size=_VIEWS_AT_ONCE,
            device=self._runtime.device,
        )
        blocks = range(1, last_block + 1)
        pool = partial(pool_block, max_features=_FEATURES)
        features: dict[int, Tensor] = {}
        if len(mine):  # there may be more workers than pictures
            features = extract_features(encoder, views, blocks=blocks, pool=pool, device=self._runtime.device)
        shares = [share for share in self._runtime.gather(features) if share]
        return {block: torch.cat([share[block] for share in shares]) for block in blocks}


def _average(features: Tensor, encoder: Backbone, block: int) -> Tensor:
    """Average over the cells that are left: (N, C)."""
    return features.unflatten(1, (encoder.block_channels[block - 1], -1)).mean(2)


def _subset(pictures: Pictures, count: int, *, seed: int) -> np.ndarray:
    """Rows of at most `count` pictures, as many of each class where there are labels."""
    if not pictures.classes:
        return np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int)
    per_class = max(1, count // len(pictures.classes))
    return balanced_subset(torch.from_numpy(pictures.labels), per_class, seed=seed).numpy()
