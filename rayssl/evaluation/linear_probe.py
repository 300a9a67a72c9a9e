"""Linear probes: one linear classifier on each block of a frozen encoder, trained in one pass (Goyal et al. 2019)."""

from collections.abc import Iterator, Mapping
from statistics import mean, stdev
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.data.loaders import plain_views
from rayssl.evaluation.augmented_heads import fit_augmented_heads, streamed_top1
from rayssl.evaluation.base import (
    BlockEvaluation,
    Sanity,
    balanced_subset,
    chance_level,
    derive_seed,
    shuffled_top,
    without_labels,
)
from rayssl.evaluation.feature_kinds import CenterViews, GoyalPool, MeanPool
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import MOST_FEATURES, unchanged
from rayssl.evaluation.linear_heads import MILESTONES, REFERENCE_BATCH, BatchNorm, fit_linear_heads, top1

_VIEWS_AT_ONCE = 128
_DIALECTS: dict[str, dict[str, Any]] = {
    "goyal": {},
    "vissl": {"weight_decay": 5e-4, "batchnorm": "affine"},
    "moco": {
        "blocks": (5,),
        "max_features": 1,
        "batchnorm": "none",
        "epochs": 100,
        "learning_rate": 30.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "milestones": (0.6, 0.8),
    },
}
"""What a dialect sets where the recipe says nothing."""


