"""TrainRuntime: a worker of Ray Train as the science sees it."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution import context as train_context

from rayssl.cluster.board import post
from rayssl.errors import RaysslError
from rayssl.object_store import ObjectStore
from rayssl.runtime import KEPT_CHECKPOINTS, WorkerGroup, use_threads


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
        """Ray's last checkpoint, after a lost worker or a restart of the same run, and the one before it.

        Later ones, which were written as the driver died, before Ray took note of them, are deleted: nobody else would.
        If Ray knows of none at all, whole ones that are there count: the run died as it wrote its first one, or Ray's
        list of them was damaged.
        """
        checkpoint = ray.train.get_checkpoint()
        known = Path(checkpoint.path).name if checkpoint is not None else None
        if self._kept_in is not None:
            return self._bring_checkpoints(self._kept_in, known)
        place = Path(ray.train.get_context().get_storage().experiment_fs_path)
        whole = sorted(place.glob("checkpoint_*[0-9]"), reverse=True)
        found = [path for path in whole if known is None or path.name <= known]
        if self.rank == 0:
            later = set(whole) - set(found)
            for path in (*place.glob("*.partial"), *place.glob("*.outdated"), *later, *found[KEPT_CHECKPOINTS:]):
                shutil.rmtree(path, ignore_errors=True)
        return found[:KEPT_CHECKPOINTS]

    def _bring_checkpoints(self, store: ObjectStore, known: str | None) -> list[Path]:
        """The same from a store, by one worker of each node; what Ray does not know of may be there by half."""
        place = self.folder / "ray"
        found = [name for name in store.names(place) if name.startswith("checkpoint_")]
        names = [name for name in found if known is not None and name <= known]
        if self.rank == 0:
            for name in set(found) - set(names):
                store.delete(place / name)
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
            post(self._board, event)
