"""A whole run on one page: pictures, encoder, stages one after another, evaluations, report."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from rayssl.backbones import Backbone, lay_out, load_weights
from rayssl.clustering.rows import Group
from rayssl.config import ExperimentConfig
from rayssl.data import Pictures
from rayssl.errors import RunStopped
from rayssl.evaluation import AnyEvaluation, Evaluation, GroupEvaluation, OnlineEvaluation, listed_pictures
from rayssl.evaluation.base import BlockEvaluation
from rayssl.evaluation.collapse import collapse_warnings
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation.lists import write_chosen_pictures
from rayssl.evaluation.spread import measure_all, measure_frozen
from rayssl.files import whole_file, write_whole
from rayssl.methods import Method
from rayssl.open_data import OpenPictures, drop_node_cache, open_data
from rayssl.recipe_file import flatten
from rayssl.report import Report
from rayssl.run_state import KeptRuntime, record_again, restore_state, snapshot
from rayssl.runs import open_run
from rayssl.runtime import EpochDone, LocalRuntime, NullTracker, Runtime, Tracker
from rayssl.training.checkpoints import Checkpoint, Cursor, unwritable
from rayssl.training.loop import StageStopped, train_stage
from rayssl.training.stage import frozen_unchanged


def run_experiment(config: ExperimentConfig, runtime: Runtime | None = None, tracker: Tracker | None = None) -> Report:
    """Pre-train, stage after stage, and evaluate; goes on from the last checkpoint where there is one.

    Args:
        config: The resolved recipe.
        runtime: Where it runs and what folder it writes; None: this process alone, in the run's folder.
        tracker: Where numbers are recorded besides the folder; None: nowhere. Only rank 0's is used.

    Returns:
        The report, the same on every worker.

    Raises:
        DataError: If the pictures are missing, unreadable or smaller than the recipe's views.
        CheckpointError: If all checkpoints are damaged, or none can be written.
        RunStopped: If it was asked to stop; a checkpoint is written.
        TrainingError: If the loss is not finite.
    """
    if runtime is None:
        run = open_run(config)
        with run.locked():
            report = run_experiment(config, local_runtime(config, run.path, keep=run.keep), tracker)
            run.keep()
            return report
    tracker = tracker if tracker is not None and runtime.rank == 0 else NullTracker()
    tracker.log_params(flatten(config))
    pictures = open_data(
        config, runtime.folder, rank=runtime.rank, leads_node=runtime.leads_node, barrier=runtime.barrier
    )
    for note in (*_list_bad_files(pictures, runtime), *fitting_evaluations(config, pictures)[1]):
        runtime.show(note)
    encoder = initial_encoder(config).to(runtime.device)
    lay_out(encoder, config.data.image_size)
    # The recipe's number of workers counts, even where one process does all their work, unless it may change.
    workers = runtime.world_size if config.cluster.is_elastic else None
    setting = config.task_setting(pictures.train.classes, workers=workers)
    method = config.method.build(encoder, setting, seed=config.seed)
    restored = restore_state(runtime, method)
    history = restored.history
    record_again(history, method, tracker, runtime.folder)
    online = OnlineEvaluation(
        config.online, pictures.train, pictures.validation, data=config.data, seed=config.seed, runtime=runtime
    )
    for index in range(restored.cursor.stage, method.num_stages):
        if index > restored.cursor.stage and runtime.stopping(method.schedule(index).epochs_before, 0):
            raise RunStopped(f"stopped before stage {index + 1}; the same command goes on from there")
        resume = restored if restored.cursor.stage == index and restored.cursor.inside_stage else None
        run_stage(config, method, index, pictures.train, online, runtime, tracker, history, resume)
    metrics, notes = evaluate_beside_random(config, method, pictures, runtime)
    notes += _list_bad_files(pictures, runtime)  # again: a large set is read while it is trained on
    report = Report(runtime.folder, config.name, history, metrics, notes)
    if runtime.rank == 0:
        _write_results(report, config, encoder, tracker)
    runtime.barrier()
    # As large as the set, and made again in a moment.
    if runtime.rank == 0:
        shutil.rmtree(runtime.folder / "cache", ignore_errors=True)
    if runtime.leads_node:
        drop_node_cache(config, runtime.folder)
    return report


def local_runtime(
    config: ExperimentConfig,
    folder: Path,
    *,
    show: Callable[[object], None] | None = None,
    is_asked_to_stop: Callable[[], bool] | None = None,
    keep: Callable[[], None] = lambda: None,
) -> LocalRuntime:
    """This process as one worker of the config would be.

    Args:
        config: The recipe.
        folder: The run's folder.
        show: Called with what there is to show.
        is_asked_to_stop: Whether the run shall stop.
        keep: Called after every checkpoint, such as `RunFolder.keep`.

    Raises:
        ClusterError: If the config wants a GPU and there is none.
    """
    settings = config.cluster
    return KeptRuntime(
        folder,
        keep=keep,
        num_threads=settings.cpus_per_worker,
        use_gpu=settings.gpus_per_worker > 0,
        bucket_mib=settings.bucket_mib,
        show=show,
        is_asked_to_stop=is_asked_to_stop,
    )


def run_stage(
    config: ExperimentConfig,
    method: Method,
    index: int,
    pictures: Pictures,
    online: OnlineEvaluation,
    runtime: Runtime,
    tracker: Tracker,
    history: list[dict[str, float]],
    resume: Checkpoint | None,
) -> None:
    """Train one stage and add a row an epoch to `history`; after each epoch measure, record, save and report.

    Raises:
        RunStopped: If the run was asked to stop; a checkpoint is written.
    """
    plan = method.prepare(index, pictures, runtime, optimizer=config.optimizer)
    stage, schedule = plan.stage, method.schedule(index)
    optimizer = plan.optimizer.build(stage)
    if resume is not None:
        stage.head.load_state_dict(resume.head)
        optimizer.load_state_dict(resume.optimizer)
    start = resume.cursor if resume is not None else Cursor(index)
    take = partial(snapshot, config=config, method=method, history=history)
    leads = runtime.rank == 0
    child = tracker.child(method.name_of(index))
    child.log_params(method.settings_of(index))
    for record in (tracker, child):
        record.log_metrics(plan.facts, step=schedule.epochs_before)
    for path in plan.pictures:
        child.log_artifact(path)
    for warning in plan.warnings:
        runtime.show(f"warning: {warning}")
    with frozen_unchanged(stage):
        epochs = train_stage(
            stage,
            plan.loader,
            runtime,
            optimizer,
            settings=plan.optimizer,
            schedule=schedule,
            precision=config.training.precision,
            start_epoch=start.epoch,
            start_step=start.step,
            unfinished=resume.unfinished if resume is not None else None,
        )
        try:
            for epoch, metrics in enumerate(epochs, start=start.epoch + 1):
                last = epoch == schedule.epochs
                if plan.measured and (last or epoch % config.online.every == 0):
                    metrics.update(online.measure(method.encoder, stage.last_block))
                history.append({"stage": index + 1, "epoch": schedule.epochs_before + epoch, **metrics})
                for record in (tracker, child):
                    record.log_metrics(metrics, step=schedule.epochs_before + epoch)
                runtime.show(EpochDone(history[-1], method.num_stages, schedule.epochs_run))
                for remark in (*collapse_warnings(metrics), *method.remarks(index, metrics)):
                    runtime.show(f"warning: {remark}")
                if not last:
                    due = leads and epoch % config.training.checkpoint_every == 0
                    here = Cursor(index, epoch)
                    save = take(cursor=here, stage=stage, optimizer=optimizer) if due else None
                    runtime.report(metrics, save, in_background=True)
        except StageStopped as stop:
            here = Cursor(index, stop.epoch, stop.step)
            save = take(cursor=here, stage=stage, optimizer=optimizer, unfinished=stop.unfinished) if leads else None
            runtime.report(history[-1] if history else {}, save)
            raise RunStopped(
                f"stopped in stage {index + 1}, epoch {schedule.epochs_before + stop.epoch + 1}, after {stop.step} of "
                f"{plan.loader.num_steps} steps; the same command goes on from there"
            ) from None
    for path in method.draw(index, pictures, runtime):
        child.log_artifact(path)
    # Only once the frozen blocks are found unchanged is the stage's end a place to go on from.
    runtime.settle()
    save = take(cursor=Cursor(index + 1)) if leads else None
    if save is not None:
        save(runtime.folder / f"stage-{index + 1}")
        child.log_artifact(runtime.folder / f"stage-{index + 1}", "checkpoint")
    runtime.report(history[-1], save)
    child.finish()


def initial_encoder(config: ExperimentConfig) -> Backbone:
    """The encoder that training starts from, with the recipe's `initial_weights` if it names any.

    Raises:
        CheckpointError: If their file is missing, unreadable or another network's.
    """
    encoder = build_encoder(config)
    if config.initial_weights is not None:
        load_weights(encoder, config.initial_weights)
    return encoder


def build_encoder(config: ExperimentConfig) -> Backbone:
    """The encoder with random weights; the same ones for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return config.backbone.build().to(memory_format=torch.channels_last)


