"""Semi-supervised classification: a copy of the encoder fine-tuned on a few labels (PSL, Table 7)."""

import copy
from bisect import bisect_right
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.data.loaders import plain_views
from rayssl.errors import RaysslError
from rayssl.evaluation.augmented_heads import augmented_batches, steps_an_epoch
from rayssl.evaluation.base import Sanity, balanced_subset, chance_level, shuffled_top, without_labels
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.features import unchanged
from rayssl.evaluation.linear_heads import REFERENCE_BATCH
from rayssl.schema import Config

_VIEWS_AT_ONCE = 128
_TOP = 5


class SemiSupervisedConfig(Config):
    """The whole network fine-tuned on a small, class-balanced share of the labels, and a new classifier with it."""

    name: Literal["semi_supervised"] = "semi_supervised"
    fraction: float = Field(default=0.01, gt=0, le=1)
    """Share of the training pictures whose labels are used, as many of each class (the paper: .01 and .1)."""
    epochs: int = Field(default=70, ge=1)
    """Passes over those pictures."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Of network and classifier, for a batch of 256; scaled in proportion to `batch_size`."""
    batch_size: int = Field(default=256, ge=2)
    """Pictures a step."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov momentum of SGD."""
    weight_decay: float = Field(default=0.0, ge=0)
    """On all weights."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (30 / 70, 60 / 70)
    """Shares of the training after each of which the learning rate falls to a tenth."""

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
        """Yield `semi_supervised/1_percent/top5` and `.../top1`, shares in [0, 1]; the encoder is copied.

        The copy learns, so no features are kept.

        Raises:
            RaysslError: If the loss is not finite.
        """
        rows = self._labelled_rows(train, seed=seed)
        with unchanged(encoder):
            network = _Classifier(encoder, len(train.classes), seed=seed).to(device)
            self._train(network, train, rows, image_size=data.image_size, seed=seed, device=device)
        test_rows = np.flatnonzero(test.labels >= 0)
        views = plain_views(
            test,
            test_rows,
            image_size=data.image_size,
            eval_resize=data.eval_resize,
            batch_size=_VIEWS_AT_ONCE,
            device=device,
        )
        top1, top5 = _accuracies(network, views, torch.from_numpy(test.labels[test_rows]))
        yield f"{self._area}/top5", top5
        yield f"{self._area}/top1", top1

    def _train(
        self,
        network: "_Classifier",
        train: Pictures,
        rows: np.ndarray,
        *,
        image_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        rate = self.learning_rate * self.batch_size / REFERENCE_BATCH
        optimizer = torch.optim.SGD(
            network.parameters(),
            rate,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
            weight_decay=self.weight_decay,
        )
        num_steps = steps_an_epoch(len(rows), self.batch_size)
        drops = [round(share * self.epochs * num_steps) for share in self.milestones]
        network.train()
        for epoch in range(self.epochs):
            batches = augmented_batches(
                train,
                rows,
                epoch=epoch,
                batch_size=self.batch_size,
                image_size=image_size,
                seed=seed,
                device=device,
            )
            for step, (views, targets) in enumerate(batches, start=epoch * num_steps):
                optimizer.param_groups[0]["lr"] = rate * 0.1 ** bisect_right(drops, step)
                loss = functional.cross_entropy(network(views), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if not loss.isfinite():
                raise RaysslError(
                    f"semi_supervised: the loss is not finite in epoch {epoch + 1} at learning rate {rate:g}. Lower "
                    "evaluation.learning_rate."
                )

    @property
    def _area(self) -> str:
        return f"{self.name}/{100 * self.fraction:g}_percent"

    def _labelled_rows(self, train: Pictures, *, seed: int) -> np.ndarray:
        """As many pictures of each class: the share of all labelled ones, at least one of a class."""
        labels = torch.from_numpy(train.labels)
        per_class = max(1, round(self.fraction * int((labels >= 0).sum()) / len(train.classes)))
        return balanced_subset(labels, per_class, seed=seed).numpy()

    def chosen_pictures(self, train: Pictures, *, seed: int) -> dict[str, np.ndarray]:
        """The pictures whose labels are used."""
        return {f"labelled-{100 * self.fraction:g}-percent": self._labelled_rows(train, seed=seed)}

    def unfit(self, train: Pictures, test: Pictures) -> str | None:
        """Why these pictures can't be measured, as a clause; None if they can."""
        reason = without_labels(train, test)
        if reason is None and len(self._labelled_rows(train, seed=0)) < 2:
            return "fewer than two pictures would have a label; raise evaluation.fraction"
        return reason

    def parts(self, count: int) -> tuple["SemiSupervisedConfig", ...]:
        """Itself: one training can't be shared out."""
        return (self,)

    def sanity(self, train: Pictures, test: Pictures) -> Sanity:
        """What a measurement with shuffled labels must not exceed."""
        return shuffled_top(f"{self._area}/top1", test, num_classes=len(train.classes))

    def describe(self, train: Pictures, test: Pictures) -> str:
        """Say in a sentence or two what the numbers mean: the settings, and the level of chance."""
        num_labels = len(self._labelled_rows(train, seed=0))
        chance = chance_level(torch.from_numpy(test.labels), len(train.classes))
        return (
            f"semi_supervised: the whole network fine-tuned on {num_labels:,} labels ({100 * self.fraction:g} %, as "
            f"many of each class), {self.epochs} epochs at learning rate {self.learning_rate:g} for a batch of "
            f"{REFERENCE_BATCH}; {chance:.1%} is chance in top-1."
        )


class _Classifier(nn.Module):
    """A copy of the encoder, averaged, with a linear classifier of weights N(0, 0.01)."""

    def __init__(self, encoder: Backbone, num_classes: int, *, seed: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        self.linear = nn.utils.skip_init(nn.Linear, encoder.block_channels[-1], num_classes)
        nn.init.normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(self, views: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        return self.linear(self.encoder(views).mean((2, 3)))


@torch.no_grad()
def _accuracies(network: nn.Module, batches: Iterator[Tensor], labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5."""
    network.eval()
    hits = torch.zeros(2, dtype=torch.int64)
    start = 0
    for views in batches:
        targets = labels[start : start + len(views)].to(views.device)
        start += len(views)
        logits = network(views)
        guesses = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices == targets[:, None]
        hits += torch.stack([guesses[:, 0].sum(), guesses.sum()]).cpu()
    top1, top5 = (hits / len(labels)).tolist()
    return top1, top5
