"""A run on Ray Train: one TorchTrainer around `run_experiment`, which goes on when workers are lost."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rayssl.cluster.claims import claimed, counted_often
from rayssl.cluster.environment import enter_directory, ray_cluster
from rayssl.cluster.repeating import repeated
from rayssl.config import ClusterConfig, ExperimentConfig
from rayssl.errors import ClusterError, RaysslError, RunStopped, full_disk
from rayssl.experiment import run_experiment
from rayssl.files import write_whole
from rayssl.object_store import ObjectStore, store_of
from rayssl.report import Report
from rayssl.runtime import Runtime, Tracker
from rayssl.storage import StoragePath

_POLL_SECONDS = 0.3
_LISTEN_SECONDS = 3.0
"""How long a worker that has waited in vain lets others say the same."""


class OnCluster(Protocol):
    """A config that says where it runs, and where runs are kept."""

    @property
    def cluster(self) -> ClusterConfig:
        """The workers."""

    @property
    def storage_path(self) -> StoragePath:
        """A folder, or the address of an object store."""


Settings = TypeVar("Settings", bound=OnCluster)
Result = TypeVar("Result")
Work = Callable[[Settings, Runtime, Tracker | None], Result]


def run_on_ray(
    config: ExperimentConfig,
    folder: Path,
    *,
    tracking_uri: str | None,
    show: Callable[[object], None],
    asked_to_stop: threading.Event | None = None,
) -> Report:
    """Run the experiment on the workers of `config.cluster`; see `work_on_ray`."""
    return work_on_ray(
        run_experiment, config, folder, tracking_uri=tracking_uri, show=show, asked_to_stop=asked_to_stop
    )


def work_on_ray(
    work: Work[Settings, Result],
    config: Settings,
    folder: Path,
    *,
    tracking_uri: str | None,
    show: Callable[[object], None],
    asked_to_stop: threading.Event | None = None,
) -> Result:
    """Run a function on all workers of `config.cluster`.

    Args:
        work: Called on each worker with the config, its runtime and, on rank 0, the tracker.
        config: The resolved settings.
        folder: The run's folder, on a file system that all nodes see, or the working copy of an object store: each
            node then has one of its own, and this one is the store's at the end. Ray's own state lies in its `ray`.
        tracking_uri: The MLflow server; None records nothing.
        show: Called in this process with what rank 0 has to show.
        asked_to_stop: Set when the workers shall stop; None: they never shall.

    Returns:
        What the function gives on rank 0.

    Raises:
        ClusterError: If the cluster can't be reached, is too small, or lost its workers too often.
        RunStopped: If it was asked to stop.
        RaysslError: What the function itself raised on a worker.
    """
    if config.cluster.is_elastic:
        # How long a group of the old size is waited for after a loss, before a smaller one is started.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    store = store_of(config.storage_path, folder)
    with ray_cluster(config.cluster) as has_dashboard:
        import ray.train

        from rayssl.cluster.board import last_line, put_up_board, raise_mistake
        from rayssl.cluster.trainer import build_trainer

        settings = config.cluster
        board = put_up_board(settings.timeout_s)
        arguments = {
            "work": work,
            "config": config,
            "folder": folder,
            "directory": Path.cwd(),
            "tracking_uri": tracking_uri,
            "board": board,
            "store": store,
        }
        storage_path = str(folder) if store is None else store.address_of(folder)
        trainer = build_trainer(
            _train_worker, arguments, settings, storage_path=storage_path, has_dashboard=has_dashboard
        )
        with (
            _shown(board, show, asked_to_stop),
            claimed(trainer, folder),
            counted_often() if settings.is_elastic else nullcontext(),
        ):
            (folder / "error.txt").unlink(missing_ok=True)
            try:
                result = trainer.fit().return_value
            except ray.train.TrainingFailedError as error:
                raise_mistake(board)
                told = last_line(next(iter(getattr(error, "worker_failures", {}).values()), error))
                place = _write_errors(folder, error)
                raise ClusterError(
                    f"the run stopped after {settings.max_failures + 1} attempts (cluster.max_failures); the last "
                    f"ended with: {told}. {place} has all that it said. The run's checkpoints are in {storage_path}; "
                    "the same command goes on from there."
                ) from error
            except ray.exceptions.RayActorError as error:
                place = _write_errors(folder, error)
                raise ClusterError(
                    f"Ray's controller of the run ended with: {last_line(error)}. {place} has all that it said. The "
                    f"run's checkpoints are in {storage_path}; the same command goes on from there."
                ) from error
        raise_mistake(board)
    if store is not None:
        store.pull(folder)
    return result


def _train_worker(arguments: dict[str, Any]) -> Any:
    """What every worker runs.

    A user's mistake goes to the board, so that it is not tried again as if a worker had been lost.
    """
    import ray

    from rayssl.cluster.board import has_waited
    from rayssl.cluster.runtime import TrainRuntime
    from rayssl.tracking import MLflowTracker

    config: OnCluster = arguments["config"]
    folder: Path = arguments["folder"]
    board = arguments["board"]
    store: ObjectStore | None = arguments["store"]
    if ray.get(board.first_mistake.remote()) is not None:
        return None
    enter_directory(arguments["directory"])
    settings = config.cluster
    try:
        runtime = TrainRuntime(
            folder, num_threads=settings.cpus_per_worker, board=board, bucket_mib=settings.bucket_mib, store=store
        )
        tracker = None
        if runtime.rank == 0 and arguments["tracking_uri"] is not None:
            tracker = MLflowTracker.attach(folder, uri=arguments["tracking_uri"], notify=runtime.show)
        result = arguments["work"](config, runtime, tracker)
        runtime.keep()
        return result
    except RaysslError as error:
        ray.get(board.note_mistake.remote(type(error).__name__, str(error)))
        if isinstance(error, RunStopped):  # raised by all workers, so that none is waited for
            return None
        raise
    except RuntimeError as error:
        # The first failure ends the group: this one leaves the others time to say that they have waited as well, so
        # that whoever says nothing is known.
        if has_waited(str(error)):
            ray.get(board.note_waiting.remote(ray.train.get_context().get_world_rank()))
            time.sleep(_LISTEN_SECONDS)
        raise
    except OSError as error:
        mistake = full_disk(error)
        if mistake is not None:
            ray.get(board.note_mistake.remote(type(mistake).__name__, f"{folder}: {mistake}"))
        raise


def _write_errors(folder: Path, error: Exception) -> Path:
    """Keep what workers have said at their end, tracebacks included: on a cluster their own logs go with them."""
    workers = getattr(error, "worker_failures", {})
    texts = [f"worker {rank}: {failure}" for rank, failure in sorted(workers.items())]
    place = folder / "error.txt"
    with suppress(OSError):
        write_whole(place, "\n\n".join([str(error), *texts]) + "\n")
    return place


def _shown(
    board: Any, show: Callable[[object], None], asked_to_stop: threading.Event | None
) -> AbstractContextManager[None]:
    """Show what is posted on a board while the body runs, and pass on that the workers shall stop."""
    from rayssl.cluster.board import take

    def pass_on() -> None:
        if asked_to_stop is not None and asked_to_stop.is_set():
            board.stop.remote()
        for event in take(board):
            with suppress(BrokenPipeError):  # whoever looked has gone; the run goes on, and can still be stopped
                show(event)

    return repeated(pass_on, _POLL_SECONDS)
