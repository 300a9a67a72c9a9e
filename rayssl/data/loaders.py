"""Which pictures go into which step, for training and for evaluation."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayssl.data.ahead import windows_on
from rayssl.data.augment import Draws, center_crop, normalize, resize, to_float
from rayssl.data.pictures import Pictures
from rayssl.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """One worker's pictures of a training step."""

    images: Tensor
    """uint8 windows, (N, 3, W, W)."""
    draws: Draws
    """The step's random numbers, for these pictures."""
    indices: Tensor
    """The pictures' numbers in their set, int64 (N,)."""
    labels: Tensor
    """int64 (N,); -1 where a picture has no label."""


class TrainLoader:
    """Shuffled batches for training, the same on any number of workers.

    The order of an epoch is a permutation drawn from (seed, epoch), unless another order is given; a step takes the
    next `images_per_step` pictures of it, cut into parts of consecutive pictures, and every worker a share of those
    parts. Pictures left over at an epoch's end are dropped.

    Args:
        pictures: What there is to train on.
        images_per_step: Pictures of a step, over all workers.
        seed: The run's seed.
        rank: This worker's number.
        world_size: Number of workers.
        parts: Parts of a step, at least as many as workers; divides `images_per_step`. None: one for each worker.
        order: Gives the pictures' numbers for each step of an epoch, int64 (num_steps, images_per_step), as many steps
            in every epoch and the same on every worker.
        labels: Labels to give with the pictures instead of their own, int64 (len(pictures),), such as pseudo labels.

    Raises:
        ConfigError: If there is not even one step in an epoch.
    """

    def __init__(
        self,
        pictures: Pictures,
        *,
        images_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        parts: int | None = None,
        order: Callable[[int], np.ndarray] | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self.num_steps = len(pictures) // images_per_step if order is None else len(order(0))
        if self.num_steps == 0:
            raise ConfigError(
                f"training.batch_size: a step takes {images_per_step} pictures, but there are only {len(pictures)} "
                "to train on. Lower training.batch_size or raise data.limit."
            )
        self._pictures = pictures
        self.images_per_step = images_per_step
        self._seed = seed
        self._order = order or self._shuffled
        self._labels = pictures.labels if labels is None else labels
        self.parts_per_step = parts or world_size
        self.own_parts = np.array_split(np.arange(self.parts_per_step), world_size)[rank].tolist()

    def epoch(
        self, epoch: int, *, first_step: int = 0, device: torch.device | None = None
    ) -> Generator[Batch, None, None]:
        """This worker's parts of each step, one after another, from step `first_step` on.

        Args:
            epoch: From 0.
            first_step: Steps of it to leave out.
            device: Where the pictures shall lie; a GPU gets them ahead of time (`rayssl.data.ahead`), so close what
                this gives unless it has come to its end. None: the CPU. The other tensors always lie there.
        """
        shares, draws = [], []
        for step, indices in enumerate(self._order(epoch)[first_step:], start=first_step):
            parts = indices.reshape(self.parts_per_step, -1)
            for part in self.own_parts:
                shares.append(parts[part])
                draws.append(
                    Draws(
                        self._seed,
                        epoch,
                        step,
                        batch_size=self.images_per_step,
                        rank=part,
                        world_size=self.parts_per_step,
                    )
                )
        plan = ((own, own_draws.uniform(0.0, 1.0).numpy()) for own, own_draws in zip(shares, draws, strict=True))
        with closing(windows_on(device or torch.device("cpu"), self._pictures.batches(plan))) as windows:
            for images, own_draws, own in zip(windows, draws, shares, strict=True):
                yield Batch(images, own_draws, torch.from_numpy(own), torch.from_numpy(self._labels[own]))

    def _shuffled(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._pictures))
        return order[: self.num_steps * self.images_per_step].reshape(self.num_steps, self.images_per_step)


def plain_views(
    pictures: Pictures, indices: np.ndarray, *, image_size: int, eval_resize: int, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Normalised views without augmentation, in order: short side to `eval_resize`, then the centre (256, 224)."""
    chunks = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    plan = ((chunk, np.full(len(chunk), 0.5)) for chunk in chunks)
    with closing(windows_on(device, pictures.batches(plan))) as batches:
        for windows in batches:
            views = to_float(windows)
            if views.shape[-1] != eval_resize:
                views = resize(views, eval_resize)
            yield normalize(center_crop(views, image_size)).contiguous(memory_format=torch.channels_last)
