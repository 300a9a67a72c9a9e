"""What a run leaves to go on from: checkpoints written and taken up, and numbers that its record has missed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rayssl.config import ExperimentConfig
from rayssl.errors import CheckpointError
from rayssl.methods import Method
from rayssl.runtime import LocalRuntime, Runtime, Tracker
from rayssl.training.checkpoints import Checkpoint, Cursor, load_checkpoint, save_checkpoint
from rayssl.training.stage import TrainedStage


class KeptRuntime(LocalRuntime):
    """A `LocalRuntime` whose folder is brought elsewhere with every checkpoint.

    Args:
        keep: Brings it, on rank 0.
        arguments: See `LocalRuntime`.
    """

    def __init__(self, *arguments: Any, keep: Callable[[], None], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._keep = keep

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        """As `LocalRuntime.report`."""
        super().report(metrics, save)
        if save is not None and self.rank == 0:
            self._keep()


def restore_state(runtime: Runtime, method: Method) -> Checkpoint:
    """Take up the newest checkpoint that can be read; an empty one at a run's start.

    Raises:
        CheckpointError: If there are checkpoints, and none can be read.
    """
    folders = runtime.checkpoints()
    if not folders:
        return Checkpoint(Cursor(), backbone={})
    folder, checkpoint = _newest_whole(folders, runtime)
    method.encoder.load_state_dict(checkpoint.backbone)
    method.load_state(checkpoint.method)
    cursor = checkpoint.cursor
    steps = f" and {cursor.step} steps" if cursor.step else ""
    runtime.show(f"going on from {folder}: stage {cursor.stage + 1}, after {cursor.epoch} epochs{steps} of it")
    return checkpoint


def _newest_whole(folders: Sequence[Path], runtime: Runtime) -> tuple[Path, Checkpoint]:
    """Every worker reads the same folders, and so comes to the same one."""
    damages: list[CheckpointError] = []
    for folder in folders:
        try:
            return folder, load_checkpoint(folder, device=runtime.device)
        except CheckpointError as error:
            damages.append(error)
            runtime.show(f"warning: {error}")
    raise damages[0]


def record_again(history: Sequence[dict[str, float]], method: Method, tracker: Tracker) -> None:
    """Record the epochs that a checkpoint tells of, should a process have died before it sent them.

    A tracker leaves out what is recorded already.
    """
    for index in sorted({int(row["stage"]) - 1 for row in history}):
        child = tracker.child(method.name_of(index))
        for row in history:
            if row["stage"] == index + 1:
                metrics = {name: value for name, value in row.items() if name not in ("stage", "epoch")}
                for record in (tracker, child):
                    record.log_metrics(metrics, step=int(row["epoch"]))
        child.finish()


def write_state(
    folder: Path,
    *,
    config: ExperimentConfig,
    method: Method,
    history: list[dict[str, float]],
    cursor: Cursor,
    stage: TrainedStage | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    unfinished: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint; without a stage the one of a stage's end, whose head and optimiser are dropped.

    Raises:
        CheckpointError: If it can't be written, because the disk is full for example.
    """
    checkpoint = Checkpoint(
        cursor=cursor,
        backbone=method.encoder.state_dict(),
        method=method.state(),
        head=stage.head.state_dict() if stage is not None else {},
        optimizer=optimizer.state_dict() if optimizer is not None else {},
        unfinished=unfinished or {},
        history=history,
        config=config.model_dump(mode="json", by_alias=True),
    )
    save_checkpoint(checkpoint, folder)
