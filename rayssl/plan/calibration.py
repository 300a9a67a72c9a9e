"""A few steps of a stage, timed and weighed, on pictures that are made up."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from rayssl.data.loaders import TrainLoader
from rayssl.data.pictures import BadFile, Plan, Targets
from rayssl.methods import StagePlan
from rayssl.plan.memory import SavedBytes, storages
from rayssl.runtime import LocalRuntime
from rayssl.training.loop import StageSchedule, train_stage

_POOL = 64
_STEPS_A_ROUND = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the clock: a GPU has to be waited for, which the steps of a run do not."""
_COUNTED_VIEWS = 4


class SyntheticPictures:
    """Random pictures, as many as asked for but only a few different ones; see `rayssl.data.Pictures`.

    Args:
        count: Number of pictures.
        side: Of the square windows, in pixels.
        classes: The classes' names; labels go round. Without any, pictures have no labels.
    """

    targets: Targets | None = None

    def __init__(self, count: int, *, side: int, classes: tuple[str, ...] = ()) -> None:
        self.side = side
        self.classes = classes
        self.labels = np.arange(count, dtype=np.int64) % len(classes) if classes else np.full(count, -1)
        self.numbers = np.arange(count)
        self.bad_files: list[BadFile] = []
        self._pool = np.random.default_rng(0).integers(0, 256, (_POOL, side, side, 3), dtype=np.uint8)

    @property
    def fingerprint(self) -> str:
        """Names the number and the size."""
        return f"synthetic-{len(self)}-{self.side}"

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        """See `rayssl.data.Pictures.batches`."""
        for indices, _ in plan:
            yield torch.from_numpy(self._pool[indices % _POOL]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class StepCost:
    """What a step of a stage costs one worker, without communication."""

    num_images: int
    """Pictures that the worker with the largest share gets."""
    seconds: float
    memory_bytes: int
    """At the peak: weights, gradients, the optimiser's state and what the backward pass needs."""
    synchronized_bytes: int
    """Of gradients."""
    num_batchnorms: int
    """Layers with statistics of their own, in what is trained."""


def measure_step(
    plan: StagePlan,
    held: Callable[[], Iterable[Tensor]],
    *,
    num_workers: int,
    runtime: LocalRuntime,
    side: int,
    num_classes: int,
    precision: str,
    rounds: int,
    flops_per_second: float | None = None,
) -> StepCost:
    """Train a stage for some steps, with the share of the batch that one of `num_workers` gets.

    Weights stay as they are: the learning rate is 0.

    Args:
        plan: The stage, made ready.
        held: Tensors that are in memory beside the stage's own.
        num_workers: Share a batch.
        runtime: This process alone.
        side: Of decoded windows, in pixels.
        num_classes: Labels go round among two of them, or one.
        precision: "fp32" or "bf16".
        rounds: Timed repetitions, of which the median counts; a first one is left out.
        flops_per_second: Speed of a worker. If given, nothing is timed: the operations of a few pictures are counted,
            and they and the memory are scaled up to a batch.
    """
    is_counted = flops_per_second is not None
    # More parts than one in one process: the workers may come and go, and each takes several.
    parts = max(plan.loader.parts_per_step, num_workers)
    part = plan.loader.images_per_step // parts
    few = min(part, max(2, _COUNTED_VIEWS // plan.stage.task.examples_per_image))
    loader = _make_loader(
        images_per_step=few if is_counted else plan.loader.images_per_step,
        num_workers=1 if is_counted else num_workers,
        parts=1 if is_counted else parts,
        steps=1 if is_counted else _STEPS_A_ROUND[runtime.device.type],
        side=side,
        num_classes=num_classes,
    )
    num_images = part * -(-parts // num_workers)
    optimizer = plan.optimizer.build(plan.stage)
    epochs = 1 if is_counted else rounds + 2
    steps = train_stage(
        plan.stage,
        loader,
        runtime,
        optimizer,
        settings=plan.optimizer.model_copy(update={"learning_rate": 0.0}),
        schedule=StageSchedule(0, 1, epochs, 0, epochs, "stage"),
        precision=precision,
    )
    gradients = sum(p.numel() * p.element_size() for p in plan.stage.parameters() if p.requires_grad)
    if runtime.device.type == "cuda":
        memory, flops = _allocated_bytes(steps, runtime.device), 0
    else:
        saved, flops = _saved_bytes(steps, [*plan.stage.parameters(), *held()], count=is_counted)
        state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
        constant = storages([*plan.stage.parameters(), *plan.stage.buffers(), *state, *held()])
        memory = saved * part // (few if is_counted else part) + gradients + sum(constant.values())
    if flops_per_second is None:
        seconds = _median_seconds(steps) / loader.num_steps
    else:
        seconds = flops / few * num_images / flops_per_second
    buckets = gradients if num_workers > 1 else 0  # what is sent is a copy
    layers = [layer for layer in plan.stage.modules() if isinstance(layer, _BatchNorm)]
    return StepCost(num_images, seconds, memory + buckets, gradients, len(layers))


def _allocated_bytes(steps: Iterator[object], device: torch.device) -> int:
    """The most that torch's allocator holds on a GPU in the first round, which warms up."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    next(steps)
    return torch.cuda.max_memory_allocated(device)


def _saved_bytes(steps: Iterator[object], known: Iterable[Tensor], *, count: bool) -> tuple[int, int]:
    """The most that autograd holds in the first round, and, if asked for, the operations in it."""
    saved = SavedBytes(storages(known))
    flops = FlopCounterMode(display=False)
    with flops if count else nullcontext(), saved.watched():
        next(steps)
    return saved.peak, flops.get_total_flops()


def _median_seconds(steps: Iterator[object]) -> float:
    """Of a round; the first one warms up."""
    marks = []
    for _ in steps:
        marks.append(time.perf_counter())
    return float(np.median(np.diff(marks)))


def _make_loader(
    *, images_per_step: int, num_workers: int, parts: int, steps: int, side: int, num_classes: int
) -> TrainLoader:
    """The first worker's loader of a set that is a few steps long."""
    order = np.arange(steps * images_per_step).reshape(steps, images_per_step)
    return TrainLoader(
        SyntheticPictures(order.size, side=side),
        images_per_step=images_per_step,
        seed=0,
        rank=0,
        world_size=num_workers,
        parts=parts,
        order=lambda epoch: order,
        labels=np.arange(order.size, dtype=np.int64) % max(1, min(2, num_classes)),
    )