def evaluate_beside_random(
    config: ExperimentConfig, method: Method, pictures: OpenPictures, runtime: Runtime
) -> tuple[dict[str, float], list[str]]:
    """Run the recipe's evaluations on the encoder, on those it is compared with and on what it was before training.

    Returns:
        Metrics, those of the untrained network under "random/", and notes for the reader.
    """
    told = pictures.told
    evaluations, skipped = fitting_evaluations(config, pictures)
    if told is None or not evaluations:
        return {}, skipped
    networks = {
        "": method.encoder,
        **method.compared_encoders(),
        "random/": build_encoder(config).to(runtime.device),
    }
    runtime.show(f"{', '.join(each.name for each in evaluations)} of the trained and of a random network ...")
    apart = [each for each in evaluations if not isinstance(each, GroupEvaluation)]
    metrics = _evaluate_frozen(config, apart, networks, pictures.train, told, runtime)
    remarks: list[str] = []
    for each in evaluations:
        if isinstance(each, GroupEvaluation):
            metrics |= _evaluate_together(config, each, networks, pictures, told, runtime, remarks)
    where = "the data set's test split" if pictures.test is not None else "training pictures held out"
    if runtime.rank == 0:
        for alone in apart:
            write_chosen_pictures(
                alone, config.data, pictures.train, data_seed=config.seed, seeds=[config.seed], folder=runtime.folder
            )
    notes = [
        f"{each.describe(pictures.train, told)} Tested on {len(told):,} pictures ({where})."
        f"{_summary(each, metrics, networks)}"
        for each in evaluations
    ]
    return metrics, notes + remarks + skipped


