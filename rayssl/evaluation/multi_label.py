"""What evaluations of pictures with several classes share: whole pictures as views, features, classes that can be told.

Views are the whole picture, resized to a square with its aspect distorted and without a crop (Goyal et al. 2019).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from rayssl.backbones import Backbone
from rayssl.data import DataConfig, Pictures
from rayssl.data.augment import normalize, to_float
from rayssl.evaluation.average_precision import average_precisions
from rayssl.evaluation.base import BlockEvaluation, Sanity
from rayssl.evaluation.features import MOST_FEATURES, cache_dtype, extract_features, pool_block, unchanged
from rayssl.evaluation.linear_svm import l2_normalize

_VIEWS_AT_ONCE = 64
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
        self, encoder: Backbone, train: Pictures, test: Pictures, *, data: DataConfig, device: torch.device
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each block with its L2-normalised features of both sets, (N, F) and (M, F); one is held less at a time."""
        pool = partial(pool_block, max_features=self.max_features)
        blank = torch.zeros(1, 3, data.image_size, data.image_size)
        with unchanged(encoder):
            sizes = extract_features(encoder, [blank], blocks=self.blocks, pool=pool, device=device)
            num_features = sum(features.shape[1] for features in sizes.values())
            dtype = cache_dtype(len(train) + len(test), num_features, limit_gib=self.feature_cache_gib)
            train_features, test_features = (
                extract_features(
                    encoder,
                    whole_views(pictures, image_size=data.image_size, device=device),
                    blocks=self.blocks,
                    pool=pool,
                    device=device,
                    dtype=dtype,
                    num_images=len(pictures),
                )
                for pictures in (train, test)
            )
        for block in self.blocks:
            both = [whole.pop(block) for whole in (train_features, test_features)]
            for features in both:
                l2_normalize(features, out=features)
            yield block, both[0], both[1]

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


def whole_views(pictures: Pictures, *, image_size: int, device: torch.device) -> Iterator[Tensor]:
    """Normalised views of whole pictures, resized to a square, all in order: (n, 3, image_size, image_size)."""
    chunks: Sequence[np.ndarray] = np.array_split(np.arange(len(pictures)), -(-len(pictures) // _VIEWS_AT_ONCE))
    for windows in pictures.batches((chunk, None) for chunk in chunks):
        views = to_float(windows.to(device))
        if views.shape[-1] != image_size:
            size = (image_size, image_size)
            views = functional.interpolate(views, size, mode="bilinear", align_corners=False, antialias=True)
        yield normalize(views).contiguous(memory_format=torch.channels_last)


def random_average_precision(targets: np.ndarray) -> np.ndarray:
    """Mean average precisions of 50 random rankings of targets (N, C); a class ignores its rows with 0."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.from_numpy(column[column != 0]) for column in targets.T]
    draws = [
        average_precisions(torch.rand(len(column), _DRAWS, generator=generator, dtype=torch.float64), column)
        for column in columns
    ]
    return torch.stack(draws).nanmean(0).numpy()
