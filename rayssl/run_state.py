"""What a run leaves to go on from: checkpoints written and taken up, and numbers that its record has missed."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
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

    def _write(self, save: Callable[[Path], None]) -> None:
        super()._write(save)
        self._keep()


def restore_state(runtime: Runtime, method: Method) -> Checkpoint:
    """Take up the newest checkpoint that can be read, if need be the end of a stage; an empty one at a run's start.

    One that stands in for damaged ones is written once more: of the last two, which are kept, a damaged one would be
    the second as soon as the next one is written.

    Raises:
        CheckpointError: If there are checkpoints, and none can be read.
    """
    folders = runtime.checkpoints()
    if not folders:
        return Checkpoint(Cursor(), backbone={})
    ends = sorted(runtime.folder.glob("stage-*[0-9]"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    folder, checkpoint = _newest_whole([*folders, *ends], runtime)
    method.encoder.load_state_dict(checkpoint.backbone)
    method.load_state(checkpoint.method)
    cursor = checkpoint.cursor
    steps = f" and {cursor.step} steps" if cursor.step else ""
    runtime.show(f"going on from {folder}: stage {cursor.stage + 1}, after {cursor.epoch} epochs{steps} of it")
    if folder != folders[0]:
        runtime.report({}, partial(save_checkpoint, checkpoint) if runtime.rank == 0 else None)
    return checkpoint


def _newest_whole(folders: Sequence[Path], runtime: Runtime) -> tuple[Path, Checkpoint]:
    """Every worker reads the same folders, and so comes to the same one."""
    damages: list[CheckpointError] = []
    for folder in folders:
        try:
            return folder, load_checkpoint(folder, device="cpu")  # all who take from it copy
        except CheckpointError as error:
            damages.append(error)
            runtime.show(f"warning: {error}")
    raise damages[0]


def record_again(history: Sequence[dict[str, float]], method: Method, tracker: Tracker, folder: Path) -> None:
    """Record the epochs that a checkpoint tells of, and ends of stages, should a process have died before it sent them.

    A tracker leaves out what is recorded already.

    Args:
        history: A row an epoch.
        method: Names the stages.
        tracker: The run's record.
        folder: The run's.
    """
    for index in sorted({int(row["stage"]) - 1 for row in history}):
        child = tracker.child(method.name_of(index), reopen=False)
        for row in history:
            if row["stage"] == index + 1:
                metrics = {name: value for name, value in row.items() if name not in ("stage", "epoch")}
                for record in (tracker, child):
                    record.log_metrics(metrics, step=int(row["epoch"]))
        if (end := folder / f"stage-{index + 1}").exists():
            child.log_artifact(end, "checkpoint", unless_there=True)
        child.finish()


def snapshot(
    *,
    config: ExperimentConfig,
    method: Method,
    history: list[dict[str, float]],
    cursor: Cursor,
    stage: TrainedStage | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    unfinished: dict[str, Any] | None = None,
) -> Callable[[Path], None]:
    """Copy what a checkpoint of this moment holds, to the CPU; training may go on while it is written.

    Without a stage it is the checkpoint of a stage's end, whose head and optimiser are dropped.

    Returns:
        Writes it into a folder; raises CheckpointError if it can't, because the disk is full for example.
    """
    checkpoint = Checkpoint(
        cursor=cursor,
        backbone=_copied(method.encoder.state_dict()),
        method=_copied(method.state()),
        head=_copied(stage.head.state_dict()) if stage is not None else {},
        optimizer=_copied(optimizer.state_dict()) if optimizer is not None else {},
        unfinished=_copied(unfinished or {}),
        history=[dict(row) for row in history],
        config=config.model_dump(mode="json", by_alias=True),
    )
    return partial(save_checkpoint, checkpoint)


def _copied(value: Any) -> Any:
    """The same containers with copies of their tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # of the same kind: a state_dict has attributes of its own
        copied.update({name: _copied(item) for name, item in value.items()})
        return copied
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
