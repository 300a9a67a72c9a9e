"""What the science is given: a Runtime (who and where this worker is) and a Tracker (where numbers go).

`LocalRuntime` runs in one plain process, or in a torch.distributed group; Ray's is in `cluster/`. Neither the science
nor this module knows Ray or MLflow.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rayssl.errors import ClusterError
from rayssl.training.background import Background

Item = TypeVar("Item")
Result = TypeVar("Result")

KEPT_CHECKPOINTS = 2
"""Resume checkpoints kept: the last one, and the one before it should the last be damaged."""
_LONGEST_WORK = timedelta(days=7)
"""How long workers wait for one that has work of its own to do."""


@dataclass(frozen=True)
class Progress:
    """How far the stage in progress is; what a progress bar draws."""

    stage: int
    """Number of the stage, from 0."""
    num_stages: int
    epoch: int
    """Epoch of the stage, from 0."""
    epochs: int
    fraction: float
    """Share of the epoch that is done, 0..1."""


@dataclass(frozen=True)
class EpochDone:
    """An epoch's numbers; what a line of a log says."""

    row: Mapping[str, float]
    """stage and epoch (from 1, over the run), loss, accuracy, chance, ..."""
    num_stages: int
    epochs: int
    """Epochs of the run."""


class Runtime(Protocol):
    """One worker's place in its group, and how it talks to the others and to whoever started it."""

    folder: Path
    """Where the run's files lie; the same on all workers."""
    device: torch.device
    rank: int
    world_size: int
    leads_node: bool
    """Whether this is the worker of its machine that prepares what all of them there use."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """Make `module` synchronise its gradients over the workers; itself with one worker."""

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over the workers."""

    def gather(self, value: Result) -> list[Result]:
        """Give every worker all workers' values, in rank order."""

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, patiently: bool = False
    ) -> list[Result]:
        """Apply `function` to each item, spread over the workers; every worker gets all results, in order.

        Args:
            function: What is applied.
            items: To what; the same on all workers.
            patiently: Whether an item may take for hours, so that a worker which is waited for does not count as one
                that hangs.
        """

    def barrier(self) -> None:
        """Wait until every worker is here, however long one may prepare what the others use."""

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """End an epoch; called equally often on all ranks.

        Args:
            metrics: The epoch's numbers.
            save: On rank 0, writes a checkpoint into a given folder; None: there is none.
            in_background: Whether it may do so while training goes on; the same on all ranks. What goes wrong is then
                raised by the next report, or by `settle`.
        """

    def settle(self) -> None:
        """Wait until every checkpoint that was reported is written."""

    def checkpoints(self) -> Sequence[Path]:
        """Folders of checkpoints to go on from, the newest first; none at the first start."""

    def stopping(self, epoch: int, step: int) -> bool:
        """Whether the run is asked to stop; the same answer on all ranks, which ask at the same places.

        Args:
            epoch: Epochs of the run that are done.
            step: Steps of the next one that are done.
        """

    def show(self, event: object) -> None:
        """Show progress or a line of text to the person who waits."""


class Tracker(Protocol):
    """Where parameters, metrics and files of a run are recorded. Never raises into the run."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record the resolved config by its dotted keys."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record numbers of the run at a step (an epoch of the whole run)."""

    def log_artifact(self, path: Path, folder: str | None = None, *, unless_there: bool = False) -> None:
        """Record a file, or a folder with all that is in it.

        Args:
            path: The file or folder.
            folder: Where in the record it goes; None: to its top.
            unless_there: Leave it if there is something in that place.
        """

    def log_model(self, model: nn.Module, name: str) -> None:
        """Record a network that loads where rayssl is not installed."""

    def child(self, name: str, *, reopen: bool = True) -> "Tracker":
        """The record of a part of the run, such as a stage; the same one when asked again.

        Args:
            name: The part's.
            reopen: Whether the part goes on, if it has ended before.
        """

    def finish(self, status: str = "FINISHED") -> None:
        """Close the record: FINISHED, FAILED or KILLED."""


