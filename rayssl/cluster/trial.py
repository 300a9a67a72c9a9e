"""What a trial's process runs, inside Ray Tune or on workers of its own, and what evaluates the winner."""

import json
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from rayssl.cluster.board import put_up_board, raise_mistake, take
from rayssl.cluster.claims import claimed
from rayssl.cluster.environment import enter_directory
from rayssl.cluster.proposals import TRIAL
from rayssl.cluster.repeating import repeated
from rayssl.cluster.search_board import StopQuestion, find_board
from rayssl.cluster.trainer import build_trainer
from rayssl.cluster.trial_runtime import FinishedRuntime, GroupTrialRuntime, TrialRuntime, write_log
from rayssl.config import ExperimentConfig
from rayssl.errors import CheckpointError, RaysslError, RunStopped
from rayssl.experiment import run_experiment
from rayssl.files import write_whole
from rayssl.recipe_file import to_yaml
from rayssl.report import Report
from rayssl.search_space import StageStore, Study, total_epochs

MISTAKE = "mistake.json"
"""File of a trial's folder: why it can't go on."""
_STAGES = "stages"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Trial:
    """What a trial's process has to know."""

    config: ExperimentConfig
    folder: Path
    metric: str
    stages: Path | None
    """Where trials leave their stages for each other; None: nowhere."""

    @property
    def store(self) -> StageStore | None:
        """The stages of all trials; None: there are none to share."""
        return StageStore(self.stages, self.config) if self.stages is not None else None


def run_trial(study: Study, folder: Path, values: dict[str, Any], *, directory: Path) -> None:
    """What Tune runs. A user's mistake is written down, so that it is not tried again as if a node had been lost.

    Args:
        study: What is searched.
        folder: The search's folder.
        values: What the trial tries, by dotted keys.
        directory: Where the command was typed.
    """
    enter_directory(directory)
    name = tune.get_context().get_trial_name()  # with pbt the config may be another trial's
    own = folder / "trials" / name
    own.mkdir(parents=True, exist_ok=True)
    (own / MISTAKE).unlink(missing_ok=True)
    board = find_board(folder)
    try:
        full = study.config({key: value for key, value in values.items() if key != TRIAL})
        config = full.model_copy(update={"evaluations": ()})  # the winner alone meets the test pictures
        write_whole(own / "config.yaml", to_yaml(config))
        stages = folder / _STAGES if study.reuse and study.tune.scheduler != "pbt" else None
        trial = _Trial(config, own, study.tune.metric, stages)
        if config.cluster.most_workers > 1:
            _train_in_group(trial, board)
        else:
            _train_here(trial, board)
    except RunStopped:
        board.note_stopped.remote(name)
        while True:  # a trial that returns is one that came to its end; the driver ends this process
            time.sleep(_POLL_SECONDS)
    except RaysslError as error:
        write_whole(own / MISTAKE, json.dumps(str(error)))
    finally:
        shutil.rmtree(own / "cache", ignore_errors=True)


def evaluate_winner(config: ExperimentConfig, folder: Path, name: str) -> Report:
    """Run the evaluations of a finished trial's recipe, on a node of the cluster.

    Args:
        config: The trial's recipe with its evaluations.
        folder: The search's folder.
        name: The trial's name.

    Raises:
        CheckpointError: If the trial's last stage is gone.
        RaysslError: What the evaluations raised.
    """
    settings = config.cluster
    own = folder / "trials" / name
    end = StageStore(folder / _STAGES, config).end(own)
    if end is None:
        raise CheckpointError(f"{own}: the checkpoint of its last stage is gone. Run the recipe {own / 'config.yaml'}")
    task = ray.remote(num_cpus=settings.cpus_per_worker, num_gpus=settings.gpus_per_worker)(_evaluate)
    try:
        report: Report = ray.get(task.remote(config, own, end, Path.cwd()))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaysslError):
            raise error.cause from None
        raise
    return report


def _train_here(trial: _Trial, board: Any) -> None:
    settings = trial.config.cluster
    runtime = TrialRuntime(
        trial.folder,
        num_threads=settings.cpus_per_worker,
        use_gpu=settings.gpus_per_worker > 0,
        metric=trial.metric,
        epochs=total_epochs(trial.config),
        store=trial.store,
        is_asked_to_stop=StopQuestion(board),
    )
    run_experiment(trial.config, runtime)


def _train_in_group(trial: _Trial, search_board: Any) -> None:
    class TellTune(TuneReportCallback):
        """Tells Tune of the epochs that measured the metric."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if trial.metric in metrics[0]:
                super().after_report(run_context, metrics, None)

    store, settings = trial.store, trial.config.cluster
    board = put_up_board(settings.timeout_s)
    arguments = {
        "trial": trial,
        "directory": Path.cwd(),
        "start": store.find() if store is not None else None,
        "board": board,
    }
    trainer = build_trainer(_work_in_group, arguments, settings, storage_path=str(trial.folder), callbacks=[TellTune()])
    with claimed(trainer, trial.folder), _passed_on(trial, board, search_board):
        try:
            is_stopped = trainer.fit().return_value
        except ray.train.TrainingFailedError:
            raise_mistake(board)
            if not (trial.folder / MISTAKE).exists():
                raise
            return
    raise_mistake(board)
    if is_stopped:
        raise RunStopped("the search was stopped")


def _passed_on(trial: _Trial, board: Any, search_board: Any) -> AbstractContextManager[None]:
    """Bring word from the workers' board to the search's, and the other way that they shall stop."""
    stopping = StopQuestion(search_board)

    def pass_on() -> None:
        if stopping():
            board.stop.remote()
        for sentence in take(board):
            write_log(trial.folder, sentence)
            search_board.post.remote(trial.folder.name, sentence)

    return repeated(pass_on, _POLL_SECONDS)


def _work_in_group(arguments: dict[str, Any]) -> bool:
    """What each of a trial's workers runs; a mistake ends them all, since the others would wait for this one.

    Returns:
        Whether they were asked to stop.
    """
    trial: _Trial = arguments["trial"]
    # Started again, as if a worker had been lost, after a mistake; the board knows those of checkpoints.
    if (trial.folder / MISTAKE).exists() or ray.get(arguments["board"].first_mistake.remote()) is not None:
        return False
    enter_directory(arguments["directory"])
    try:
        runtime = GroupTrialRuntime(
            trial.folder,
            num_threads=trial.config.cluster.cpus_per_worker,
            epochs=total_epochs(trial.config),
            start=arguments["start"],
            store=trial.store,
            metric=trial.metric,
            board=arguments["board"],
            bucket_mib=trial.config.cluster.bucket_mib,
        )
        run_experiment(trial.config, runtime)
        return False
    except RunStopped:  # raised by all workers, so that none is waited for
        return True
    except RaysslError as error:
        write_whole(trial.folder / MISTAKE, json.dumps(str(error)))
        raise


def _evaluate(config: ExperimentConfig, folder: Path, end: Path, directory: Path) -> Report:
    enter_directory(directory)
    settings = config.cluster
    write_whole(folder / "config.yaml", to_yaml(config))
    use_gpu = settings.gpus_per_worker > 0
    return run_experiment(
        config, FinishedRuntime(folder, num_threads=settings.cpus_per_worker, use_gpu=use_gpu, end=end)
    )
