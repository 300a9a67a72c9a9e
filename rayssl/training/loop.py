"""The one training loop: every stage of every method goes through `train_stage`."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayssl.data.loaders import TrainLoader
from rayssl.errors import TrainingError
from rayssl.runtime import Progress, Runtime
from rayssl.schema import Config
from rayssl.training.optimizers import AnyOptimizer
from rayssl.training.stage import TrainedStage

_CHECK_EVERY = 50
"""Steps between looks at the loss: reading a number from a GPU makes the CPU wait for it."""
_ASK_EVERY = 4
"""Steps between questions whether the run is asked to stop, the first of them where an epoch follows another: who asks
usually leaves it half a minute."""
_PROGRESS_SECONDS = 0.5


class TrainingConfig(Config):
    """How every stage is trained."""

    batch_size: int = Field(default=256, ge=2)
    """Views a step, over all workers (PSL: 256)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions and matrix products in bfloat16 (autocast), weights and losses in float32. fp32 is float32 but
    for convolutions on GPUs, whose factors torch lets cuDNN round to 11 bits (TF32) there."""
    sync_batchnorm: bool = False
    """Whether BatchNorm normalises by the batch of all workers (SimCLR), or each worker by its own share."""
    accumulate: int = Field(default=1, ge=1)
    """Pieces that each worker cuts its share of a batch into, to need less memory: they are computed one after another,
    and their gradients added up. BatchNorm normalises each by itself; losses that look across the batch (SimCLR, MoCo,
    MGTA's) can't be cut."""
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


class StageStopped(Exception):  # noqa: N818  it is no error
    """A stage was asked to stop in the middle of an epoch.

    Args:
        epoch: Epochs of the stage that are done.
        step: Steps of the next one that are done.
        unfinished: What `train_stage` needs to go on there beside weights and optimiser, the same on every worker.
    """

    def __init__(self, epoch: int, step: int, unfinished: dict[str, Any]) -> None:
        super().__init__(f"stopped after {step} steps of epoch {epoch + 1}")
        self.epoch = epoch
        self.step = step
        self.unfinished = unfinished


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
    start_step: int = 0,
    unfinished: dict[str, Any] | None = None,
) -> Iterator[dict[str, float]]:
    """Train a stage, giving the numbers of each epoch when it is done.

    A step whose pictures come in several parts adds up the parts' gradients, so that its result does not depend on how
    many workers share them, but for the running statistics of BatchNorm, which a worker moves with each of its parts.

    Args:
        stage: The blocks, head and loss, on the runtime's device.
        loader: This worker's share of every batch.
        runtime: Where the training runs.
        optimizer: Over the stage's parameters.
        settings: The optimiser's config, for the learning rate and its schedule.
        schedule: The stage's place in the run.
        precision: "fp32" or "bf16".
        start_epoch: Epochs of this stage that an earlier attempt has finished.
        start_step: Steps of the next epoch that it has done.
        unfinished: What it left of that epoch (`StageStopped`).

    Yields:
        For each epoch, over all workers: loss, what the task measures (accuracy), chance if it has one, learning_rate
        (of the last step) and images_per_second (examples over wall time).

    Raises:
        StageStopped: If the run was asked to stop; at the same step on all workers.
        TrainingError: If the loss is not finite; it names stage, epoch, step and learning rate.
    """
    model = runtime.wrap(stage)
    num_parts = len(loader.own_parts)
    # Gradients are averaged over the workers, each of which adds up those of its parts.
    weight = runtime.world_size / loader.parts_per_step
    for epoch in range(start_epoch, schedule.epochs):
        model.train()
        started = reported = time.monotonic()
        first_step = start_step if epoch == start_epoch else 0
        totals = _take_up(unfinished, stage, runtime) if first_step and unfinished else {}
        unchecked: list[Tensor] = []
        # Views and order depend on the epochs of the whole run, so that no two stages see the same ones.
        run_epoch = schedule.epochs_before + epoch
        with closing(loader.epoch(run_epoch, first_step=first_step, device=runtime.device)) as batches:
            for step in range(first_step, loader.num_steps):
                begins = epoch == start_epoch and step == first_step
                if step % _ASK_EVERY == 0 and not begins and runtime.stopping(run_epoch, step):
                    _check_finite(unchecked, step, runtime, settings, schedule, epoch, loader.num_steps)
                    raise StageStopped(epoch, step, _leave(totals, stage, runtime) if step else {})
                rate = _learning_rate(settings, schedule, epoch, step / loader.num_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                loss = torch.zeros((), device=runtime.device)
                for part in range(num_parts):
                    views = stage.task.make_views(next(batches))
                    inputs = views.inputs.contiguous(memory_format=torch.channels_last)
                    with _kept_apart(model) if part + 1 < num_parts else nullcontext():
                        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=precision == "bf16"):
                            outcome = model(inputs, views.targets)
                        (outcome.loss * weight).backward()
                    loss += outcome.loss.detach()
                    for name, value in (("loss", outcome.loss.detach()), *outcome.metrics.items()):
                        totals[name] = totals.get(name, 0) + value.double()
                unchecked.append(loss)
                optimizer.step()
                is_last = step + 1 == loader.num_steps
                if is_last or len(unchecked) == _CHECK_EVERY:
                    _check_finite(unchecked, step + 1, runtime, settings, schedule, epoch, loader.num_steps)
                    unchecked = []
                if runtime.rank == 0 and (is_last or time.monotonic() - reported > _PROGRESS_SECONDS):
                    reported = time.monotonic()
                    fraction = (step + 1) / loader.num_steps
                    runtime.show(Progress(schedule.index, schedule.num_stages, epoch, schedule.epochs, fraction))
        _average_statistics(stage, runtime)
        # Every part has as many examples, so the mean of their means is the mean.
        means = torch.stack(list(totals.values())) / (loader.num_steps * loader.parts_per_step)
        examples = (loader.num_steps - first_step) * loader.images_per_step * stage.task.examples_per_image
        chance = {} if stage.task.chance is None else {"chance": stage.task.chance}
        yield {
            **dict(zip(totals, runtime.sum(means).tolist(), strict=True)),
            **chance,
            "learning_rate": rate,
            "images_per_second": examples / (time.monotonic() - started),
        }


def _kept_apart(model: nn.Module) -> AbstractContextManager[None]:
    """Let gradients add up without being averaged over the workers yet."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _leave(totals: dict[str, Tensor], stage: TrainedStage, runtime: Runtime) -> dict[str, Any]:
    """Sums and running statistics of an epoch's part that is done, of all workers."""
    own = {"totals": totals, "statistics": stage.moving_buffers()}
    workers = runtime.gather({name: _on_cpu(values) for name, values in own.items()})
    return {name: [worker[name] for worker in workers] for name in own}


def _on_cpu(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: value.cpu() for name, value in values.items()}
    return [value.cpu() for value in values]


def _take_up(unfinished: dict[str, Any], stage: TrainedStage, runtime: Runtime) -> dict[str, Tensor]:
    """What `_leave` gave: each worker's own, or, among another number of workers, statistics that are averaged."""
    everyone, statistics = unfinished["totals"], unfinished["statistics"]
    same = len(everyone) == runtime.world_size
    for index, buffer in enumerate(stage.moving_buffers()):
        values = [worker[index] for worker in statistics]
        mean = torch.stack(values).mean(0) if buffer.is_floating_point() else values[0]
        buffer.copy_(values[runtime.rank] if same else mean)
    if same:
        return {name: value.to(runtime.device) for name, value in everyone[runtime.rank].items()}
    sums = {name: torch.stack([worker[name] for worker in everyone]).sum() for name in everyone[0]}
    return {name: (value if runtime.rank == 0 else value * 0).to(runtime.device) for name, value in sums.items()}


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
    losses: list[Tensor],
    steps_done: int,
    runtime: Runtime,
    settings: AnyOptimizer,
    schedule: StageSchedule,
    epoch: int,
    num_steps: int,
) -> None:
    """Look at the losses of the last steps, before step `steps_done`.

    Summed over the workers, so that all of them stop at the same step and none waits for one that has stopped.
    """
    if not losses:
        return
    broken = runtime.sum((~torch.stack(losses).isfinite()).long())
    if broken.any():
        step = steps_done - len(losses) + int(broken.nonzero()[0])
        rate = _learning_rate(settings, schedule, epoch, step / num_steps)
        raise TrainingError(
            f"the loss is not finite in stage {schedule.index + 1}, epoch {epoch + 1}, step {step + 1}, at learning "
            f"rate {rate:g}. Lower optimizer.learning_rate, or use training.precision=fp32."
        )