class NullTracker:
    """Records nothing."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str | None = None, *, unless_there: bool = False) -> None:
        """Do nothing."""

    def log_model(self, model: nn.Module, name: str) -> None:
        """Do nothing."""

    def child(self, name: str, *, reopen: bool = True) -> "NullTracker":
        """Itself."""
        return self

    def finish(self, status: str = "FINISHED") -> None:
        """Do nothing."""


class WorkerGroup:
    """The collective part of a runtime, over the default process group where one is initialised."""

    def __init__(self, device: torch.device, *, bucket_mib: float = 25) -> None:
        self.device = device
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.world_size = distributed.get_world_size() if distributed.is_initialized() else 1
        self.leads_node = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        self._bucket_mib = bucket_mib
        self._patient: distributed.ProcessGroup | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap for data-parallel training."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Running statistics are averaged once an epoch (training/loop.py), not sent from rank 0 in every step.
        return DistributedDataParallel(
            module, device_ids=devices, forward_sync_buffers=False, bucket_cap_mb=self._bucket_mib
        )

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the workers, in place."""
        if self.world_size > 1:
            distributed.all_reduce(value)
        return value

    def gather(self, value: Result) -> list[Result]:
        """All workers' values."""
        return self._gather(value, None)

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, patiently: bool = False
    ) -> list[Result]:
        """Worker r takes items r, r + world_size, ..."""
        own = [function(item) for item in items[self.rank :: self.world_size]]
        shares = self._gather(own, self._patient_group() if patiently else None)
        return [shares[i % self.world_size][i // self.world_size] for i in range(len(items))]

    def barrier(self) -> None:
        """Wait for the other workers."""
        if self.world_size > 1:
            distributed.barrier(group=self._patient_group())

    def _gather(self, value: Result, group: "distributed.ProcessGroup | None") -> list[Result]:
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=group)
        return values

    def _patient_group(self) -> "distributed.ProcessGroup | None":
        """The same workers, with other patience: where one measures or decodes for hours, none hangs."""
        if self._patient is None and self.world_size > 1:
            group = distributed.new_group(timeout=_LONGEST_WORK)
            assert isinstance(group, distributed.ProcessGroup)  # whose member this process is
            self._patient = group
        return self._patient


class LocalRuntime(WorkerGroup):
    """This process alone, or one of a torch.distributed group that the caller has initialised.

    Args:
        folder: The run's folder; checkpoints are kept in its `checkpoints`.
        num_threads: Threads of torch's CPU operators; None leaves them.
        use_gpu: Train on a GPU, the one that LOCAL_RANK numbers in a group; else on the CPU.
        bucket_mib: See `ClusterConfig`.
        show: Called on rank 0 with what there is to show.
        is_asked_to_stop: Whether the run shall stop; None: it never is.

    Raises:
        ClusterError: If there is no GPU to use.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_threads: int | None = None,
        use_gpu: bool = False,
        bucket_mib: float = 25,
        show: Callable[[object], None] | None = None,
        is_asked_to_stop: Callable[[], bool] | None = None,
    ) -> None:
        if num_threads:
            use_threads(num_threads)
        super().__init__(_local_device(use_gpu), bucket_mib=bucket_mib)
        self.folder = folder
        self._resume = folder / "checkpoints"
        self._show = show
        self._is_asked_to_stop = is_asked_to_stop
        self._background = Background()

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """Write the checkpoint, then drop the ones before the last two."""
        if save is not None and self.rank == 0:
            self._background.start(partial(self._write, save))
        if not in_background:
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint in progress."""
        self._background.settle()

    def _write(self, save: Callable[[Path], None]) -> None:
        number = max((int(path.name) for path in self._checkpoints()), default=0) + 1
        save(self._resume / f"{number:06d}")
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def checkpoints(self) -> Sequence[Path]:
        """The last two checkpoints' folders."""
        self.settle()
        return self._checkpoints()[::-1]

    def stopping(self, epoch: int, step: int) -> bool:
        """Whether any process of the group is asked to."""
        if self._is_asked_to_stop is None:
            return False
        if self.world_size == 1:  # without waiting for the device
            return self._is_asked_to_stop()
        return bool(self.sum(torch.tensor(int(self._is_asked_to_stop()), device=self.device)))

    def show(self, event: object) -> None:
        """Pass it on, on rank 0."""
        if self._show is not None and self.rank == 0:
            self._show(event)

    def _checkpoints(self) -> list[Path]:
        return sorted(path for path in self._resume.glob("*") if path.name.isdigit())


def use_threads(number: int) -> None:
    """Let torch's CPU operators use so many threads, but no more than this process has cores.

    With 10 on 2 cores torch 2.15's backward pass of a convolution crashed the process.
    """
    torch.set_num_threads(max(1, min(number, len(os.sched_getaffinity(0)))))


def _local_device(use_gpu: bool) -> torch.device:
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ClusterError("cluster.gpus_per_worker: must be 0 here, torch finds no GPU on this machine")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
