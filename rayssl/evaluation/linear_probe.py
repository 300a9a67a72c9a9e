"""Linear probes: one linear classifier on each block of a frozen encoder, trained in one pass (Goyal et al. 2019)."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from statistics import mean, stdev
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from rayssl.backbones import NUM_BLOCKS, Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.data.loaders import plain_views
from rayssl.errors import RaysslError
from rayssl.evaluation.base import balanced_subset, chance_level, derive_seed
from rayssl.evaluation.features import cache_dtype, extract_features, pool_block, unchanged
from rayssl.schema import Config

_REFERENCE_BATCH = 256
_MILESTONES = (8 / 28, 16 / 28, 24 / 28)
_VIEWS_AT_ONCE = 128


class LinearProbeConfig(Config):
    """Linear classifiers on cached features of B1..B5; the paper's setting for ImageNet but for its random crops."""

    name: Literal["linear_probe"] = "linear_probe"
    blocks: tuple[Annotated[int, Field(ge=1, le=NUM_BLOCKS)], ...] = (1, 2, 3, 4, 5)
    """Blocks that get a classifier."""
    epochs: int = Field(default=28, ge=1)
    """Passes over the training pictures (Goyal et al.: 28 for ImageNet; VISSL: 14 for Places205, 84 for iNat18)."""
    learning_rate: float = Field(default=0.01, gt=0)
    """For a batch of 256; scaled in proportion to `batch_size`."""
    batch_size: int = Field(default=256, ge=2)
    """Pictures a step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """On weights and biases (Goyal et al. for ResNet-50)."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = _MILESTONES
    """Shares of the training after each of which the learning rate falls to a tenth."""
    labels_per_class: int | None = Field(default=None, ge=1)
    """Train on so many pictures of each class, drawn anew for every repetition; None: on all."""
    seeds: int = Field(default=1, ge=1)
    """Repetitions with other initial weights, order and subset; their mean and deviation are given."""
    train_limit: int | None = Field(default=None, ge=2)
    """Most training pictures whose features are computed, a random subset; None: all."""
    feature_cache_gib: float = Field(default=8.0, gt=0)
    """Most memory for features, in GiB; they are kept in float16 if float32 does not fit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.blocks or len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"blocks: must be at least one, each once, got {list(self.blocks)}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: must increase, got {list(self.milestones)}")
        return self

    def evaluate(
        self, encoder: Backbone, train: Pictures, test: Pictures, *, data: DataConfig, seed: int, device: torch.device
    ) -> Iterator[tuple[str, float]]:
        """Cache both sets' features of centre crops, then train and test; see `evaluate_linear_probe`.

        Raises:
            ConfigError: If the features don't fit `feature_cache_gib`.
            RaysslError: If the loss is not finite.
        """
        train_rows = _limited_rows(torch.from_numpy(train.labels), self.train_limit, seed=seed).numpy()
        test_rows = np.flatnonzero(test.labels >= 0)
        blank = torch.zeros(1, 3, data.image_size, data.image_size)
        with unchanged(encoder):
            sizes = extract_features(encoder, [blank], blocks=self.blocks, pool=pool_block, device=device)
            num_features = sum(features.shape[1] for features in sizes.values())
            dtype = cache_dtype(len(train_rows) + len(test_rows), num_features, limit_gib=self.feature_cache_gib)
            train_features, test_features = (
                extract_features(
                    encoder,
                    plain_views(
                        pictures,
                        rows,
                        image_size=data.image_size,
                        eval_resize=data.eval_resize,
                        batch_size=_VIEWS_AT_ONCE,
                        device=device,
                    ),
                    blocks=self.blocks,
                    pool=pool_block,
                    device=device,
                    dtype=dtype,
                    num_images=len(rows),
                )
                for pictures, rows in ((train, train_rows), (test, test_rows))
            )
        yield from evaluate_linear_probe(
            self,
            train_features,
            torch.from_numpy(train.labels[train_rows]),
            test_features,
            torch.from_numpy(test.labels[test_rows]),
            num_classes=len(train.classes),
            seed=seed,
            device=device,
        )

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""
        blocks = ", ".join(f"B{block}" for block in self.blocks)
        limits = [f"at most {self.train_limit:,} pictures"] if self.train_limit else []
        limits += [f"{self.labels_per_class} of each class"] if self.labels_per_class else []
        subset = f" ({', '.join(limits)})" if limits else ""
        repetitions = f", mean of {self.seeds} repetitions" if self.seeds > 1 else ""
        chance = chance_level(torch.from_numpy(test.labels), len(train.classes))
        return (
            f"linear_probe: top-1 of a linear classifier on {blocks}, {self.epochs} epochs at learning rate "
            f"{self.learning_rate:g} on features of centre crops{subset}{repetitions}; {chance:.1%} is chance."
        )


def evaluate_linear_probe(
    config: LinearProbeConfig,
    train_features: Mapping[int, Tensor],
    train_labels: Tensor,
    test_features: Mapping[int, Tensor],
    test_labels: Tensor,
    *,
    num_classes: int,
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
    train = {block: train_features[block] for block in config.blocks}
    results: dict[int, list[float]] = {block: [] for block in config.blocks}
    for repetition in range(config.seeds):
        repetition_seed = derive_seed(seed, repetition)
        heads = fit_linear_heads(
            train,
            train_labels,
            rows=_training_rows(config, train_labels, seed=repetition_seed),
            num_classes=num_classes,
            epochs=config.epochs,
            learning_rate=config.learning_rate * config.batch_size / _REFERENCE_BATCH,
            batch_size=config.batch_size,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            milestones=config.milestones,
            seed=repetition_seed,
            device=device,
        )
        for block, accuracy in top1(heads, {block: test_features[block] for block in train}, test_labels).items():
            results[block].append(accuracy)
    for block, accuracies in results.items():
        yield f"linear_probe/b{block}/top1", mean(accuracies)
        if len(accuracies) > 1:
            yield f"linear_probe/b{block}/top1_std", stdev(accuracies)
    yield "linear_probe/best/top1", max(mean(accuracies) for accuracies in results.values())


def fit_linear_heads(
    train: Mapping[int, Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    epochs: int = 28,
    learning_rate: float = 0.01,
    batch_size: int = _REFERENCE_BATCH,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    milestones: Sequence[float] = _MILESTONES,
    rows: Tensor | None = None,
    seed: int,
    device: torch.device | str,
) -> "LinearHeads":
    """Train a linear head on each block's cached features, all in one pass.

    The losses are added up; as no parameter is shared, every head is trained as if alone. For one seed, device and
    number of threads the result is the same. An epoch is cut into batches of nearly equal size, none above
    `batch_size`, so no picture is dropped and none is alone.

    Args:
        train: Block -> (N, F), any floating-point type (converted batch by batch) and any device.
        labels: (N,) in 0..num_classes - 1 for all rows that are used.
        num_classes: Number of classes.
        epochs: Passes over the pictures.
        learning_rate: Of SGD, as it stands: not scaled by the batch size.
        batch_size: Most pictures a step, at least 2.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: On weights and biases.
        milestones: Shares of all steps, in (0, 1), after which the learning rate falls to a tenth.
        rows: Indices of the pictures to train on, (M,); None: all.
        seed: Decides initial weights and order.
        device: Where the heads are trained and stay.

    Returns:
        The heads, in train mode.

    Raises:
        ValueError: If there are fewer than two pictures, a label is out of range, or numbers of rows differ.
        RaysslError: If the loss is not finite.
    """
    rows = torch.arange(len(labels)) if rows is None else rows.cpu()
    _check_training_data(train, labels, rows, num_classes)
    store = next(iter(train.values())).device
    labels = labels.to(store)
    heads = LinearHeads({block: features.shape[1] for block, features in train.items()}, num_classes, seed=seed)
    heads.to(device)
    optimizer = torch.optim.SGD(
        heads.parameters(), learning_rate, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
    )
    num_batches = ceil(len(rows) / batch_size)
    drops = [round(share * epochs * num_batches) for share in milestones]
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator)].to(store)
        for batch, chosen in enumerate(order.tensor_split(num_batches)):
            step = epoch * num_batches + batch
            optimizer.param_groups[0]["lr"] = learning_rate * 0.1 ** bisect_right(drops, step)
            targets = labels[chosen].to(device)
            logits = heads(_select(train, chosen, device))
            losses = torch.stack([functional.cross_entropy(block_logits, targets) for block_logits in logits.values()])
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        # A value that is not finite never leaves the weights, so one look an epoch finds it.
        if not losses.isfinite().all():
            bad = ", ".join(f"B{block}" for block, loss in zip(logits, losses, strict=True) if not loss.isfinite())
            raise RaysslError(
                f"linear probe: the loss of {bad} is not finite in epoch {epoch + 1} at learning rate "
                f"{learning_rate:g}. Either the encoder's features are not finite, or the learning rate is too high."
            )
    return heads


def top1(
    heads: "LinearHeads", features: Mapping[int, Tensor], labels: Tensor, *, batch_size: int = 1024
) -> dict[int, float]:
    """Accuracy of each head, tested in batches; the heads' mode is restored.

    Args:
        heads: Trained heads of at least these blocks.
        features: Block -> (N, F).
        labels: (N,); pictures with -1 are left out.
        batch_size: Pictures at a time.

    Returns:
        Block -> share of pictures told rightly, in [0, 1].

    Raises:
        ValueError: If no picture has a label.
    """
    store = next(iter(features.values())).device
    device = next(heads.parameters()).device
    labels = labels.to(store)
    rows = (labels >= 0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("labels: must name the class of at least one picture")
    num_correct = dict.fromkeys(features, 0)
    training = heads.training
    heads.eval()
    with torch.inference_mode():
        for chosen in rows.split(batch_size):
            targets = labels[chosen].to(device)
            for block, logits in heads(_select(features, chosen, device)).items():
                num_correct[block] += int((logits.argmax(dim=1) == targets).sum())
    heads.train(training)
    return {block: correct / len(rows) for block, correct in num_correct.items()}


class LinearHeads(nn.Module):
    """A normalisation without parameters and a linear classifier for each block (Goyal et al. 2019).

    Each feature is normalised by its own mean and deviation, where Goyal et al. share them among the cells of a
    channel. In eval mode these are averages over all training batches, each counting the same: the features of
    a frozen encoder don't drift, so nothing speaks for forgetting the early ones.

    Args:
        feature_dims: Block -> number of features.
        num_classes: Number of classes.
        seed: Decides the weights, N(0, 0.01), each block's by itself; biases are 0. torch's global generator is not
            touched.
    """

    def __init__(self, feature_dims: Mapping[int, int], num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        for block, dim in feature_dims.items():
            linear = nn.utils.skip_init(nn.Linear, dim, num_classes)
            nn.init.normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(derive_seed(seed, block)))
            nn.init.zeros_(linear.bias)
            norm = nn.BatchNorm1d(dim, affine=False, momentum=None)
            self.heads[f"b{block}"] = nn.Sequential(OrderedDict(norm=norm, linear=linear))

    def forward(self, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Logits (N, num_classes) of the blocks whose features (N, F) are given."""
        return {block: self.heads[f"b{block}"](block_features) for block, block_features in features.items()}


def _select(features: Mapping[int, Tensor], chosen: Tensor, device: torch.device | str) -> dict[int, Tensor]:
    """Rows of each block's features, as float32 on the heads' device."""
    return {
        block: whole[chosen.to(whole.device)].to(device, torch.float32, non_blocking=True)
        for block, whole in features.items()
    }


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


def _check_training_data(train: Mapping[int, Tensor], labels: Tensor, rows: Tensor, num_classes: int) -> None:
    if len(rows) < 2:
        raise ValueError(f"labels: must be those of at least two pictures, got {len(rows)}")
    for block, features in train.items():
        if len(features) != len(labels):
            raise ValueError(f"train: block {block} has {len(features)} rows for {len(labels)} labels")
    used = labels.cpu()[rows]
    if used.min() < 0 or used.max() >= num_classes:
        raise ValueError(f"labels: must be 0..{num_classes - 1}, got {int(used.min())}..{int(used.max())}")
