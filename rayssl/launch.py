"""From a config to a finished run: its folder, its record in MLflow, and the workers, on Ray or in this process."""

import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from rayssl.addresses import has_secret, without_secrets
from rayssl.config import ExperimentConfig
from rayssl.errors import RunStopped
from rayssl.experiment import initial_encoder, local_runtime, run_experiment
from rayssl.open_data import drop_node_cache, open_data
from rayssl.report import Report
from rayssl.runs import RunFolder, open_run
from rayssl.stopping import asked_to_stop
from rayssl.storage import StoragePath, local_folder
from rayssl.tracking import MLflowTracker, mark_dead_runs, tracking_uri


def pretrain(config: ExperimentConfig, *, fresh: bool = False, show: Callable[[object], None] = print) -> Report:
    """Train and evaluate a recipe, or go on with a run of it that is not finished.

    SIGTERM ends it with a checkpoint, as soon as the workers agree on a step.

    Args:
        config: The resolved recipe.
        fresh: Start a new run even if there is one to go on with.
        show: Called with progress events and sentences for the person who waits.

    Returns:
        The report; its files are in `Report.folder`.

    Raises:
        RaysslError: Any of its kinds; the run is marked as failed in MLflow, or as killed if it was stopped.
    """
    run = open_run(config, fresh=fresh)
    with run.locked():
        show(f"run {run.run_id} in {run.path if run.store is None else run.store.address_of(run.path)}")
        uri = tracking_uri(config.storage_folder)
        tracker = MLflowTracker.open(run.path, uri=uri, notify=show)
        mark_dead_runs(uri, notify=show)
        if run.store is not None:
            show(f"its working copy is {run.path}")
            if uri.startswith("sqlite:"):
                show(f"note: MLFLOW_TRACKING_URI names no server: the record stays on this machine, in {uri}")
        run.keep()
        try:
            with asked_to_stop() as asked:
                return _train(config, run, tracker, show, asked)
        except (KeyboardInterrupt, SystemExit, RunStopped):
            tracker.finish("KILLED")
            raise
        except BaseException:
            tracker.finish("FAILED")
            raise


def _train(
    config: ExperimentConfig,
    run: RunFolder,
    tracker: MLflowTracker,
    show: Callable[[object], None],
    asked: threading.Event,
) -> Report:
    if config.cluster.workers == 0:
        runtime = local_runtime(config, run.path, show=show, is_asked_to_stop=asked.is_set, keep=run.keep)
        report = run_experiment(config, runtime, tracker)
        run.keep()
        return report
    from rayssl.cluster.train import run_on_ray

    open_data(config, run.path)  # mistakes in pictures and weights show here, before any worker is paid for
    if config.initial_weights is not None:
        initial_encoder(config)
    show(f"starting {config.cluster.describe_workers()} on Ray ...")
    report = run_on_ray(config, run.path, tracking_uri=tracker.uri, show=show, asked_to_stop=asked)
    drop_node_cache(config, run.path)  # where no worker ran on this machine
    return report


def mlflow_command(storage_path: StoragePath) -> str:
    """The command that opens the MLflow page of all runs, or where the page is if a server has them."""
    uri = tracking_uri(local_folder(storage_path))
    if uri.startswith("http"):
        return f"the MLflow page is at {without_secrets(uri)}"
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", "5000"]
    if has_secret(uri):  # which everybody on the machine sees in a command
        return f"MLFLOW_BACKEND_STORE_URI=$MLFLOW_TRACKING_URI {shlex.join(command)}"
    return shlex.join([*command[:2], "--backend-store-uri", uri, *command[2:]])
