"""TrainRuntime: a worker of Ray Train as the science sees it."""

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution import context as train_context
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayssl import errors
from rayssl.errors import RaysslError
from rayssl.object_store import ObjectStore
from rayssl.runtime import WorkerGroup, use_threads

_LOST = ("WorkerHealthCheck", "ActorDied", "ActorUnavailable", "NodeDied", "WorkerCrashed")
_CUT = ("connection closed", "connection reset", "broken pipe")
_WAITED = ("timed out", "timeout")
_START = (0, 0)
_STANDSTILL = 0.9
"""Share of the workers' patience with each other after which a group in which nobody moves is taken to hang."""


class ProgressBoard:
    """What the driver and its workers tell each other; an actor of its own, which outlives workers.

    Rank 0 leaves what it has to show until the driver comes and takes it, workers leave the mistake that ended them,
    and the driver leaves word that they shall stop.

    Args:
        timeout_s: Seconds that workers wait for each other (`ClusterConfig`).
        patience: Seconds after a loss in which new workers should have started; then it is told that none have.
    """

    def __init__(self, *, timeout_s: float = math.inf, patience: float = 45.0) -> None:
        self._timeout_s = timeout_s
        self._patience = patience
        self._lost_at: float | None = None
        self._events: list[object] = []
        self._mistake: tuple[str, str] | None = None
        self._hosts: dict[int, str] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._moved_at = time.monotonic()
        self._waiting: set[int] = set()
        self._stop_after: tuple[int, int] | None = None

    def post(self, event: object) -> None:
        """Add something to show."""
        self._events.append(event)

    def take(self) -> list[object]:
        """Everything since the last call."""
        if self._lost_at is not None and time.monotonic() - self._lost_at > self._patience:
            self._lost_at = None
            self.post(
                f"warning: {self._patience:.0f} s after the loss there is no room for {len(self._hosts)} workers yet; "
                "waiting. Add a node, or stop and give the command again with fewer in cluster.workers"
            )
        events, self._events = self._events, []
        return events

    def join(self, rank: int, size: int, host: str) -> None:
        """A worker of a group of so many starts on a host."""
        self._lost_at = None
        self._moved_at = time.monotonic()
        self._waiting.discard(rank)
        self._places.pop(rank, None)
        self._hosts = {other: name for other, name in self._hosts.items() if other < size} | {rank: host}

    def note_loss(self, failures: Mapping[int, str]) -> None:
        """The group is started again, because these workers ended so, each with the last line of its error."""
        self._lost_at = time.monotonic()
        # A worker that GPUs are waited for in is ended by their library, without a word.
        stood_still = self._lost_at - self._moved_at > _STANDSTILL * self._timeout_s
        behind = [rank for rank in self._hosts if self._places.get(rank, _START) < self._latest] if stood_still else []
        told = describe_loss(failures, self._hosts, waiting=self._waiting, behind=behind)
        self.post(f"warning: {told}; starting again from the last checkpoint")
        self._waiting.clear()

    def note_waiting(self, rank: int) -> None:
        """A worker has waited for the others until its time was over."""
        self._waiting.add(rank)

    def note_mistake(self, kind: str, message: str) -> None:
        """Tell of a user's mistake: the name of its error's class, and what it says. The first one counts."""
        self._mistake = self._mistake or (kind, message)

    def first_mistake(self) -> tuple[str, str] | None:
        """What `note_mistake` was told first."""
        return self._mistake

    def stop(self) -> None:
        """Ask all workers to stop at the first place that none of them has passed."""
        self._stop_after = self._stop_after or self._latest

    @property
    def _latest(self) -> tuple[int, int]:
        return max(self._places.values(), default=_START)

    def stops_at(self, rank: int, place: tuple[int, int]) -> bool:
        """Whether a worker that has come to a place, an epoch and a step, has to stop there; all ask at the same ones.

        Places are compared here, so that workers agree without waiting for each other.
        """
        self._places[rank] = place
        self._moved_at = time.monotonic()
        return self._stop_after is not None and place > self._stop_after