class LinearProbeConfig(BlockEvaluation):
    """Linear classifiers on the frozen blocks B1..B5; the paper's settings for ImageNet."""

    name: Literal["linear_probe"] = "linear_probe"
    dialect: Literal["goyal", "vissl", "moco"] = "goyal"
    """Whose settings fill in what the recipe leaves out. goyal: those below (PSL); vissl: weight decay 5e-4 and learned
    scale and shift; moco: the last map's average, learning rate 30 for 100 epochs, no decay, no normalisation."""
    views: Literal["center", "augmented"] = "center"
    """augmented: a random resized crop and flip in each epoch, each time through the encoder, as in the papers; center:
    the features of centre crops, computed once."""
    epochs: int = Field(default=28, ge=1)
    """Passes over the training pictures (Goyal et al.: 28 for ImageNet; VISSL: 14 for Places205, 84 for iNat18)."""
    learning_rate: float = Field(default=0.01, gt=0)
    """For a batch of 256; scaled in proportion to `batch_size`."""
    batch_size: int = Field(default=256, ge=2)
    """Pictures a step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    batchnorm: BatchNorm = "plain"
    """Normalisation of the features, without (plain) or with (affine) learned scale and shift, or none."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """On weights and biases (Goyal et al. for ResNet-50)."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = MILESTONES
    """Shares of the training after each of which the learning rate falls to a tenth."""
    labels_per_class: int | None = Field(default=None, ge=1)
    """Train on so many pictures of each class, drawn anew for every repetition; None: on all."""
    seeds: int = Field(default=1, ge=1)
    """Repetitions with other initial weights, order and subset; their mean and deviation are given."""
    train_limit: int | None = Field(default=None, ge=2)
    """Most training pictures whose features are computed, a random subset; None: all."""
    max_features: int = Field(default=MOST_FEATURES, ge=1)
    """Most features of a block: its map is averaged to so many, but for one cell at least (Goyal et al.: 9216)."""
    feature_cache_gib: float = Field(default=8.0, gt=0)
    """Most memory for features, in GiB; they are kept in float16 if float32 does not fit."""

    @model_validator(mode="after")
    def _speak_dialect(self) -> Self:
        # A validator that runs before would have pydantic check the rest as Python, where lists are no tuples.
        said = self.model_fields_set
        self.__dict__.update({key: value for key, value in _DIALECTS[self.dialect].items() if key not in said})
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: must increase, got {list(self.milestones)}")
        return self

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
        """Train and test the classifiers, on cached features or on new views in each epoch.

        For the metrics see `evaluate_linear_probe`.

        Raises:
            ConfigError: If the features don't fit `feature_cache_gib`.
            RaysslError: If the loss is not finite.
        """
        if self.views == "augmented":
            with unchanged(encoder):
                results = self._evaluate_augmented(encoder, train, test, data=data, seed=seed, device=device)
            yield from _summarize(results)
            return
        train_rows = _limited_rows(torch.from_numpy(train.labels), self.train_limit, seed=seed).numpy()
        test_rows = np.flatnonzero(test.labels >= 0)
        with unchanged(encoder):
            train_features, test_features = features.extract(
                encoder,
                ((train, train_rows), (test, test_rows)),
                views=CenterViews(data.image_size, data.eval_resize),
                blocks=self.blocks,
                pool=GoyalPool(self.max_features),
                also=(MeanPool(),),  # what nearest neighbours ask for: a tenth of the size, at no cost in this pass
                memory_gib=self.feature_cache_gib,
                device=device,
            )
        yield from evaluate_linear_probe(
            self,
            train_features,
            torch.from_numpy(train.labels[train_rows]),
            test_features,
            torch.from_numpy(test.labels[test_rows]),
            num_classes=len(train.classes),
            channels={block: encoder.block_channels[block - 1] for block in self.blocks},
            seed=seed,
            device=device,
        )

    def _evaluate_augmented(
        self, encoder: Backbone, train: Pictures, test: Pictures, *, data: DataConfig, seed: int, device: torch.device
    ) -> dict[int, list[float]]:
        """Accuracies of each block, one a repetition."""
        labels = torch.from_numpy(train.labels)
        pool = GoyalPool(self.max_features)
        test_rows = np.flatnonzero(test.labels >= 0)
        results: dict[int, list[float]] = {block: [] for block in self.blocks}
        for repetition in range(self.seeds):
            repetition_seed = derive_seed(seed, repetition)
            heads = fit_augmented_heads(
                encoder,
                train,
                _training_rows(self, labels, seed=repetition_seed).numpy(),
                blocks=self.blocks,
                pool=pool,
                image_size=data.image_size,
                epochs=self.epochs,
                learning_rate=self.learning_rate * self.batch_size / REFERENCE_BATCH,
                batch_size=self.batch_size,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                milestones=self.milestones,
                batchnorm=self.batchnorm,
                seed=repetition_seed,
                device=device,
            )
            views = plain_views(
                test,
                test_rows,
                image_size=data.image_size,
                eval_resize=data.eval_resize,
                batch_size=_VIEWS_AT_ONCE,
                device=device,
            )
            accuracies = streamed_top1(
                encoder, heads, views, torch.from_numpy(test.labels[test_rows]), blocks=self.blocks, pool=pool
            )
            for block, accuracy in accuracies.items():
                results[block].append(accuracy)
        return results

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """Why these pictures can't be measured, as a clause; None if they can."""
        return without_labels(train, test)

    def sanity(self, train: Pictures, test: Pictures) -> Sanity:
        """What a measurement with shuffled labels must not exceed."""
        return shuffled_top(f"{self.name}/best/top1", test, num_classes=len(train.classes))

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""
        blocks = ", ".join(f"B{block}" for block in self.blocks)
        limits = [f"at most {self.train_limit:,} pictures"] if self.train_limit else []
        limits += [f"{self.labels_per_class} of each class"] if self.labels_per_class else []
        subset = f" ({', '.join(limits)})" if limits else ""
        repetitions = f", mean of {self.seeds} repetitions" if self.seeds > 1 else ""
        chance = chance_level(torch.from_numpy(test.labels), len(train.classes))
        dialect = f", dialect {self.dialect}" if self.dialect != "goyal" else ""
        return (
            f"linear_probe: top-1 of a linear classifier on {blocks}, {self.epochs} epochs at learning rate "
            f"{self.learning_rate:g} on at most {self.max_features:,} features of "
            f"{'centre crops' if self.views == 'center' else 'random crops'}{dialect}{subset}{repetitions}; "
            f"{chance:.1%} is chance."
        )


