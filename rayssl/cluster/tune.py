"""The trials of a search on Ray Tune: started, stopped early, started again after a crash of the driver."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rayssl.cluster.environment import ray_cluster
from rayssl.config import ClusterConfig
from rayssl.errors import RunStopped
from rayssl.search_space import Study, Values, total_epochs

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interruption is ours to handle
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # what a killed driver may have forgotten; 10 s or more by default
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a recipe are the driver's
}
_STATE = "tune"


class Listener(Protocol):
    """Told of the trials as they go, in the driver's process. Must not raise."""

    def started(self, name: str, values: Values) -> None:
        """A trial begins, or goes on."""

    def measured(self, name: str, values: Values, row: Values) -> None:
        """An epoch of a trial measured the metric; with pbt the values may have changed."""

    def said(self, name: str, sentence: str) -> None:
        """Something happened to a trial that a person wants to know, such as a lost worker."""

    def ended(self, name: str, mistake: str | None) -> None:
        """A trial is over: at its end, stopped early, or with a mistake."""


@contextmanager
def search_cluster(study: Study) -> Iterator[None]:
    """The Ray cluster of a search, for as long as the body runs.

    Raises:
        ClusterError: If it can't be reached or can't hold one trial.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    one = _trial_cluster(study)
    with ray_cluster(one, nested=one.most_workers > 1):
        yield


def run_trials(study: Study, folder: Path, *, listener: Listener, resume: bool, asked_to_stop: threading.Event) -> None:
    """Run all trials of a study, or those that are left; inside `search_cluster`.

    Args:
        study: What is searched.
        folder: The search's folder, on a file system that all nodes see.
        listener: Told of the trials.
        resume: Go on with what `folder` holds; finished and stopped trials stay as they are.
        asked_to_stop: Set when the search shall stop.

    Raises:
        ConfigError: If the study needs optuna and it is not installed.
        RunStopped: If it was asked to stop; trials have written checkpoints, as far as there was time for that.
    """
    from ray import tune

    from rayssl.cluster.callback import Announcer, Desk, describe_crash, read_mistake
    from rayssl.cluster.search_board import opened_board

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a crashed trial is told by the listener
    # Tune would make one trial at a time, each only once the one before has started.
    waiting = len(study.samples()) if study.tune.pauses else trials_at_a_time(study)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(waiting)
    trainable = _make_trainable(study, folder)
    state = folder / _STATE
    # Tune writes its first state with the first trial; killed before that, there is nothing to go on with.
    if resume and list(state.glob("experiment_state-*.json")):
        tuner = tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True, resume_errored=True)
    else:
        shutil.rmtree(state, ignore_errors=True)
        tuner = _make_tuner(study, folder, trainable)
    with opened_board(folder) as board:
        Announcer.desk = Desk(folder, listener=listener, board=board, asked_to_stop=asked_to_stop)
        try:
            results = tuner.fit()
        finally:
            Announcer.desk = None
    if asked_to_stop.is_set():
        raise RunStopped("the search was stopped; its trials go on from their checkpoints")
    for result in results:  # what ended while no driver was there to hear it
        if result.path is not None:
            name = Path(result.path).name
            crash = None if result.error is None else describe_crash(name, str(result.error))
            listener.ended(name, crash or read_mistake(folder, name))


def trials_at_a_time(study: Study) -> int:
    """How many trials run at once: on Ray's cluster once it is joined or started, before that on this machine."""
    import ray

    cluster = _trial_cluster(study)
    if ray.is_initialized():
        has = ray.cluster_resources()
    else:
        import torch

        has = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    fitting = has.get("CPU", 1) // (cluster.most_workers * cluster.cpus_per_worker)
    if cluster.gpus_per_worker:
        fitting = min(fitting, has.get("GPU", 0) // (cluster.most_workers * cluster.gpus_per_worker))
    return max(1, min(int(fitting), study.tune.concurrency or int(fitting)))


def _make_tuner(study: Study, folder: Path, trainable: Any) -> Any:
    from ray import tune

    from rayssl.cluster.callback import Announcer
    from rayssl.cluster.proposals import TRIAL, ListedProposals, OptunaProposals
    from rayssl.cluster.schedulers import make_scheduler, make_stopper

    samples = study.samples()
    settings = study.tune
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=settings.metric,
            mode=settings.mode,
            search_alg=OptunaProposals(study) if settings.algorithm == "optuna" else ListedProposals(samples),
            scheduler=make_scheduler(study, longest=max(total_epochs(study.config(values)) for values in samples)),
            num_samples=settings.num_samples if settings.algorithm == "optuna" else len(samples),
            # Trials that are paused count as well, and wait for those that this would keep from starting.
            max_concurrent_trials=None if settings.pauses else trials_at_a_time(study),
            time_budget_s=settings.time_budget_s,
            reuse_actors=_trial_cluster(study).workers == 1,  # saves the imports of all trials but the first ones
            trial_name_creator=lambda trial: trial.config[TRIAL],
            trial_dirname_creator=lambda trial: trial.config[TRIAL],
        ),
        run_config=tune.RunConfig(
            name=_STATE,
            storage_path=str(folder),
            verbose=0,
            callbacks=[Announcer()],
            stop=make_stopper(study),
            failure_config=tune.FailureConfig(max_failures=study.base.cluster.max_failures),
            # With pbt others may still want to start from an older one.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if settings.scheduler == "pbt" else 2),
        ),
    )


def _make_trainable(study: Study, folder: Path) -> Any:
    from ray import tune

    from rayssl.cluster.trial import run_trial

    directory = Path.cwd()

    def trial(config: dict[str, Any]) -> None:
        run_trial(study, folder, config, directory=directory)

    cluster = _trial_cluster(study)
    resources = {"CPU": float(cluster.cpus_per_worker)}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    # A trial that starts workers only waits for them, but Tune wants every trial to take something.
    return tune.with_resources(trial, {"memory": 2**20} if cluster.most_workers > 1 else resources)


def _trial_cluster(study: Study) -> ClusterConfig:
    """The recipe's cluster with a trial's workers; a trial without workers is one itself."""
    cluster, workers = study.base.cluster, study.tune.workers
    return cluster.model_copy(update={"workers": max(1, cluster.most_workers if workers is None else workers)})