def put_up_board(timeout_s: float) -> "ray.actor.ActorHandle":
    """A board on this node, where whoever looks at it is: another node may be lost.

    Args:
        timeout_s: Seconds that workers wait for each other (`ClusterConfig`).
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Should memory run short, Ray ends such actors first: what an empty board has forgotten, a run can do without.
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(ProgressBoard).remote(timeout_s=timeout_s)


def raise_mistake(board: "ray.actor.ActorHandle") -> None:
    """Raise the error that a worker left on the board, if there is one, as it was raised there."""
    mistake = ray.get(board.first_mistake.remote())
    if mistake is not None:
        kind, message = mistake
        raise getattr(errors, kind, RaysslError)(message)


def describe_loss(
    failures: Mapping[int, str],
    hosts: Mapping[int, str],
    *,
    waiting: Collection[int] = (),
    behind: Collection[int] = (),
) -> str:
    """What happened to a group of workers, by who is to blame.

    A worker that is lost breaks the connections of the others, and one that hangs lets the others time out and says
    nothing itself. The group is ended at the first failure, so most workers that have waited have none of their own.

    Args:
        failures: Last line of the error of each worker that failed, by rank.
        hosts: Where each worker of the group runs.
        waiting: Workers that have waited for others in vain.
        behind: Workers that the others were ahead of, if none has moved for as long as they wait for each other.
    """

    def name(ranks: Iterable[int]) -> str:
        return ", ".join(f"worker {rank} (on {hosts.get(rank, 'an unknown node')})" for rank in sorted(ranks))

    hangs = "does not answer any more, the others have waited for cluster.timeout_s"
    if behind and len(behind) < len(hosts):
        return f"{name(behind)} {hangs}"
    lost = [rank for rank, text in failures.items() if any(word in text for word in _LOST)]
    if lost:
        return f"{name(lost)} was lost"
    silent = [rank for rank in hosts if rank not in failures and rank not in waiting]
    if silent and any(word in text.lower() for text in failures.values() for word in _CUT):
        return f"{name(silent)} was lost"
    if silent and any(has_waited(text) for text in failures.values()):
        return f"{name(silent)} {hangs}"
    rank, text = min(failures.items())
    return f"{name([rank])} failed: {text}"


def has_waited(text: str) -> bool:
    """Whether an error says that other workers were waited for in vain."""
    return any(word in text.lower() for word in _WAITED)


class TellLosses(ray.train.UserCallback):
    """Tells the board why a group of workers ends; runs in Train's controller."""

    def __init__(self, board: "ray.actor.ActorHandle") -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called when workers have failed, before they are started again."""
        lines = {rank: f"{type(error).__name__}: {last_line(error)}" for rank, error in worker_exceptions.items()}
        self._board.note_loss.remote(lines)


def last_line(error: Exception) -> str:
    """The last line of what an error says, which is the error itself if that is a traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