def _evaluate_frozen(
    config: ExperimentConfig,
    evaluations: Sequence[Evaluation],
    networks: Mapping[str, Backbone],
    train: Pictures,
    told: Pictures,
    runtime: Runtime,
) -> dict[str, float]:
    """Measure every network by every evaluation, with all workers."""

    def measure(prefix_and_store: tuple[str, FeatureStore], part: Evaluation, group: Group) -> dict[str, float]:
        prefix, features = prefix_and_store
        return measure_frozen(
            part,
            networks[prefix],
            train,
            told,
            data=config.data,
            seed=config.seed,
            device=runtime.device,
            features=features,
            group=group,
        )

    items = []
    for each in evaluations:
        blocks = each.blocks if isinstance(each, BlockEvaluation) else ()
        features = FeatureStore(runtime.folder / "cache" / "features", expected_blocks=blocks, show=runtime.show)
        items += [((prefix, features), each) for prefix in networks]
    results = measure_all(measure, items, runtime)
    return {
        f"{prefix}{name}": value
        for ((prefix, _), _), metrics in zip(items, results, strict=True)
        for name, value in metrics.items()
    }


def _evaluate_together(
    config: ExperimentConfig,
    evaluation: GroupEvaluation,
    networks: Mapping[str, Backbone],
    pictures: OpenPictures,
    told: Pictures,
    runtime: Runtime,
    remarks: list[str],
) -> dict[str, float]:
    """Measure one network after another with all workers; the run's own leaves its drawn examples."""
    lists = listed_pictures(config.data, pictures.train, told, data_seed=config.seed)
    metrics: dict[str, float] = {}
    for prefix, network in networks.items():
        outcome = evaluation.evaluate_together(
            network,
            *lists,
            data=config.data,
            seed=config.seed,
            shuffled=False,
            runtime=runtime,
            folder=None if prefix else runtime.folder / "evaluations" / evaluation.name / "examples",
        )
        metrics |= {f"{prefix}{name}": value for name, value in outcome.metrics.items()}
        new = [note for note in outcome.notes if note not in remarks]
        remarks += [f"{prefix.removesuffix('/')}: {note}" if prefix else note for note in new]
    return metrics


