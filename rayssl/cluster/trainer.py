"""The TorchTrainer of a run, or of a trial of several workers."""

import json
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from rayssl.cluster.board import last_line, post
from rayssl.cluster.network import NodeNetworkConfig
from rayssl.config import ClusterConfig
from rayssl.runtime import KEPT_CHECKPOINTS
from rayssl.storage import is_address

_FOLDER = "ray"
_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's list of a run's checkpoints, in its folder."""


def build_trainer(
    work: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    settings: ClusterConfig,
    *,
    storage_path: str,
    callbacks: Sequence[ray.train.UserCallback] = (),
    has_dashboard: bool = True,
) -> TorchTrainer:
    """A trainer that starts lost workers again from the last checkpoint.

    Args:
        work: What every worker runs.
        arguments: What it is given; its "board" is told why workers end.
        settings: Workers and what each of them has.
        storage_path: Where Ray's own state lies, in a folder "ray".
        callbacks: More that is called in Train's controller.
        has_dashboard: Whether the cluster has one.
    """
    if not is_address(storage_path) and _is_misleading(listed := Path(storage_path) / _FOLDER / _SNAPSHOT):
        listed.replace(listed.with_suffix(".damaged"))
        post(
            arguments["board"], f"warning: {listed} is damaged or names checkpoints that are gone, and was moved aside"
        )
    resources = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    return _Trainer(
        work,
        has_dashboard=has_dashboard,
        torch_config=NodeNetworkConfig(timeout_s=int(settings.timeout_s)),  # NCCL on GPUs, gloo on CPUs
        train_loop_config=arguments,
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, use_gpu=settings.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_FOLDER,
            storage_path=storage_path,
            callbacks=[*callbacks, TellLosses(arguments["board"])],
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _is_misleading(listed: Path) -> bool:
    """Whether Ray, which writes its list in place and trusts it, could not start with it."""
    try:
        names = [result["checkpoint_dir_name"] for result in json.loads(listed.read_bytes())["checkpoint_results"]]
        return not all((listed.parent / name).is_dir() for name in names)
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return True


class TellLosses(ray.train.UserCallback):
    """Tells the board why a group of workers ends; runs in Train's controller."""

    def __init__(self, board: "ray.actor.ActorHandle") -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called when workers have failed, before they are started again."""
        lines = {rank: f"{type(error).__name__}: {last_line(error)}" for rank, error in worker_exceptions.items()}
        self._board.note_loss.remote(lines)


class _Trainer(TorchTrainer):
    """Does without Ray's cleaner of placement groups where there is no dashboard, and gives back Ctrl-C at its end.

    The cleaner asks the dashboard whether the run still lives. Without one it can't do its work, and every run waited
    12 s at its end for it to give up asking.
    """

    def __init__(self, *arguments: Any, has_dashboard: bool, **settings: Any) -> None:
        self._has_dashboard = has_dashboard
        super().__init__(*arguments, **settings)

    def fit(self) -> Any:
        """Ray would leave its handler of SIGINT behind, which starts a new Ray where the run's is gone."""
        before = signal.getsignal(signal.SIGINT)
        try:
            return super().fit()
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if self._has_dashboard:
            return callbacks
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]
