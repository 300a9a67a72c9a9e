"""What a person sees: a bar a stage on a terminal, a line an epoch in a log, and a table at the end."""

import time
from datetime import timedelta

from rich import progress as bars
from rich.console import Console
from rich.table import Table

from rayssl.report import Report
from rayssl.runtime import EpochDone, Progress


class Display:
    """Shows a run's events as they come; a context manager, so that the bar is taken away at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._stages: dict[int, bars.TaskID] = {}
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, event: object) -> None:
        """Show one event: progress within an epoch, the end of one, or a sentence."""
        if isinstance(event, Progress):
            self._advance(event.stage, event.num_stages, event.epoch + event.fraction, event.epochs)
        elif isinstance(event, EpochDone):
            self._log(event)
        else:
            self._bars.console.print(str(event), markup=False)

    def _advance(self, stage: int, num_stages: int, done: float, epochs: int) -> None:
        if stage not in self._stages:
            for bar in self._stages.values():
                self._bars.remove_task(bar)
            self._stages = {stage: self._bars.add_task(f"stage {stage + 1}/{num_stages}", total=epochs)}
        self._bars.update(self._stages[stage], completed=done)

    def _log(self, event: EpochDone) -> None:
        row = event.row
        words = [
            f"stage {row['stage']:.0f}/{event.num_stages}",
            f"epoch {row['epoch']:.0f}/{event.epochs}",
            f"loss {row['loss']:.4f}",
        ]
        if "accuracy" in row:
            words.append(f"accuracy {row['accuracy']:.1%} (chance {row['chance']:.1%})")
        if "triplet" in row:
            words.append(f"triplet {row['triplet']:.3f} ({row['active_triplets']:.0%} active)")
        if "probe/best/top1" in row:
            words.append(f"probe {row['probe/best/top1']:.1%}")
        words += [f"{row['images_per_second']:,.0f} img/s", f"left {self._time_left(event)}"]
        self._bars.console.print("  ".join(words), markup=False)

    def _time_left(self, event: EpochDone) -> str:
        """By the mean of the epochs seen so far; unknown after the first, whose start was not seen."""
        now, epoch = time.monotonic(), event.row["epoch"]
        if self._first is None:
            self._first = (now, epoch)
            return "?"
        seconds = (now - self._first[0]) / (epoch - self._first[1]) * (event.epochs - epoch)
        return str(timedelta(seconds=round(seconds)))


def print_report(report: Report, *, console: Console) -> None:
    """The table of the linear probes, and what a reader of it has to know."""
    rows = report.block_table()
    if rows:
        table = Table(
            "block", *report.block_networks(), title="Linear probes: top-1 in %, * the best block", title_justify="left"
        )
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    for note in report.notes:
        console.print(note, markup=False)