def evaluate_linear_probe(
    config: LinearProbeConfig,
    train_features: Mapping[int, Tensor],
    train_labels: Tensor,
    test_features: Mapping[int, Tensor],
    test_labels: Tensor,
    *,
    num_classes: int,
    channels: Mapping[int, int] | None = None,
    seed: int,
    device: torch.device | str,
) -> Iterator[tuple[str, float]]:
    """Train the heads on one set of features and test them on another.

    Args:
        config: The settings.
        train_features: Block -> (N, F); at least `config.blocks`.
        train_labels: (N,) in 0..num_classes - 1; pictures with -1 are left out.
        test_features: Block -> (M, F).
        test_labels: (M,); pictures with -1 are left out.
        num_classes: Number of classes.
        channels: Block -> channels of its map, for the normalisation; None: each feature by itself.
        seed: Decides initial weights, order and subset.
        device: Where the heads are trained.

    Yields:
        `linear_probe/b3/top1` for each block, the mean over `config.seeds`, in [0, 1]; `linear_probe/b3/top1_std`, the
        sample deviation over them, if there are several; and `linear_probe/best/top1`, the highest of the means. That
        block is chosen on the test set, as the papers do, which flatters it a little.

    Raises:
        ValueError: If a block has no features, or no picture has a label.
        RaysslError: If the loss is not finite.
    """
    if missing := set(config.blocks) - (train_features.keys() & test_features.keys()):
        raise ValueError(f"blocks: there are no features of {sorted(missing)}")
    train = _near({block: train_features[block] for block in config.blocks}, torch.device(device))
    results: dict[int, list[float]] = {block: [] for block in config.blocks}
    for repetition in range(config.seeds):
        repetition_seed = derive_seed(seed, repetition)
        heads = fit_linear_heads(
            train,
            train_labels,
            rows=_training_rows(config, train_labels, seed=repetition_seed),
            num_classes=num_classes,
            channels=channels,
            epochs=config.epochs,
            learning_rate=config.learning_rate * config.batch_size / REFERENCE_BATCH,
            batch_size=config.batch_size,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            milestones=config.milestones,
            batchnorm=config.batchnorm,
            seed=repetition_seed,
            device=device,
        )
        for block, accuracy in top1(heads, {block: test_features[block] for block in train}, test_labels).items():
            results[block].append(accuracy)
    yield from _summarize(results)


def _near(features: dict[int, Tensor], device: torch.device) -> dict[int, Tensor]:
    """The features, on a GPU that has room for them twice: from the CPU every step would wait for its batch's way."""
    if device.type != "cuda":
        return features
    room, _ = torch.cuda.mem_get_info(device)
    if sum(each.nbytes for each in features.values()) > room / 2:
        return features
    return {block: each.to(device) for block, each in features.items()}


def _summarize(results: Mapping[int, list[float]]) -> Iterator[tuple[str, float]]:
    """Metrics of the accuracies of each block, one a repetition."""
    for block, accuracies in results.items():
        yield f"linear_probe/b{block}/top1", mean(accuracies)
        if len(accuracies) > 1:
            yield f"linear_probe/b{block}/top1_std", stdev(accuracies)
    yield "linear_probe/best/top1", max(mean(accuracies) for accuracies in results.values())


def _training_rows(config: LinearProbeConfig, labels: Tensor, *, seed: int) -> Tensor:
    """Indices of the pictures that a repetition trains on."""
    if config.labels_per_class is None:
        return _limited_rows(labels, config.train_limit, seed=seed)
    rows = balanced_subset(labels, config.labels_per_class, seed=seed)
    return rows[_limited_rows(labels[rows], config.train_limit, seed=seed)]


def _limited_rows(labels: Tensor, limit: int | None, *, seed: int) -> Tensor:
    """Indices of labelled pictures, ascending: all, or a random `limit` of them."""
    rows = (labels >= 0).nonzero().flatten()
    if limit is None or len(rows) <= limit:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:limit]
    return rows[chosen.sort().values]
