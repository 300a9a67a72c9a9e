"""What is measured while a run trains: linear heads and kNN on a labelled split, and signs of collapse."""

from collections.abc import Mapping
from math import floor, sqrt

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from rayssl.backbones import Backbone
from rayssl.data import DataConfig
from rayssl.data.images import Pictures
from rayssl.data.loaders import plain_views
from rayssl.evaluation.base import balanced_subset
from rayssl.evaluation.features import extract_features, feature_statistics
from rayssl.evaluation.knn import knn_top1
from rayssl.evaluation.linear_probe import fit_linear_heads, top1
from rayssl.runtime import Runtime
from rayssl.schema import Config

_FEATURES = 1024
"""Most features of a block that an online probe sees, a ninth of the full probe's: cheap enough to leave on."""
_NEIGHBOURS = (20, 200)


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
    """Measures an encoder at the end of an epoch, each worker a share of the pictures and of the blocks.

    Args:
        config: What to measure.
        train: Labelled pictures to learn from, or unlabelled ones (then only `feature/...` is measured).
        held_out: Labelled pictures to tell, never trained on; None measures no accuracy.
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
        self._train = train
        self._held_out = held_out
        labelled = bool(train.classes) and held_out is not None and bool((held_out.labels >= 0).any())
        self._told = None if not labelled else held_out
        self._train_indices = _subset(train, config.images, seed) if labelled else np.arange(0)
        shown = held_out if held_out is not None else train
        self._shown = shown
        self._shown_indices = _subset(shown, config.images // 2, seed)

    def measure(self, encoder: Backbone, last_block: int) -> dict[str, float]:
        """Measure blocks B1..`last_block`; accuracies in [0, 1]. The encoder is left as it was."""
        blocks = range(1, last_block + 1)
        shown, pooled_shown = self._features(encoder, self._shown, self._shown_indices, blocks)
        metrics = {f"feature/{name}": value for name, value in feature_statistics(pooled_shown).items()}
        if self._told is None or not (self._config.probe or self._config.knn):
            return metrics
        train, pooled_train = self._features(encoder, self._train, self._train_indices, blocks)
        train_labels = torch.from_numpy(self._train.labels[self._train_indices])
        labels = torch.from_numpy(self._told.labels[self._shown_indices])
        num_classes = len(self._train.classes)
        if self._config.probe:

            def probe(block: int) -> float:
                heads = fit_linear_heads(
                    {block: train[block]},
                    train_labels,
                    num_classes=num_classes,
                    seed=self._seed,
                    device=self._runtime.device,
                )
                return top1(heads, {block: shown[block]}, labels)[block]

            accuracies = self._runtime.map(probe, list(blocks))
            metrics |= {f"probe/b{block}/top1": accuracy for block, accuracy in zip(blocks, accuracies, strict=True)}
            metrics["probe/best/top1"] = max(accuracies)
        if self._config.knn:
            told = knn_top1(pooled_train, train_labels, pooled_shown, labels, k=_NEIGHBOURS, num_classes=num_classes)
            metrics |= {f"knn/k{k}/top1": accuracy for k, accuracy in told.items()}
        return metrics

    def _features(
        self, encoder: Backbone, pictures: Pictures, indices: np.ndarray, blocks: range
    ) -> tuple[Mapping[int, Tensor], Tensor]:
        """Pooled maps of each block, of all workers' shares in order, and the last block's average over its cells."""
        runtime = self._runtime
        mine = np.array_split(indices, runtime.world_size)[runtime.rank]
        views = plain_views(
            pictures,
            mine,
            image_size=self._data.image_size,
            eval_resize=self._data.eval_resize,
            batch_size=250,
            device=runtime.device,
        )

        def pool(feature_map: Tensor, block: int) -> Tensor:
            side = max(1, min(floor(sqrt(_FEATURES / feature_map.shape[1])), feature_map.shape[-1]))
            return functional.adaptive_avg_pool2d(feature_map, side).flatten(1)

        features = extract_features(encoder, views, blocks=blocks, pool=pool, device=runtime.device)
        shares = runtime.gather(features)
        whole = {block: torch.cat([share[block] for share in shares]) for block in blocks}
        channels = encoder.block_channels[blocks[-1] - 1]
        last = whole[blocks[-1]]
        return whole, last.view(len(last), channels, -1).mean(2)


def _subset(pictures: Pictures, count: int, seed: int) -> np.ndarray:
    """At most `count` pictures, as many of each class where there are labels."""
    if pictures.classes:
        return np.sort(
            np.asarray(
                balanced_subset(torch.from_numpy(pictures.labels), max(1, count // len(pictures.classes)), seed=seed)
            )
        )
    return np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int)