def fitting_evaluations(config: ExperimentConfig, pictures: OpenPictures) -> tuple[list[AnyEvaluation], list[str]]:
    """The recipe's evaluations that can run on its pictures, and a sentence for each that can't.

    Raises:
        DataError: If an evaluation needs more than the pictures, such as annotations, and finds it damaged.
        ConfigError: If the workers can't share the work of one.
    """
    fitting, skipped = [], []
    for evaluation in config.evaluations:
        reason = "no pictures were held out to test on"
        unfit = reason if pictures.told is None else evaluation.unfit(pictures.train, pictures.told)
        if unfit is None:
            if isinstance(evaluation, GroupEvaluation) and pictures.told is not None:
                lists = listed_pictures(config.data, pictures.train, pictures.told, data_seed=config.seed)
                for num_workers in config.cluster.group_sizes:
                    evaluation.check(*lists, num_workers=num_workers)
            fitting.append(evaluation)
        else:
            skipped.append(f"The evaluation {evaluation.name} is skipped: {unfit}.")
    return fitting, skipped


def _summary(evaluation: AnyEvaluation, metrics: Mapping[str, float], networks: Mapping[str, Backbone]) -> str:
    """The numbers of a protocol whose blocks no table shows: " NAME: 31.2 % (random 12.0 %)."."""
    if evaluation.name == "linear_probe":
        return ""
    names = [
        name
        for name in metrics
        if name.startswith(f"{evaluation.name}/")
        and ("/best/" in name or evaluation.name in ("semi_supervised", "detection"))
        and "/ap/" not in name
    ]
    others = [prefix for prefix in networks if prefix]
    return "".join(
        f" {name}: {metrics[name]:.1%} ("
        + ", ".join(
            f"{prefix.removesuffix('/')} {f'{metrics[key]:.1%}' if (key := prefix + name) in metrics else 'none'}"
            for prefix in others
        )
        + ")."
        for name in names
    )


def _list_bad_files(pictures: OpenPictures, runtime: Runtime) -> list[str]:
    """Write down the pictures that any worker could not read; a sentence about them, if there are any."""
    splits = [split for split in (pictures.train, pictures.validation, pictures.test) if split is not None]
    lists = runtime.gather([f"{file.path}: {file.reason}" for split in splits for file in split.bad_files])
    lines = sorted({line for lines in lists for line in lines})
    if not lines:
        return []
    path = runtime.folder / "bad_files.txt"
    if runtime.rank == 0:
        path.write_text("\n".join(lines) + "\n")
    return [f"{len(lines)} pictures can't be read and are left out; {path} lists them."]


def _write_results(report: Report, config: ExperimentConfig, encoder: Backbone, tracker: Tracker) -> None:
    """Write the run's last files and record them.

    report.json comes last of all, when nothing is left to record: it says that the run is finished, and the same
    command then starts another one.

    Raises:
        CheckpointError: If encoder.pt can't be written.
    """
    folder = report.folder
    weights = {name: tensor.cpu() for name, tensor in encoder.state_dict().items()}
    try:
        with whole_file(folder / "encoder.pt") as place:
            torch.save(weights, place)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when the disk is full
        raise unwritable(folder / "encoder.pt", error) from None
    write_whole(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in report.history))
    write_whole(folder / "report.md", report.to_markdown())
    tracker.log_metrics(report.metrics, step=len(report.history))
    for name in ("config.yaml", "history.jsonl", "report.md", "bad_files.txt", "encoder.pt"):
        if (folder / name).exists():
            tracker.log_artifact(folder / name)
    plain = config.backbone.build().eval()  # without what training put in, such as BatchNorm over the workers
    plain.load_state_dict(weights)
    tracker.log_model(plain.portable(), "encoder")
    with tempfile.TemporaryDirectory() as elsewhere:
        copy = Path(elsewhere, "report.json")
        copy.write_text(report.to_json())
        tracker.log_artifact(copy)
        tracker.finish()
    report.write()
