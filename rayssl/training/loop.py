"""The one training loop: every stage of every method goes through `train_stage`."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rayssl.data.loaders import TrainLoader
from rayssl.errors import TrainingError
from rayssl.runtime import Progress, Runtime
from rayssl.schema import Config
from rayssl.training.optimizers import AnyOptimizer
from rayssl.training.stage import TrainedStage

_CHECK_EVERY = 50
"""Steps between looks at the loss: reading a number from a GPU makes the CPU wait for it."""
_PROGRESS_SECONDS = 0.5


class TrainingConfig(Config):
    """How every stage is trained."""

    batch_size: int = Field(default=256, ge=2)
    """Views a step, over all workers (PSL: 256)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions and matrix products in bfloat16 (autocast), weights and losses in float32."""
    sync_batchnorm: bool = False
    """Whether BatchNorm normalises by the batch of all workers (SimCLR), or each worker by its own share."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints; a stage's last epoch always writes one."""


@dataclass(frozen=True)
class StageSchedule:
    """Where a stage stands in its run."""

    index: int
    """Number of the stage, from 0."""
    num_stages: int
    epochs: int
    """Epochs of this stage."""
    epochs_before: int
    """Epochs of the stages before it."""
    epochs_run: int
    """Epochs of the whole run."""
    scope: str
    """What the learning-rate schedule spans: "stage" or "run"."""

    def progress(self, epoch: int, fraction: float) -> float:
        """Share of the schedule that is done, in [0, 1), after `epoch` + `fraction` epochs of this stage."""
        if self.scope == "run":
            return (self.epochs_before + epoch + fraction) / self.epochs_run
        return (epoch + fraction) / self.epochs


def train_stage(
    stage: TrainedStage,
    loader: TrainLoader,
    runtime: Runtime,
    optimizer: torch.optim.Optimizer,
    *,
    settings: AnyOptimizer,
    schedule: StageSchedule,
    precision: str,
    start_epoch: int = 0,
) -> Iterator[dict[str, float]]:
    """Train a stage, giving the numbers of each epoch when it is done.

    Args:
        stage: The blocks, head and loss, on the runtime's device.
        loader: This worker's share of every batch.
        runtime: Where the training runs.
        optimizer: Over the stage's parameters.
        settings: The optimiser's config, for the learning rate and its schedule.
        schedule: The stage's place in the run.
        precision: "fp32" or "bf16".
        start_epoch: Epochs of this stage that an earlier attempt has finished.

    Yields:
        For each epoch, over all workers: loss, what the task measures (accuracy), chance if it has one, learning_rate
        (of the last step) and images_per_second (examples over wall time).

    Raises:
        TrainingError: If the loss is not finite; it names stage, epoch, step and learning rate.
    """
    model = runtime.wrap(stage)
    for epoch in range(start_epoch, schedule.epochs):
        model.train()
        started = reported = time.monotonic()
        losses: list[Tensor] = []
        totals: dict[str, Tensor] = {}
        # Views and order depend on the epochs of the whole run, so that no two stages see the same ones.
        for step, batch in enumerate(loader.epoch(schedule.epochs_before + epoch)):
            rate = _learning_rate(settings, schedule, epoch, step / loader.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            views = stage.task.make_views(replace(batch, images=batch.images.to(runtime.device, non_blocking=True)))
            inputs = views.inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(runtime.device.type, torch.bfloat16, enabled=precision == "bf16"):
                outcome = model(inputs, views.targets)
            optimizer.zero_grad(set_to_none=True)
            outcome.loss.backward()
            optimizer.step()
            losses.append(outcome.loss.detach())
            for name, value in outcome.metrics.items():
                totals[name] = totals.get(name, 0) + value.double()
            if len(losses) % _CHECK_EVERY == 0:
                _check_finite(losses, runtime, settings, schedule, epoch, loader.num_steps)
            is_last = step + 1 == loader.num_steps
            if runtime.rank == 0 and (is_last or time.monotonic() - reported > _PROGRESS_SECONDS):
                reported = time.monotonic()
                runtime.show(
                    Progress(schedule.index, schedule.num_stages, epoch, schedule.epochs, (step + 1) / loader.num_steps)
                )
        _check_finite(losses, runtime, settings, schedule, epoch, loader.num_steps)
        _average_statistics(stage, runtime)
        # Every worker has as many examples in every step, so the mean of their means is the mean.
        means = torch.stack([torch.stack(losses).sum().double(), *totals.values()]) / (len(losses) * runtime.world_size)
        examples = loader.num_steps * loader.images_per_step * stage.task.examples_per_image
        chance = {} if stage.task.chance is None else {"chance": stage.task.chance}
        yield {
            **dict(zip(("loss", *totals), runtime.sum(means).tolist(), strict=True)),
            **chance,
            "learning_rate": rate,
            "images_per_second": examples / (time.monotonic() - started),
        }


def _average_statistics(stage: TrainedStage, runtime: Runtime) -> None:
    """Give all workers the mean of their running statistics.

    Each worker normalises by its own share of a batch. Left apart, the workers would evaluate, and freeze, networks
    that differ, and a restart, which knows one of them, would not go on as the run would have.
    """
    if runtime.world_size == 1:
        return
    for buffer in stage.moving_buffers():
        if buffer.is_floating_point():
            buffer.copy_(runtime.sum(buffer.clone()) / runtime.world_size)


def _learning_rate(settings: AnyOptimizer, schedule: StageSchedule, epoch: int, fraction: float) -> float:
    return settings.learning_rate * settings.schedule.scale(schedule.progress(epoch, fraction))


def _check_finite(
    losses: list[Tensor], runtime: Runtime, settings: AnyOptimizer, schedule: StageSchedule, epoch: int, num_steps: int
) -> None:
    """Summed over the workers, so that all of them stop at the same step and none waits for one that has stopped."""
    broken = runtime.sum((~torch.stack(losses).isfinite()).long())
    if broken.any():
        step = int(broken.nonzero()[0])
        rate = _learning_rate(settings, schedule, epoch, step / num_steps)
        raise TrainingError(
            f"the loss is not finite in stage {schedule.index + 1}, epoch {epoch + 1}, step {step + 1}, at learning "
            f"rate {rate:g}. Lower optimizer.learning_rate, or use training.precision=fp32."
        )
