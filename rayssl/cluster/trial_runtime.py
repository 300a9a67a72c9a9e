"""Runtimes of a search's trials: inside a trial of Ray Tune, and on the workers that a trial starts."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray.tune

from rayssl.cluster.runtime import TrainRuntime
from rayssl.runtime import EpochDone, LocalRuntime
from rayssl.search_space import StageStore
from rayssl.training.checkpoints import load_checkpoint

_STOPPED = "stopped"
"""Folder of a trial's folder: the checkpoint that it wrote when the search was stopped."""


class TrialRuntime(LocalRuntime):
    """A trial of one worker, in Tune's own process; checkpoints go through Tune, so that it can move or copy trials.

    Args:
        folder: The trial's folder, on a file system that all nodes see.
        num_threads: Threads of torch's CPU operators.
        use_gpu: Train on the GPU that Ray gave the trial.
        metric: What trials are compared by; Tune is told of the epochs that measure it.
        epochs: Of the whole run.
        store: The stages of other trials; None: every stage is trained.
        is_asked_to_stop: Whether the search shall stop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_threads: int,
        use_gpu: bool,
        metric: str,
        epochs: int,
        store: StageStore | None,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        super().__init__(folder, num_threads=num_threads, use_gpu=use_gpu)
        self._is_stopping = is_asked_to_stop
        self._has_to_stop = False
        self._metric = metric
        self._epochs = epochs
        self._store = store
        self._row: Mapping[str, float] = {}
        self._reused = 0

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """Report an epoch to Tune with a checkpoint, which it takes over at once, if it measured the metric.

        A checkpoint in the middle of an epoch is none that schedulers could compare, so Tune is not told of it.
        """
        if self._has_to_stop and save is not None:
            save(self.folder / _STOPPED)
            return
        if self._store is not None:
            self._store.offer(self.folder)
        if self._metric not in self._row:
            return
        if save is None:
            ray.tune.report(self._told(self._row))
            return
        with tempfile.TemporaryDirectory() as temporary:
            save(Path(temporary) / "checkpoint")
            checkpoint = ray.tune.Checkpoint.from_directory(str(Path(temporary) / "checkpoint"))
            shutil.rmtree(self.folder / _STOPPED, ignore_errors=True)  # this one is newer; Tune may end us as we report
            ray.tune.report(self._told(self._row), checkpoint=checkpoint)

    def checkpoints(self) -> Sequence[Path]:
        """Tune's checkpoint of this trial, or of the one it copies; at first the stages that another trial left.

        The epochs of those are reported at once, so that schedulers compare all trials at the same epochs. A trial of a
        search that was stopped goes on where it was then.
        """
        checkpoint = ray.tune.get_checkpoint()
        last = self.folder / _STOPPED
        known = [*([last] if last.exists() else []), *([Path(checkpoint.path)] if checkpoint is not None else [])]
        if known:
            return known
        found = self._store.find() if self._store is not None else None
        if found is not None:
            left = load_checkpoint(found)
            is_own = (self.folder / f"stage-{left.cursor.stage}").exists()  # from before a crash
            self._reused = 0 if is_own else len(left.history)
            for row in left.history:
                if self._metric in row:
                    ray.tune.report(self._told(row))
        return [found] if found is not None else []

    def stopping(self, epoch: int, step: int) -> bool:
        """Whether the search shall stop."""
        self._has_to_stop = self._is_stopping()
        return self._has_to_stop

    def show(self, event: object) -> None:
        """Keep the epoch's numbers for the report; write sentences to the trial's log."""
        if isinstance(event, EpochDone):
            self._row = event.row
        elif isinstance(event, str):
            write_log(self.folder, event)

    def _told(self, row: Mapping[str, float]) -> dict[str, float]:
        return {**row, "epochs": self._epochs, "reused_epochs": self._reused}


class GroupTrialRuntime(TrainRuntime):
    """One of several workers of a trial.

    Args:
        folder: The trial's folder.
        num_threads: Threads of torch's CPU operators.
        epochs: Of the whole run.
        start: The stages that another trial left; None: there are none.
        store: Where to leave this trial's stages; None: nowhere.
        metric: What trials are compared by.
        board: The trial's `ProgressBoard`.
        bucket_mib: See `ClusterConfig`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_threads: int,
        epochs: int,
        start: Path | None,
        store: StageStore | None,
        metric: str,
        board: "ray.actor.ActorHandle",
        bucket_mib: float,
    ) -> None:
        super().__init__(folder, num_threads=num_threads, board=board, bucket_mib=bucket_mib)
        self._metric = metric
        self._has_to_stop = False
        self._epochs = epochs
        self._start = start
        self._store = store
        self._row: Mapping[str, float] = {}
        self._reused = len(load_checkpoint(start).history) if start is not None else 0

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """As `TrainRuntime.report`, with the epoch's number and what Tune has to know.

        A checkpoint in the middle of an epoch comes without the metric: Tune has been told of it.
        """
        if self._store is not None and self.rank == 0:
            self._store.offer(self.folder)
        row = {key: value for key, value in self._row.items() if not self._has_to_stop or key != self._metric}
        super().report(self._told(row), save, in_background=in_background)

    def checkpoints(self) -> Sequence[Path]:
        """Ray's checkpoints of this trial, or the stages that another one left, whose epochs are reported."""
        found = super().checkpoints()
        if found or self._start is None:
            return found
        for row in load_checkpoint(self._start).history:
            super().report(self._told(row))
        return [self._start]

    def stopping(self, epoch: int, step: int) -> bool:
        """As `TrainRuntime.stopping`."""
        self._has_to_stop = super().stopping(epoch, step)
        return self._has_to_stop

    def show(self, event: object) -> None:
        """As `TrialRuntime.show`."""
        if isinstance(event, EpochDone):
            self._row = event.row
        elif isinstance(event, str) and self.rank == 0:
            write_log(self.folder, event)

    def _told(self, row: Mapping[str, float]) -> dict[str, float]:
        return {**row, "epochs": self._epochs, "reused_epochs": self._reused}


class FinishedRuntime(LocalRuntime):
    """A process that goes on from a trial's last stage: nothing is left to train, the evaluations are.

    Args:
        folder: The trial's folder.
        num_threads: Threads of torch's CPU operators.
        use_gpu: Evaluate on a GPU.
        end: The checkpoint of the last stage.
    """

    def __init__(self, folder: Path, *, num_threads: int, use_gpu: bool, end: Path) -> None:
        super().__init__(folder, num_threads=num_threads, use_gpu=use_gpu)
        self._end = end

    def checkpoints(self) -> Sequence[Path]:
        """The checkpoint of the last stage."""
        return [self._end]


def write_log(folder: Path, text: str) -> None:
    """Add a line to the trial's log."""
    with (folder / "log.txt").open("a") as log:
        log.write(f"{text}\n")