class TrainRuntime(WorkerGroup):
    """One worker of a TorchTrainer; checkpoints go through Ray, so that it can replace lost workers.

    Args:
        folder: The run's folder, on a file system that all nodes see, or a working copy of each node's own.
        num_threads: Threads of torch's CPU operators.
        bucket_mib: See `ClusterConfig`.
        board: Where rank 0 posts what the driver shows, and where the driver asks to stop; None: nobody looks.
        store: Where the run is kept, if the folder is a working copy of that.

    Raises:
        CheckpointError: If the store can't be reached.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_threads: int,
        board: "ray.actor.ActorHandle | None",
        bucket_mib: float = 25,
        store: ObjectStore | None = None,
    ) -> None:
        use_threads(num_threads)
        super().__init__(ray.train.torch.get_device(), bucket_mib=bucket_mib)
        self.leads_node = ray.train.get_context().get_local_rank() == 0
        self.folder = folder
        self._board = board
        if board is not None:
            board.join.remote(self.rank, self.world_size, ray.util.get_node_ip_address())
        # "Reporting training result N", a line an epoch, has no switch of its own.
        logging.getLogger(train_context.__file__).setLevel(logging.WARNING)
        self._kept_in = store
        self._written: list[Future[None]] = []
        if store is not None:
            if self.leads_node or self.rank == 0:
                store.pull(store.run_of(folder))
                folder.mkdir(parents=True, exist_ok=True)
            self.barrier()

    def keep(self) -> None:
        """Bring what rank 0 has written to the store, if there is one."""
        if self._kept_in is not None and self.rank == 0:
            self._kept_in.push(self.folder)

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """Report to Ray; with `save`, rank 0 attaches a checkpoint.

        It is written where it stays, in the thread in which Ray would upload it. All workers report in the same mode:
        one that waited would hold up the others while rank 0 writes.
        """
        mode = ray.train.CheckpointUploadMode.ASYNC if in_background else ray.train.CheckpointUploadMode.SYNC
        if save is None or self.rank != 0:
            ray.train.report(dict(metrics), checkpoint_upload_mode=mode)
            return
        self.settle()  # Ray would queue as many checkpoints in memory as a slow disk leaves behind
        written: Future[None] = Future()
        self._written.append(written)
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint(str(self.folder)),  # a stand-in, `_write` gives the one that is kept
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=lambda _, name: self._write(save, name, written),
            delete_local_checkpoint_after_upload=False,
        )

    def settle(self) -> None:
        """Wait for the checkpoints in progress."""
        pending, self._written = self._written, []
        for written in pending:
            written.result()

    def _write(self, save: Callable[[Path], None], name: str, written: "Future[None]") -> ray.train.Checkpoint:
        """Write a checkpoint to Ray's storage under the name that Ray has chosen, and give it.

        Ray tries again what fails in its thread, as if a worker had been lost, so a mistake is told here.
        """
        try:
            place = self._save(save, name)
        except BaseException as error:
            if isinstance(error, RaysslError) and self._board is not None:
                ray.get(self._board.note_mistake.remote(type(error).__name__, str(error)))
            written.set_exception(error)
            raise
        written.set_result(None)
        return place

    def _save(self, save: Callable[[Path], None], name: str) -> ray.train.Checkpoint:
        storage = ray.train.get_context().get_storage()
        if self._kept_in is None:
            place = Path(storage.experiment_fs_path) / name
            save(place)
            return ray.train.Checkpoint(str(place))
        self.keep()  # before the checkpoint, which says that it is there
        with tempfile.TemporaryDirectory() as temporary:
            save(Path(temporary) / "checkpoint")
            try:
                return storage.persist_current_checkpoint(
                    ray.train.Checkpoint(str(Path(temporary) / "checkpoint")), name
                )
            except OSError as error:
                raise self._kept_in.failure(error) from None

    def checkpoints(self) -> Sequence[Path]:
        """Ray's last checkpoint, after a lost worker or a restart of the same run, and the one before it."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return []
        newest = Path(checkpoint.path)
        if self._kept_in is not None:
            return self._bring_checkpoints(self._kept_in, newest.name)
        if self.rank == 0:  # what a crash left half written
            for half in (*newest.parent.glob("*.partial"), *newest.parent.glob("*.outdated")):
                shutil.rmtree(half, ignore_errors=True)
        older = [path for path in newest.parent.glob("checkpoint_*[0-9]") if path.name < newest.name]
        return [newest, *sorted(older, reverse=True)]

    def _bring_checkpoints(self, store: ObjectStore, newest: str) -> list[Path]:
        """The same from a store, by one worker of each node."""
        place = self.folder / "ray"
        names = [name for name in store.names(place) if name.startswith("checkpoint_") and name <= newest]
        if self.leads_node:
            for old in place.glob("checkpoint_*"):
                if old.name not in names:
                    shutil.rmtree(old, ignore_errors=True)
            for name in names:
                store.pull(place / name)
        self.barrier()
        return [place / name for name in sorted(names, reverse=True) if (place / name).is_dir()]

    def stopping(self, epoch: int, step: int) -> bool:
        """Whether the driver was told to stop."""
        return self._board is not None and ray.get(self._board.stops_at.remote(self.rank, (epoch, step)))

    def show(self, event: object) -> None:
        """Post it for the driver, on rank 0, without waiting."""
        if self.rank == 0 and self._board is not None:
            self._board.post.remote(event)
