"""What became of a run that was disturbed, beside one that was not."""

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch
from fault_parts.kinds import Attempt
from fault_parts.place import Place, ray_processes, wait_until
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.util.placement_group import placement_group_table

from rayssl.errors import CheckpointError
from rayssl.training.checkpoints import load_checkpoint

COUNTED = ("metrics_lost", "metrics_doubled", "metrics_changed", "left_over")
"""What a try may leave none of."""
_TIMES = ("images_per_second",)
"""Metrics that no two runs have in common."""
_OF_A_RUN = ("RayTrainWorker", "TrainController", "ProgressBoard", "SynchronizationActor", "DatasetManager")
"""Ray's processes that belong to one run."""


def judge(place: Place, attempt: Attempt, whole: Attempt, *, may_differ: bool = False) -> dict[str, Any]:
    """What became of a run; "seconds_lost" are what each strike cost.

    Args:
        place: Where it ran.
        attempt: The run.
        whole: The undisturbed one.
        may_differ: Whether another number of workers went on, so that sums were made in another order.
    """
    recovered = attempt.code == 0 and (attempt.folder / "encoder.pt").exists()
    outcome: dict[str, Any] = {"recovered": recovered, "equal": None, **dict.fromkeys(COUNTED, 0)}
    outcome["left_over"] = _left_over(place, attempt.folder)
    outcome["seconds_lost"] = round((attempt.seconds - whole.seconds) / max(1, attempt.strikes), 1)
    if attempt.shrunk_after is not None:
        outcome["shrunk_after"] = attempt.shrunk_after
    if not recovered:
        return outcome
    ours, expected = (_recorded(place, each.folder) for each in (attempt, whole))
    outcome["metrics_lost"] = sum(len(values) > len(ours[key]) for key, values in expected.items())
    outcome["metrics_doubled"] = sum(len(values) > len(expected[key]) for key, values in ours.items())
    if not may_differ:
        mine, theirs = (torch.load(each.folder / "encoder.pt", weights_only=True) for each in (attempt, whole))
        outcome["equal"] = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        compared = [key for key in expected if key[1] not in _TIMES]
        outcome["metrics_changed"] = sum(set(expected[key]) != set(ours[key]) for key in compared if key in ours)
    return outcome


def _recorded(place: Place, folder: Path) -> "defaultdict[tuple[str, str, int], list[float]]":
    """The values of each metric of each step in MLflow: of the run and, by their names, of its children."""
    client = MlflowClient(place.tracking_uri)
    parent, children = _records(client, folder)
    values: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in (parent, *children):
        part = str(run.info.run_name).removeprefix(folder.name)
        for name in run.data.metrics:
            for row in client.get_metric_history(run.info.run_id, name):
                values[part, name, row.step].append(row.value)
    return values


def _records(client: MlflowClient, folder: Path) -> tuple[Run, list[Run]]:
    """A run's record in MLflow and those of its stages; a database may have older ones of the same name."""
    parent = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
    of_it = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return parent, list(client.search_runs([parent.info.experiment_id], of_it))


def _left_over(place: Place, folder: Path) -> int:
    """Processes, reservations, open records and damaged or half-written checkpoints that outlive the run."""

    def processes() -> list[int]:
        return [pid for name in _OF_A_RUN for pid in ray_processes(name)]

    def reserved() -> int:
        groups = placement_group_table().values()
        held = sum(group["state"] not in ("REMOVED", "INFEASIBLE") for group in groups)
        return held + (ray.cluster_resources().get("CPU") != ray.available_resources().get("CPU"))

    # Joined only now: a process that has joined prints pages about each node that is killed.
    ray.init(address=place.cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        with suppress(TimeoutError):
            wait_until(lambda: not processes() and not reserved(), 30, "")
        left = len(processes()) + reserved()
    finally:
        ray.shutdown()
    parent, children = _records(MlflowClient(place.tracking_uri), folder)
    left += sum(record.info.status == "RUNNING" for record in (parent, *children))
    left += len([*folder.rglob("*.partial"), *folder.rglob("*.outdated"), *folder.glob("ray_claim")])
    for checkpoint in {path.parent for path in folder.rglob("checkpoint.json")}:
        try:
            load_checkpoint(checkpoint)
        except CheckpointError:
            left += 1
    return left
