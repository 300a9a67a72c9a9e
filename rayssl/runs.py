"""Run folders: one for each pre-training, named by the recipe and a hash of the resolved config."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayssl.config import ExperimentConfig
from rayssl.errors import ConfigError
from rayssl.files import write_whole
from rayssl.object_store import ObjectStore, open_store
from rayssl.recipe_file import to_yaml
from rayssl.storage import LOCK, StoragePath, in_job, is_address, lasting, locked, parse_storage_path, split_run_address

_CONFIG = "config.yaml"
_REPORT = "report.json"
_RESULT_IS_THE_SAME: dict[str, Any] = {
    "storage_path": True,
    "data": {"cache_path"},
    "cluster": {"timeout_s", "wait_s", "bucket_mib"},
}
"""Settings that don't decide a run's result: where things lie, and how long is waited."""
_ID = re.compile(r"[0-9a-f]{8}(-\d+)?")


@dataclass(frozen=True)
class RunFolder:
    """Where everything of a run lies.

    config.yaml (resolved), history.jsonl (a row an epoch), report.md and report.json (when it is finished), encoder.pt,
    stage-1/, stage-2/, ... (the encoder at each stage's end), checkpoints/ or ray/ (what a restart needs).
    """

    path: Path
    store: ObjectStore | None = field(default=None, compare=False)
    """Where it is kept, if the folder is a working copy of that."""

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """True when the run has come to its end."""
        return (self.path / _REPORT).exists()

    @property
    def started(self) -> bool:
        """True when the run has been begun before."""
        return (self.path / _CONFIG).exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process of this machine from writing the same run; the folder is what the store has then.

        Raises:
            ConfigError: If another process has it.
            CheckpointError: If the store can't be reached.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        taken = f"{self.path}: this run is being trained by another process. Wait for it, or change the config."
        with locked(self.path / LOCK, taken):
            if self.store is not None:
                self.store.pull(self.path)
            yield

    def keep(self) -> None:
        """Bring what is new in the folder to the store, if there is one.

        Raises:
            CheckpointError: If it can't be reached.
        """
        if self.store is not None:
            self.store.push(self.path)


def open_run(config: ExperimentConfig, *, fresh: bool = False) -> RunFolder:
    """Choose the run's folder: the newest of its name if it is not finished, else the next free suffix (-2, -3, ...).

    Args:
        config: The resolved config.
        fresh: Take a new folder even if the newest one is not finished; the old one is left as it is.

    Raises:
        ConfigError: If the folder can't be made or would not outlive a job, or the object store can't be written.
    """
    if in_job():
        lasting(config.storage_path)
    base, store = _base(config), open_store(config.storage_path)
    if store is not None:
        store.check()
        store.refresh(base.name)
    runs = _started(base, store)
    newest = runs[-1] if runs else RunFolder(base, store)
    if newest.finished or (fresh and newest.started):
        newest = RunFolder(_suffixed(base, len(runs) + 1), store)
    run = newest
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_whole(run.path / _CONFIG, to_yaml(config))
    except OSError as error:
        if store is not None:
            raise ConfigError(
                f"storage_path: {base.parent}, the working copy of {config.storage_path}, can't be written "
                f"({error.strerror}). Set XDG_CACHE_HOME to a folder that can"
            ) from None
        raise ConfigError(
            f"storage_path: must be a folder that can be written, got {config.storage_path} ({error.strerror})"
        ) from None
    if store is not None:
        store.push(run.path / _CONFIG)
    return run


def finished_run(config: ExperimentConfig) -> RunFolder | None:
    """The newest finished run of a config, brought here if it is kept elsewhere; None if there is none."""
    base, store = _base(config), open_store(config.storage_path)
    if store is not None:
        store.refresh(base.name)
    found = next((run for run in reversed(_started(base, store)) if run.finished), None)
    if found is not None and store is not None:
        store.pull(found.path, unless_locked=True)
    return found


def newest_run(name: str, *, storage_path: Path) -> RunFolder | None:
    """The run of a recipe's name that was begun last; None if there is none, or if it is no name but a path."""
    if Path(name).name != name:
        return None
    runs = [
        path.parent
        for path in storage_path.expanduser().glob(f"{name}-*/{_CONFIG}")
        if _ID.fullmatch(path.parent.name.removeprefix(f"{name}-"))
    ]
    return RunFolder(max(runs, key=lambda path: (path / _CONFIG).stat().st_mtime_ns)) if runs else None


def locate(text: str, *, storage_path: StoragePath) -> tuple[str, StoragePath]:
    """A RUN of the command line and the storage to look for it in: an address names both.

    Raises:
        ConfigError: If it is no address of a run, or of another object store than `storage_path`.
    """
    if not is_address(text):
        return text, storage_path
    address, name = split_run_address(text)
    own = parse_storage_path(address)
    if isinstance(storage_path, str) and storage_path != own:
        raise ConfigError(f"run '{text}': is not in {storage_path}. Leave storage_path out, it is {own}")
    return name, own


def bring_run(text: str, *, storage_path: StoragePath) -> None:
    """If runs are kept in an object store, bring the one here that a RUN of the command line names, an id, a part
    of a run (ID/stage-2) or a recipe's name.

    Raises:
        ConfigError: If the store can't be used, or the text leads out of it.
        CheckpointError: If it can't be reached.
    """
    store = open_store(storage_path)
    if store is None or Path(text).expanduser().exists():
        return
    store.check()
    store.refresh()
    newest = newest_run(text, storage_path=store.folder)
    path = newest.path if newest is not None else store.path_of(text.split("/", maxsplit=1)[0])
    if path.name in store.names():
        store.pull(path, unless_locked=True)


def _base(config: ExperimentConfig) -> Path:
    return config.storage_folder.expanduser().resolve() / f"{config.name}-{_fingerprint(config)}"


def _started(base: Path, store: ObjectStore | None) -> list[RunFolder]:
    """The runs of a config, oldest first."""
    runs: list[RunFolder] = []
    while RunFolder(_suffixed(base, len(runs) + 1)).started:
        runs.append(RunFolder(_suffixed(base, len(runs) + 1), store))
    return runs


def _suffixed(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _fingerprint(config: ExperimentConfig) -> str:
    """Eight hex digits that two configs share only if they agree in all that decides a run's result."""
    resolved: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude=_RESULT_IS_THE_SAME)
    if config.training.accumulate == 1:  # younger than runs that shall be found again
        del resolved["training"]["accumulate"]
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:8]
