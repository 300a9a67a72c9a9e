"""From a study to a finished search: its folder, its record in MLflow, its trials, the winner and what it is worth."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayssl.errors import RunStopped
from rayssl.files import write_whole
from rayssl.recipe_file import flatten, to_yaml
from rayssl.report import Report
from rayssl.runs import RunFolder
from rayssl.search_folder import open_search
from rayssl.search_report import (
    TrialRecord,
    best_trial,
    draw_pictures,
    importance,
    read_records,
    write_tables,
)
from rayssl.search_space import Study, Values, total_epochs
from rayssl.stopping import asked_to_stop
from rayssl.tracking import MLflowTracker, mark_dead_runs, tracking_uri

_NOT_RECORDED = {"done", "time_total_s", "timestamp", "pid", "training_iteration", "iterations_since_restore"}


@dataclass(frozen=True)
class TrialEvent:
    """Something happened to a trial."""

    kind: str
    """started, measured, finished, stopped or failed."""
    record: TrialRecord
    records: dict[str, TrialRecord]
    """All trials so far."""
    num_trials: int
    seconds_left: float | None
    """At most, if no further trial is stopped; None: not known yet."""


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    folder: Path
    records: dict[str, TrialRecord]
    best: TrialRecord | None
    """The finished trial with the best value; if none came to its end, the best of those that were stopped."""
    recipe: Path | None
    """The best settings as a recipe that runs as it is."""
    report: Report | None
    """The best trial's evaluations; None if the recipe has none, or the trial was stopped."""
    notes: list[str]


def search(
    study: Study, *, resume: bool = False, fresh: bool = False, show: Callable[[object], None] = print
) -> SearchResult:
    """Run a study's trials, evaluate the best one and write down what was found.

    Goes on with the newest search of this study if that is not finished. SIGTERM ends it, its trials with checkpoints.

    Args:
        study: What is searched.
        resume: Refuse to begin a new search.
        fresh: Begin a new search even if there is one to go on with.
        show: Called with a `TrialEvent` for each thing that happens, and with sentences for the person who waits.

    Raises:
        ConfigError: If there is nothing to go on with and `resume` is set, or another process searches there.
        ClusterError: If the cluster or the tracking server can't be reached.
        RunStopped: If it was asked to stop; the same call goes on.
        RaysslError: What the evaluation of the winner raised.
    """
    from rayssl.cluster.tune import run_trials, search_cluster

    folder, goes_on = open_search(study, resume=resume, fresh=fresh, show=show)
    with RunFolder(folder).locked():
        uri = tracking_uri(study.base.storage_folder)
        tracker = MLflowTracker.open(folder, uri=uri, notify=show)
        mark_dead_runs(uri, notify=show)
        tracker.close_children("KILLED")
        tracker.log_params({**flatten(study.base), **_study_params(study)})
        show(f"search {folder.name} in {folder}")
        book = _Book(study, folder, tracker, show)
        if goes_on:
            over = sum(record.status != "running" for record in book.records.values())
            show(f"going on with it: {over} of {book.num_trials} trials are over")
        try:
            with search_cluster(study):
                with asked_to_stop() as asked:
                    run_trials(study, folder, listener=book, resume=goes_on, asked_to_stop=asked)
                return _conclude(study, folder, tracker, book, show)
        except (KeyboardInterrupt, SystemExit, RunStopped):
            tracker.finish("KILLED")
            raise
        except BaseException:
            tracker.finish("FAILED")
            raise


