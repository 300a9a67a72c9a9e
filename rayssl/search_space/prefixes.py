"""Stages that several trials share: the same pictures, seed and settings so far give the same checkpoint."""

import hashlib
import json
import os
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
    common = {**{key: plain[key] for key in _ALWAYS}, "workers": max(1, config.cluster.workers)}
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
    """Where trials leave the checkpoints of their stages for each other: links from fingerprints to folders.

    Args:
        folder: The links' folder, the same for all trials.
        config: The trial's config.
    """

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        self._links = [folder / fingerprint for fingerprint in stage_fingerprints(config)]

    def find(self) -> Path | None:
        """The checkpoint of the longest beginning that a trial has left, None if there is none."""
        # checkpoint.json is looked for, since a link may outlive what it points to.
        return next((link for link in reversed(self._links) if (link / "checkpoint.json").exists()), None)

    def offer(self, run_folder: Path) -> None:
        """Leave the checkpoints of all stages that `run_folder` has finished."""
        for number, link in enumerate(self._links, start=1):
            checkpoint = run_folder / f"stage-{number}"
            if checkpoint.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):  # another trial was first
                    link.symlink_to(os.path.relpath(checkpoint, link.parent))
