"""Run folders: one for each pre-training, named by the recipe and a hash of the resolved config."""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayssl.config import ExperimentConfig
from rayssl.errors import ConfigError
from rayssl.recipe_file import to_yaml

_CONFIG = "config.yaml"
_REPORT = "report.json"
_LOCK = ".lock"
_RESULT_IS_THE_SAME: dict[str, Any] = {
    "storage_path": True,
    "data": {"cache_path"},
    "cluster": {"timeout_s", "bucket_mib"},
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
        """Keep a second process from writing the same run.

        Raises:
            ConfigError: If another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path}: this run is being trained by another process. Wait for it, or change the config."
                ) from None
            yield


def open_run(config: ExperimentConfig, *, fresh: bool = False) -> RunFolder:
    """Choose the run's folder: the newest of its name if it is not finished, else the next free suffix (-2, -3, ...).

    Args:
        config: The resolved config.
        fresh: Take a new folder even if the newest one is not finished; the old one is left as it is.

    Raises:
        ConfigError: If the folder can't be made.
    """
    base = _base(config)
    runs = _started(base)
    newest = runs[-1] if runs else RunFolder(base)
    run = RunFolder(_suffixed(base, len(runs) + 1)) if newest.finished or (fresh and newest.started) else newest
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / _CONFIG).write_text(to_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"storage_path: must be a folder that can be written, got {config.storage_path} ({error.strerror})"
        ) from None
    return run


def finished_run(config: ExperimentConfig) -> RunFolder | None:
    """The newest finished run of a config; None if there is none."""
    return next((run for run in reversed(_started(_base(config))) if run.finished), None)


def newest_run(name: str, *, storage_path: Path) -> RunFolder | None:
    """The run of a recipe's name that was begun last; None if there is none."""
    runs = [
        path.parent
        for path in storage_path.expanduser().glob(f"{name}-*/{_CONFIG}")
        if _ID.fullmatch(path.parent.name.removeprefix(f"{name}-"))
    ]
    return RunFolder(max(runs, key=lambda path: (path / _CONFIG).stat().st_mtime_ns)) if runs else None


def _base(config: ExperimentConfig) -> Path:
    return config.storage_path.expanduser().resolve() / f"{config.name}-{_fingerprint(config)}"


def _started(base: Path) -> list[RunFolder]:
    """The runs of a config, oldest first."""
    runs: list[RunFolder] = []
    while RunFolder(_suffixed(base, len(runs) + 1)).started:
        runs.append(RunFolder(_suffixed(base, len(runs) + 1)))
    return runs


def _suffixed(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _fingerprint(config: ExperimentConfig) -> str:
    """Eight hex digits that two configs share only if they agree in all that decides a run's result."""
    resolved: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude=_RESULT_IS_THE_SAME)
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:8]
