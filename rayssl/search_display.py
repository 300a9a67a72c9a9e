"""What a person sees of a search: a table that is updated on a terminal, a line a result in a log."""

import json
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayssl.search import SearchResult, TrialEvent
from rayssl.search_report import TrialRecord, best_trial, name_value, table
from rayssl.search_space import Study, total_epochs

_MOST_ROWS = 20
_LOG_WIDTH = 200
"""Columns of a table that no terminal bounds."""


def wide_console() -> Console:
    """A console as wide as the terminal, or wide enough for tables where there is none."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_LOG_WIDTH)


class SearchDisplay:
    """Shows a search's events; a context manager, so that the table is left as it was at the end."""

    def __init__(self, study: Study, console: Console | None = None) -> None:
        self.console = console or wide_console()
        self._study = study
        self._live = Live(console=self.console, refresh_per_second=2)
        self._is_live = self.console.is_terminal

    def __enter__(self) -> "SearchDisplay":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def show(self, event: object) -> None:
        """Show what happened to a trial, or a sentence."""
        if not isinstance(event, TrialEvent):
            self.console.print(str(event), markup=False)
        elif self._is_live:
            self._live.update(Group(_table(self._study, list(event.records.values())), Text(self._footer(event))))
        else:
            self.console.print(self._line(event), markup=False)
            if event.kind in ("finished", "stopped", "failed"):
                self.console.print(self._footer(event), markup=False)

    def _line(self, event: TrialEvent) -> str:
        record, metric = event.record, self._study.tune.metric
        if event.kind == "started":
            return f"trial {record.name} started: {self._settings(record)}"
        if event.kind == "failed":
            return f"trial {record.name} failed: {record.message}"
        value = f"{metric} {record.value:.4g}" if record.value is not None else f"no {metric} yet"
        reached = f"epoch {record.epoch}/{record.epochs}"
        if event.kind == "measured":
            return f"trial {record.name} {reached}  {value}"
        return f"trial {record.name} {event.kind}: {value}  {reached}  {record.seconds:.0f} s  {self._settings(record)}"

    def _footer(self, event: TrialEvent) -> str:
        records = list(event.records.values())
        over = sum(each.status != "running" for each in records)
        words = [f"{over}/{event.num_trials} trials done"]
        best = best_trial(records, self._study.tune.mode, finished=False)
        if best is not None:
            place = f"at epoch {best.epoch}/{best.epochs}"
            words.append(f"best so far {best.name}: {best.value:.4g} {place} by {self._settings(best)}")
        if event.seconds_left is not None and over < event.num_trials:
            words.append(f"at most {timedelta(seconds=round(event.seconds_left))} left")
        return "; ".join(words)

    def _settings(self, record: TrialRecord) -> str:
        return ", ".join(f"{key}={name_value(self._study, key, value)}" for key, value in record.values.items())


def print_result(study: Study, result: SearchResult, *, console: Console) -> None:
    """The table of all trials, and what a reader of it has to know."""
    console.print()
    console.print(_table(study, list(result.records.values()), most=None))
    for note in result.notes:
        console.print(note, markup=False)
    if result.best is not None:
        console.print(f"best: {result.best.name}, {study.tune.metric} {result.best.value:.4g}", markup=False)
        for key, value in result.best.values.items():
            console.print(f"  {key}={json.dumps(value)}", markup=False)


def print_plan(study: Study, *, at_a_time: int, console: Console) -> None:
    """What a search would do: its first samples, trials, epochs."""
    samples = study.samples()
    num_trials = study.tune.num_samples if study.tune.algorithm == "optuna" else len(samples)
    keys = study.space.keys
    told = Table("trial", *(each.key for each in keys), title=f"{study.name}: the first samples")
    for number, values in enumerate(samples[:10]):
        cells = [name_value(study, each.key, values[each.key]) if each.key in values else "" for each in keys]
        told.add_row(f"t{number:03d}", *map(Text, cells))
    console.print(told)
    epochs = [total_epochs(study.config(values)) for values in samples]
    most = round(sum(epochs) / len(epochs) * num_trials)
    tune = study.tune
    early = f"; {tune.scheduler} stops weak ones from epoch {tune.grace_period} on" if tune.scheduler != "none" else ""
    console.print(f"{num_trials} trials, {at_a_time} at a time here, {max(epochs)} epochs at most each{early}")
    waves = -(-num_trials // at_a_time)
    console.print(
        f"at most {most} epochs in all, in {waves} waves: as long as {waves * max(epochs)} epochs of one trial"
    )
    console.print(
        f"metric {tune.metric} ({tune.mode}); random samples, optuna will choose others"
        if (tune.algorithm == "optuna")
        else f"metric {tune.metric} ({tune.mode})"
    )
    if len(samples) < tune.num_samples and tune.algorithm == "random":
        console.print(f"there are only {len(samples)} different samples, tune.num_samples asks for {tune.num_samples}")


def _table(study: Study, records: list[TrialRecord], *, most: int | None = _MOST_ROWS) -> Table:
    header, rows = table(study, records)
    drawn = Table(title=study.name, title_justify="left")
    for title in header:
        drawn.add_column(title, overflow="fold")
    for row in rows[:most]:
        drawn.add_row(*map(Text, row))
    if most is not None and len(rows) > most:
        drawn.caption = f"and {len(rows) - most} more"
    return drawn
