"""Checkpoints: a folder with tensors in one file and everything a person can read in another."""

import dataclasses
import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayssl.errors import CheckpointError

_TENSORS = "tensors.pt"
_JSON = "checkpoint.json"
_FORMAT = 3
_CONTENT = {"backbone", "method", "head", "optimizer", "unfinished"}
"""Keys of the file with the tensors."""


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: of stage number `stage`, from 0, `epoch` epochs and `step` steps of the next one are done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0

    @property
    def inside_stage(self) -> bool:
        """Whether the stage was begun."""
        return self.epoch > 0 or self.step > 0


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not stopped, bit for bit on a CPU; GPUs add up in any order.

    Random numbers need no state: every draw is a function of the seed, the epoch and the step.
    """

    cursor: Cursor
    backbone: dict[str, Tensor]
    """The encoder that the run results in."""
    method: dict[str, Tensor] = field(default_factory=dict)
    """What the method keeps beside it: MGTA's other network, decoders, pseudo labels."""
    head: dict[str, Tensor] = field(default_factory=dict)
    """The head of the stage in progress; empty at a stage's end, where heads are dropped."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """State of the stage's optimiser; empty at a stage's end."""
    unfinished: dict[str, Any] = field(default_factory=dict)
    """What was left in the middle of an epoch (`StageStopped`); empty at an epoch's end."""
    history: list[dict[str, float]] = field(default_factory=list)
    """A row an epoch."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved config."""


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint; `folder` appears complete or not at all, replacing an older one of that name.

    Raises:
        CheckpointError: If it can't be written, because the disk is full for example; an older one is left as it is.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(checkpoint, partial)
        # Moved aside as a whole, since deleting file by file would show a reader half of the older one.
        outdated = folder.with_name(f"{folder.name}.outdated")
        shutil.rmtree(outdated, ignore_errors=True)
        if folder.exists():
            folder.rename(outdated)
        partial.rename(folder)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when the disk is full
        shutil.rmtree(partial, ignore_errors=True)
        raise unwritable(folder, error) from None
    shutil.rmtree(outdated, ignore_errors=True)


def unwritable(folder: Path, error: Exception) -> CheckpointError:
    """What to tell of a checkpoint that can't be written."""
    free = next((shutil.disk_usage(place).free for place in folder.parents if place.exists()), 0)
    reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
    return CheckpointError(
        f"{folder}: the checkpoint can't be written ({reason}; {free / 2**20:,.0f} MiB are free there). Make room; the "
        "same command then goes on from the checkpoint before it."
    )


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    tensors = {name: getattr(checkpoint, name) for name in _CONTENT}
    torch.save(tensors, folder / _TENSORS)
    readable = {
        "format": _FORMAT,
        "cursor": dataclasses.asdict(checkpoint.cursor),
        "history": checkpoint.history,
        "config": checkpoint.config,
    }
    (folder / _JSON).write_text(json.dumps(readable, indent=1))


def load_checkpoint(folder: Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read what `save_checkpoint` wrote; only tensors and plain containers are unpickled.

    Raises:
        CheckpointError: If the folder is missing, damaged or of another format.
    """
    try:
        readable = json.loads((folder / _JSON).read_text())
        found = readable.get("format") if isinstance(readable, dict) else None
        if found != _FORMAT:
            raise CheckpointError(f"{folder}: must be of format {_FORMAT}, got {found}")
        tensors = _load_tensors(folder / _TENSORS, device)
        return Checkpoint(
            cursor=Cursor(**readable["cursor"]), history=readable["history"], config=readable["config"], **tensors
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: is no checkpoint, {Path(error.filename).name} is missing") from None
    except pickle.UnpicklingError:  # torch's own message advises to switch the protection off
        raise CheckpointError(
            f"{folder}: {_TENSORS} holds something other than tensors, which could run code when it is read. "
            "Use checkpoints that rayssl wrote."
        ) from None
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{folder}: can't be read ({reason}). If there is no other checkpoint that can, start over with --fresh."
        ) from None


def _load_tensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    # torch does not look at the archive's checksums: a flipped bit would be a weight, silently.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path.name} is damaged: the checksum of {damaged} is wrong")
    tensors = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(tensors, dict) or set(tensors) != _CONTENT:
        raise ValueError(f"{path.name} must hold {', '.join(sorted(_CONTENT))}")
    return tensors
