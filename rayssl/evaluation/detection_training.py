"""Training a detector on all workers, and letting it find objects in test pictures that are spread over them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rayssl.evaluation.base import derive_seed
from rayssl.evaluation.box_average_precision import Detections
from rayssl.evaluation.detection_pictures import DetectionPictures, Example, told_pictures, training_batches
from rayssl.runtime import Runtime

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

EXPLODED = 1e4
"""A loss above this is taken as divergence: one that learns starts at a few nats."""
_NUM_LINES = 20


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a detector learns."""

    batch_size: int
    """Pictures a step, over all workers."""
    iterations: int
    learning_rate: float
    """After the warm-up."""
    milestones: tuple[float, ...]
    """Shares of the iterations after each of which the learning rate falls to a tenth."""
    warmup_iterations: int
    """The learning rate rises over these, linearly."""
    warmup_factor: float
    """Share of the learning rate that it rises from."""
    momentum: float
    weight_decay: float

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, from 0."""
        drops = sum(iteration >= round(share * self.iterations) for share in self.milestones)
        done = min(1.0, iteration / self.warmup_iterations) if self.warmup_iterations else 1.0
        return self.learning_rate * 0.1**drops * (self.warmup_factor + (1 - self.warmup_factor) * done)


def train_detector(
    detector: "FasterRCNN",
    pictures: DetectionPictures,
    schedule: Schedule,
    runtime: Runtime,
    *,
    seed: int,
    num_threads: int,
) -> int | None:
    """Train by SGD; each worker takes its share of every batch, and gradients are averaged.

    Args:
        detector: On the runtime's device.
        pictures: Each with an object.
        schedule: Length and learning rate.
        runtime: The workers; their number divides the batch.
        seed: Decides order, mirrors, sides and the sampling of proposals. torch's global generators are left alone.
        num_threads: Pictures that are decoded at once.

    Returns:
        None; or the iteration, from 1, whose loss was not finite or above `EXPLODED` on a worker, where training ended.
    """
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    model = runtime.wrap(detector.train())
    batches = training_batches(
        pictures,
        batch_size=schedule.batch_size,
        iterations=schedule.iterations,
        seed=seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
        num_threads=num_threads,
    )
    show = _progress(runtime, schedule)
    with seeded(derive_seed(seed, runtime.rank), runtime.device):
        for iteration, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(iteration)
            loss = _loss(model, batch, runtime.device)
            # Summed over the workers, so that all of them stop at the same step and none waits for the others.
            if int(runtime.sum((~(loss.detach() <= EXPLODED)).long())):
                return iteration + 1
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            show(iteration, loss.detach())
    return None


def find_objects(
    detector: "FasterRCNN", pictures: DetectionPictures, runtime: Runtime, *, num_threads: int
) -> dict[int, Detections]:
    """What the detector finds in the test pictures, one at a time, so that no picture's padding changes another's.

    Args:
        detector: Trained; left in eval mode.
        pictures: Each worker takes every world_size-th.
        runtime: The workers.
        num_threads: Pictures that are decoded at once.

    Returns:
        Row -> detections in the file's pixels, on every worker those of all; unreadable pictures have none.
    """
    detector.eval()
    mine: dict[int, Detections] = {}
    for row, picture, cut in told_pictures(
        pictures, range(runtime.rank, len(pictures), runtime.world_size), num_threads=num_threads
    ):
        with torch.inference_mode():
            (found,) = detector([_to_float(picture, runtime.device)])
        mine[row] = Detections(
            found["boxes"].cpu().numpy() + np.tile(cut, 2).astype(np.float32),
            found["scores"].cpu().numpy(),
            found["labels"].cpu().numpy() - 1,
        )
    together = {row: found for share in runtime.gather(mine) for row, found in share.items()}
    return dict(sorted(together.items()))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's global generators as after this seed, and put them back: torchvision knows no others."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _loss(model: nn.Module, batch: Sequence[Example], device: torch.device) -> Tensor:
    """The sum of the four losses: objectness and boxes of the proposals, classes and boxes of the head."""
    images = [_to_float(each.picture, device) for each in batch]
    targets = [{"boxes": each.boxes.to(device), "labels": each.labels.to(device) + 1} for each in batch]
    losses: dict[str, Tensor] = model(images, targets)
    return torch.stack(list(losses.values())).sum()


def _to_float(picture: Tensor, device: torch.device) -> Tensor:
    return picture.to(device, non_blocking=True).float() / 255


def _progress(runtime: Runtime, schedule: Schedule) -> Callable[[int, Tensor], None]:
    """Shows a line from time to time."""
    started = time.monotonic()

    def show(iteration: int, loss: Tensor) -> None:
        done = iteration + 1
        if runtime.rank != 0 or done % max(1, schedule.iterations // _NUM_LINES):
            return
        left = round((time.monotonic() - started) / done * (schedule.iterations - done))
        runtime.show(
            f"detection: iteration {done:,}/{schedule.iterations:,}  loss {float(loss):.3f}  "
            f"learning rate {schedule.rate(iteration):.2g}  left {timedelta(seconds=left)}"
        )

    return show
