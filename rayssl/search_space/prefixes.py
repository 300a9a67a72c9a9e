"""Stages that several trials share: the same pictures, seed and settings so far give the same checkpoint."""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayssl.config import ExperimentConfig
from rayssl.methods import MGTAConfig, PSLConfig
from rayssl.methods.mgta_schedule import list_stages

_ALWAYS = ("data", "backbone", "initial_weights", "seed", "optimizer", "training", "online")


def total_epochs(config: ExperimentConfig) -> int:
    """Epochs of all stages of a run."""
    return sum(_epochs(config))


def stage_fingerprints(config: ExperimentConfig) -> list[str]:
    """For each stage what its checkpoint depends on, as 16 hex digits.

    Two runs with the same one have the same weights and the same history at that stage's end. What later stages do is
    left out; a learning-rate schedule over the whole run depends on their epochs.
    """
    plain = config.model_dump(mode="json", by_alias=True)
    common = {**{key: plain[key] for key in _ALWAYS}, "workers": max(1, config.cluster.most_workers)}
    return [_digest({**common, "method": prefix}) for prefix in _method_prefixes(config, plain["method"])]


def _epochs(config: ExperimentConfig) -> list[int]:
    if isinstance(config.method, PSLConfig):
        return [stage.epochs for stage in config.method.stages]
    return [stage.epochs for stage in list_stages(config.method)]


def _method_prefixes(config: ExperimentConfig, method: dict[str, Any]) -> list[Any]:
    """The settings of the method that stages 1 to i depend on, for each i."""
    if isinstance(config.method, PSLConfig):
        stages = method.pop("stages")
        if config.method.schedule_scope == "run":
            method["epochs"] = total_epochs(config)
        return [[method, stages[: index + 1]] for index in range(len(stages))]
    return _mgta_prefixes(config.method, method)


def _mgta_prefixes(config: MGTAConfig, method: dict[str, Any]) -> list[Any]:
    """The baseline knows nothing of clusters, rounds know nothing of the final stage."""
    baseline = {key: method[key] for key in ("name", "baseline", "reduction", "views")}
    rounds = {key: value for key, value in method.items() if key != "final"}
    last = len(list_stages(config)) - 1
    prefixes = [baseline, *([rounds, index] for index in range(1, last)), [method, last]]
    return prefixes[: last + 1]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class StageStore:
    """Where trials leave the checkpoints of their stages for each other: a folder for each fingerprint.

    The first trial to finish a stage leaves it, whole or not at all, and nothing changes it afterwards: trials may find
    and offer at the same time.

    Args:
        folder: The same for all trials of a search.
        config: The trial's config.
    """

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        self._folder = folder
        self._places = [folder / fingerprint for fingerprint in stage_fingerprints(config)]

    def find(self) -> Path | None:
        """The checkpoint of the longest beginning that a trial has left, None if there is none."""
        return next((place for place in reversed(self._places) if place.exists()), None)

    def end(self, run_folder: Path) -> Path | None:
        """The checkpoint of a finished run's last stage, its own or the one it took over; None if it is gone."""
        own = run_folder / f"stage-{len(self._places)}"
        return next((place for place in (own, self._places[-1]) if place.exists()), None)

    def offer(self, run_folder: Path) -> None:
        """Leave the checkpoints of all stages that `run_folder` has finished."""
        for number, place in enumerate(self._places, start=1):
            checkpoint = run_folder / f"stage-{number}"
            if checkpoint.exists() and not place.exists():
                self._leave(checkpoint, place)

    def _leave(self, checkpoint: Path, place: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="partial-", dir=self._folder) as temporary:
            # Links take no room, and what they name stays as it is when the trial writes its stage anew.
            copy = shutil.copytree(checkpoint, Path(temporary) / place.name, copy_function=_link)
            with suppress(OSError):  # another trial was first
                copy.rename(place)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)
