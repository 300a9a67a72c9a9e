"""TrainRuntime: a worker of Ray Train as the science sees it."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution import context as train_context

from rayssl.runtime import WorkerGroup


class ProgressBoard:
    """What rank 0 has to show, until the driver comes and takes it; an actor of its own."""

    def __init__(self) -> None:
        self._events: list[object] = []

    def post(self, event: object) -> None:
        """Add something to show."""
        self._events.append(event)

    def take(self) -> list[object]:
        """Everything since the last call."""
        events, self._events = self._events, []
        return events


class TrainRuntime(WorkerGroup):
    """One worker of a TorchTrainer; checkpoints go through Ray, so that it can replace lost workers.

    Args:
        folder: The run's folder, on a file system that all nodes see.
        num_threads: Threads of torch's CPU operators.
        board: Where rank 0 posts what the driver shows.
    """

    def __init__(self, folder: Path, *, num_threads: int, board: "ray.actor.ActorHandle") -> None:
        torch.set_num_threads(num_threads)
        super().__init__(ray.train.torch.get_device())
        self.folder = folder
        self._board = board
        # "Reporting training result N", a line an epoch, has no switch of its own.
        logging.getLogger(train_context.__file__).setLevel(logging.WARNING)

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        """Report to Ray; with `save`, rank 0 attaches a checkpoint."""
        if save is None or self.rank != 0:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as temporary:
            save(Path(temporary) / "checkpoint")
            ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint(str(Path(temporary) / "checkpoint")))

    def restore(self) -> Path | None:
        """The folder of Ray's last checkpoint, after a lost worker or a restart of the same run."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.path)

    def show(self, event: object) -> None:
        """Post it for the driver, on rank 0, without waiting."""
        if self.rank == 0:
            self._board.post.remote(event)
