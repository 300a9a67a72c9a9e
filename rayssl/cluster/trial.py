"""What a trial's process runs, inside Ray Tune or on workers of its own, and what evaluates the winner."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from rayssl.cluster.environment import enter_directory
from rayssl.cluster.proposals import TRIAL
from rayssl.cluster.trial_runtime import FinishedRuntime, GroupTrialRuntime, TrialRuntime
from rayssl.config import ExperimentConfig
from rayssl.errors import CheckpointError, RaysslError
from rayssl.experiment import run_experiment
from rayssl.recipe_file import to_yaml
from rayssl.report import Report
from rayssl.search_space import StageStore, Study, total_epochs

MISTAKE = "mistake.json"
"""File of a trial's folder: why it can't go on."""
_STAGES = "stages"


@dataclass(frozen=True)
class _Trial:
    """What a trial's process has to know."""

    config: ExperimentConfig
    folder: Path
    metric: str
    stages: Path | None
    """Where trials leave their stages for each other; None: nowhere."""


def run_trial(study: Study, folder: Path, values: dict[str, Any]) -> None:
    """What Tune runs. A user's mistake is written down, so that it is not tried again as if a node had been lost."""
    name = tune.get_context().get_trial_name()  # with pbt the config may be another trial's
    own = folder / "trials" / name
    own.mkdir(parents=True, exist_ok=True)
    (own / MISTAKE).unlink(missing_ok=True)
    try:
        full = study.config({key: value for key, value in values.items() if key != TRIAL})
        config = full.model_copy(update={"evaluations": ()})  # the winner alone meets the test pictures
        (own / "config.yaml").write_text(to_yaml(config))
        stages = folder / _STAGES if study.reuse and study.tune.scheduler != "pbt" else None
        trial = _Trial(config, own, study.tune.metric, stages)
        if config.cluster.most_workers > 1:
            _train_in_group(trial)
        else:
            _train_here(trial)
    except RaysslError as error:
        (own / MISTAKE).write_text(json.dumps(str(error)))
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
        report: Report = ray.get(task.remote(config, own, end))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaysslError):
            raise error.cause from None
        raise
    return report


def _train_here(trial: _Trial) -> None:
    settings = trial.config.cluster
    runtime = TrialRuntime(
        trial.folder,
        num_threads=settings.cpus_per_worker,
        use_gpu=settings.gpus_per_worker > 0,
        metric=trial.metric,
        epochs=total_epochs(trial.config),
        store=StageStore(trial.stages, trial.config) if trial.stages else None,
    )
    run_experiment(trial.config, runtime)


def _train_in_group(trial: _Trial) -> None:
    class TellTune(TuneReportCallback):
        """Tells Tune of the epochs that measured the metric."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if trial.metric in metrics[0]:
                super().after_report(run_context, metrics, None)

    store = StageStore(trial.stages, trial.config) if trial.stages else None
    settings = trial.config.cluster
    resources = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    trainer = TorchTrainer(
        _work_in_group,
        train_loop_config={"trial": trial, "directory": Path.cwd(), "start": store.find() if store else None},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers, use_gpu=settings.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(trial.folder),
            callbacks=[TellTune()],
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError:
        if not (trial.folder / MISTAKE).exists():
            raise


def _work_in_group(arguments: dict[str, Any]) -> None:
    """What each of a trial's workers runs; a mistake ends them all, since the others would wait for this one."""
    trial: _Trial = arguments["trial"]
    if (trial.folder / MISTAKE).exists():  # started again, as if a worker had been lost
        return
    enter_directory(arguments["directory"])
    try:
        runtime = GroupTrialRuntime(
            trial.folder,
            num_threads=trial.config.cluster.cpus_per_worker,
            epochs=total_epochs(trial.config),
            start=arguments["start"],
            store=StageStore(trial.stages, trial.config) if trial.stages else None,
        )
        run_experiment(trial.config, runtime)
    except RaysslError as error:
        (trial.folder / MISTAKE).write_text(json.dumps(str(error)))
        raise


def _evaluate(config: ExperimentConfig, folder: Path, end: Path) -> Report:
    settings = config.cluster
    (folder / "config.yaml").write_text(to_yaml(config))
    use_gpu = settings.gpus_per_worker > 0
    return run_experiment(
        config, FinishedRuntime(folder, num_threads=settings.cpus_per_worker, use_gpu=use_gpu, end=end)
    )