class _Book:
    """Keeps the trials' records, in their folders and in MLflow; the listener of `run_trials`."""

    def __init__(self, study: Study, folder: Path, tracker: MLflowTracker, show: Callable[[object], None]) -> None:
        self.records = read_records(folder / "trials")
        self._study = study
        self._folder = folder
        self._tracker = tracker
        self._show = show
        self._children: dict[str, MLflowTracker] = {}
        self._started: dict[str, float] = {}
        samples = study.samples()
        self.num_trials = study.tune.num_samples if study.tune.algorithm == "optuna" else len(samples)
        self._epochs = max(total_epochs(study.config(values)) for values in samples)

    def started(self, name: str, values: Values) -> None:
        """A trial begins, or goes on after a pause, a crash or a restart."""
        record = self.records.setdefault(name, TrialRecord(name, dict(values)))
        record.status, record.message = "running", ""
        self._started[name] = time.monotonic()
        child = self._children.get(name) or self._tracker.child(name)
        if name not in self._children:
            self._children[name] = child
            if self._study.tune.scheduler != "pbt":  # whose settings change, and parameters can't
                child.log_params(record.values)
        self._tell("started", record)

    def measured(self, name: str, values: Values, row: Values) -> None:
        """An epoch measured the metric."""
        record = self.records[name]
        now = time.monotonic()
        record.seconds += now - self._started.get(name, now)
        self._started[name] = now
        record.values = dict(values)
        record.value = float(row[self._study.tune.metric])
        record.epoch, record.epochs = int(row["epoch"]), int(row["epochs"])
        # A trial may be stopped among the epochs that it took over.
        record.reused_epochs = max(record.reused_epochs, min(int(row["reused_epochs"]), record.epoch))
        record.metrics = {
            key: float(value) for key, value in row.items() if isinstance(value, int | float) and _is_ours(key)
        }
        self._children[name].log_metrics(record.metrics, step=record.epoch)
        if self._study.tune.scheduler == "pbt":
            numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
            self._children[name].log_metrics(numbers, step=record.epoch)
        self._tell("measured", record)

    def said(self, name: str, sentence: str) -> None:
        """Something happened to a trial that a person wants to know."""
        self._show(f"trial {name}: {sentence}")

    def ended(self, name: str, mistake: str | None) -> None:
        """A trial is over; told again at the end of all trials, and then only what is new is kept."""
        record = self.records.get(name)
        if record is None or record.status != "running":
            return
        is_whole = record.epochs > 0 and record.epoch >= record.epochs
        if mistake is None and record.value is None:
            mistake = f"{self._study.tune.metric} was never measured: are there labelled pictures to measure it on?"
        record.status = "failed" if mistake is not None else "finished" if is_whole else "stopped"
        record.message = mistake or ""
        child = self._children.setdefault(name, self._tracker.child(name))
        child.set_tags({"status": record.status, "stopped_early": str(record.status == "stopped").lower()})
        child.finish({"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[record.status])
        self._tell(record.status, record)

    def _tell(self, kind: str, record: TrialRecord) -> None:
        record.write(self._folder / "trials" / record.name)
        self._show(TrialEvent(kind, record, self.records, self.num_trials, self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """By the time that an epoch took so far, as if no further trial were stopped."""
        from rayssl.cluster.tune import trials_at_a_time

        paces = [pace for each in self.records.values() if (pace := each.seconds_per_epoch)]
        if not paces:
            return None
        open_trials = [each for each in self.records.values() if each.status == "running"]
        epochs = sum((each.epochs or self._epochs) - each.epoch for each in open_trials)
        epochs += (self.num_trials - len(self.records)) * self._epochs
        return epochs * sum(paces) / len(paces) / trials_at_a_time(self._study)


def _conclude(
    study: Study, folder: Path, tracker: MLflowTracker, book: _Book, show: Callable[[object], None]
) -> SearchResult:
    """Evaluate the best trial, write tables, pictures and its recipe, and record them."""
    from rayssl.cluster.trial import evaluate_winner

    records = list(book.records.values())
    best = best_trial(records, study.tune.mode) or best_trial(records, study.tune.mode, finished=False)
    notes = _notes(study, records, best, asked=book.num_trials)
    report, recipe = None, None
    if best is not None:
        config = study.config(best.values)
        recipe = folder / "best.yaml"
        write_whole(recipe, _best_recipe(study, folder, best))
        if config.evaluations and best.status == "finished":
            show(f"evaluating {best.name}, the best trial ...")
            report = evaluate_winner(config, folder, best.name)
            notes += [_told_by(report, best), *report.notes]
            tracker.log_metrics(report.metrics, step=best.epoch)
        tracker.log_metrics({f"best/{study.tune.metric}": float(best.value or 0)}, step=best.epoch)
        tracker.set_tags({"best_trial": best.name})
    shares = importance(study, records)
    tracker.log_metrics({f"importance/{key}": share for key, share in shares.items()}, step=0)
    if shares:
        listed = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        measured = sum(each.value is not None for each in records)
        notes.append(f"Importance (permutation, random forest, {measured} trials): {listed}.")
    pictures = draw_pictures(study, records, folder / "pictures")
    for path in [*write_tables(study, records, folder, notes=notes), *([recipe] if recipe else [])]:
        tracker.log_artifact(path)
    for path in pictures:
        tracker.log_artifact(path, "pictures")
    tracker.finish()
    return SearchResult(folder, book.records, best, recipe, report, notes)


def _notes(study: Study, records: list[TrialRecord], best: TrialRecord | None, *, asked: int) -> list[str]:
    counts = {status: sum(each.status == status for each in records) for status in ("finished", "stopped", "failed")}
    listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    notes = [f"{len(records)} trials: {listed}." if records else "No trial was begun."]
    if len(records) < asked:
        notes.append(f"{asked} were asked for; the time budget of {study.tune.time_budget_s:g} s was over before.")
    reused = sum(each.reused_epochs for each in records)
    if reused:
        trained = sum(each.epoch for each in records) - reused
        notes.append(f"Shared stages saved {reused} of {reused + trained} epochs.")
    if best is None:
        notes.append("No trial measured anything, so there is no best recipe.")
    elif best.status != "finished":
        notes.append(
            f"No trial came to its end. The best of them is {best.name}, at epoch {best.epoch} of {best.epochs}; its "
            "recipe goes on to the end and won't repeat the value."
        )
    elif (other := best_trial(records, study.tune.mode, finished=False)) is not None and other.value != best.value:
        notes.append(
            f"{other.name} had {other.value:.4g} when it was stopped at epoch {other.epoch} of {other.epochs}; what it "
            "would have come to is not known."
        )
    if best is not None and study.tune.scheduler == "pbt":
        notes.append("pbt changed settings during the runs: the recipe has the last ones and won't repeat the value.")
    return notes


def _told_by(report: Report, best: TrialRecord) -> str:
    """The best trial's final numbers, beside those of a network that learned nothing."""
    others = {key.removeprefix("random/"): value for key, value in report.metrics.items() if key.startswith("random/")}
    numbers = [
        f"{key} {report.metrics[key]:.4g} (random {value:.4g})"
        for key, value in others.items()
        if "/best/" in key or not any("/best/" in other for other in others)
    ]
    return f"{best.name} at its end: {', '.join(numbers)}."


def _best_recipe(study: Study, folder: Path, best: TrialRecord) -> str:
    """A recipe under a name of its own, with where it comes from in its first lines."""
    config = study.config(best.values).model_copy(update={"name": f"{study.name}-best"})
    heading = [
        f"# The best of the trials of {folder.name}: {best.name}, {study.tune.metric} {best.value}.",
        "#",
        f"# Command  rayssl pretrain {folder / 'best.yaml'}",
    ]
    return "\n".join(heading) + "\n" + to_yaml(config)


def _study_params(study: Study) -> dict[str, Any]:
    tune = {f"tune.{key}": value for key, value in study.tune.model_dump().items()}
    return {**tune, **{f"search.{key}": json.dumps(value) for key, value in study.raw_search.items()}}


def _is_ours(key: str) -> bool:
    return key not in _NOT_RECORDED and not key.startswith(("config", "time_", "node_", "checkpoint_"))
