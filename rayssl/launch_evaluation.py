"""From the config of an evaluation to its result: on Ray or in this process, filed with the run and in MLflow."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rayssl.addresses import without_secrets
from rayssl.errors import ConfigError
from rayssl.evaluate import EXAMPLES, FEATURES, Measurement, check_pictures, run_evaluation
from rayssl.evaluate_config import EvaluateConfig
from rayssl.evaluation.feature_store import FeatureStore
from rayssl.evaluation_report import EvaluationReport
from rayssl.object_store import store_of
from rayssl.recipe_file import flatten
from rayssl.runtime import LocalRuntime
from rayssl.sources import Source
from rayssl.storage import locked
from rayssl.tracking import MLflowTracker, tracking_uri

_NOT_DECISIVE = ("cluster.", "storage_path", "keep_features_gib")


def evaluate(config: EvaluateConfig, source: Source, *, show: Callable[[object], None] = print) -> EvaluationReport:
    """Measure an encoder and file the result: evaluations/PROTOCOL-HASH.json and .md in its run's folder.

    Drawn pictures go to evaluations/PROTOCOL-HASH/examples, features of whole sets to evaluations/.features.

    Args:
        config: The resolved settings.
        source: What they were built from.
        show: Called with progress and sentences for the person who waits.

    Returns:
        The report. Of a source that belongs to no run it lies in `storage_path`/SOURCE.

    Raises:
        RaysslError: Any of its kinds.
    """
    home = source.run_folder or config.storage_folder.expanduser().resolve() / source.name
    store = store_of(config.storage_path, home)
    if store is not None:
        store.check()
        if source.run_folder is None:
            store.pull(home)
    warnings = check_pictures(config)
    for warning in warnings:
        show(warning)
    results = home / "evaluations"
    work = results / f".{source.part}{config.evaluation.name}-{config.fingerprint}"
    with _own_folder(work):
        if store is not None:
            store.delete(work)
        try:
            measurement = _measure(config, work, show)
        finally:
            FeatureStore(results / FEATURES).shrink(config.keep_features_gib)
        report = _file(measurement, config, source, work, warnings)
    if store is not None:
        store.push(results)
        store.delete(work)  # what Ray kept there
        show(f"results are in {store.address_of(results)}")
    _record(report, source, home, show)
    if store is not None and source.run_folder is None:
        store.push(home)  # which remembers its record
    return report


@contextmanager
def _own_folder(work: Path) -> Iterator[None]:
    """Make an empty folder, for this process alone, and delete it once the body has ended well.

    Raises:
        ConfigError: If it can't be made, or another process works there.
    """
    lock = work.with_name(f"{work.name}.lock")
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ConfigError(f"storage_path: {work.parent} can't be written ({error.strerror})") from None
    with locked(lock, f"{work.parent}: the same evaluation is being made by another process. Wait for it."):
        shutil.rmtree(work, ignore_errors=True)  # left by a process that died
        work.mkdir()
        yield
        shutil.rmtree(work, ignore_errors=True)
        lock.unlink()


def _file(
    measurement: Measurement, config: EvaluateConfig, source: Source, work: Path, warnings: list[str]
) -> EvaluationReport:
    """Write the result, and bring what was drawn and listed to its place."""
    results = work.parent
    report = EvaluationReport(
        results,
        source.name,
        source.part,
        source.paper_row,
        _epochs(source),
        config,
        measurement.metrics,
        [*measurement.notes, *warnings],
    )
    report.write()
    for file in sorted(work.glob("*.txt")):
        file.replace(results / f"{report.stem}-{file.name}")
    if (work / EXAMPLES).is_dir():
        shutil.rmtree(results / report.stem, ignore_errors=True)
        (results / report.stem).mkdir()
        (work / EXAMPLES).replace(results / report.stem / EXAMPLES)
    return report


def _measure(config: EvaluateConfig, work: Path, show: Callable[[object], None]) -> Measurement:
    settings = config.cluster
    if settings.workers == 0:
        runtime = LocalRuntime(
            work, num_threads=settings.cpus_per_worker, use_gpu=settings.gpus_per_worker > 0, show=show
        )
        return run_evaluation(config, runtime)
    from rayssl.cluster.train import work_on_ray

    show(f"starting {settings.describe_workers()} on Ray ...")
    return work_on_ray(run_evaluation, config, work, tracking_uri=None, show=show)


def _epochs(source: Source) -> int | None:
    """Epochs of pre-training behind the weights, a row of the history each."""
    if source.run_folder is None or source.weights is None:
        return None
    if source.part:
        return len(json.loads((source.weights / "checkpoint.json").read_text())["history"])
    history = source.run_folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.is_file() else None


def _record(report: EvaluationReport, source: Source, home: Path, show: Callable[[object], None]) -> None:
    """Add the numbers to the run that they belong to, or to a run of their own."""
    config = report.config
    uri = tracking_uri(config.storage_folder)
    if source.run_folder is None:
        tracker: MLflowTracker | None = MLflowTracker.open(home, uri=uri, notify=show)
    else:
        tracker = MLflowTracker.attach(home, uri=uri, notify=show)
    if tracker is None:
        show(f"note: MLflow at {without_secrets(uri)} has no record of this run; the result is in {report.folder}")
        return
    prefix = f"{source.part}/" if source.part else ""
    trained_on = source.defaults.get("data", {}).get("name")
    if trained_on not in (None, config.data.name) and not config.evaluation.name.startswith("voc07"):
        prefix += f"{config.data.name}/"  # else it would stand in for the same protocol on the run's own pictures
    tracker.log_metrics({f"{prefix}{name}": value for name, value in report.metrics.items()}, step=report.epochs or 0)
    for file in sorted(report.folder.glob(f"{report.stem}*")):
        tracker.log_artifact(file, "evaluations")
    # Under a name of their own: a network is measured in many ways, and MLflow lets no parameter change.
    settings = {name: value for name, value in flatten(config).items() if not name.startswith(_NOT_DECISIVE)}
    tracker.log_params({f"{report.stem}.{name}": value for name, value in settings.items()})
    if source.run_folder is None:
        tracker.finish()
    else:
        tracker.flush()
