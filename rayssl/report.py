"""Report: what a run measured, as an object, as a text table and as Markdown."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayssl.backbones import NUM_BLOCKS
from rayssl.files import write_whole

_PROBE = re.compile(r"linear_probe/b\d/top1$")
_TRAINING_COLUMNS = {
    "stage": ("stage", ".0f"),
    "epoch": ("epoch", ".0f"),
    "loss": ("loss", ".4f"),
    "pretext accuracy": ("accuracy", ".1%"),
    "chance": ("chance", ".1%"),
    "reconstruction": ("reconstruction", ".4f"),
    "triplet": ("triplet", ".4f"),
    "active triplets": ("active_triplets", ".1%"),
    "views/s": ("images_per_second", ".0f"),
    "best online probe": ("probe/best/top1", ".1%"),
    "kNN (k=20)": ("knn/k20/top1", ".1%"),
}
"""Title -> key of a row of the history, and how its number is written."""


@dataclass(frozen=True)
class Report:
    """The outcome of a run."""

    folder: Path
    """Where the run lies."""
    name: str
    """Name of the recipe."""
    history: list[dict[str, float]]
    """A row an epoch: stage, epoch, loss, what the stage's task measures (accuracy, chance), learning_rate,
    images_per_second, probe/..., knn/..., feature/..."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final numbers; those of a randomly initialised network begin with "random/", those of other networks
    that it is compared with with their names, such as "baseline/"."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know."""

    def block_networks(self) -> dict[str, str]:
        """The networks that were probed: title of a column -> prefix of its metrics; "trained" first, "random" last."""
        found = {_PROBE.sub("", key) for key in self.metrics if _PROBE.search(key)}
        others = sorted(found - {"", "random/"})
        prefixes = [prefix for prefix in ("", *others, "random/") if prefix in found]
        return {prefix.removesuffix("/") or "trained": prefix for prefix in prefixes}

    def block_table(self) -> list[tuple[str, ...]]:
        """Rows (block, a cell for each of `block_networks`) of the linear probes, in percent.

        Each column's best block is starred.
        """
        columns = [self._accuracies(prefix) for prefix in self.block_networks().values()]
        return [
            (f"B{block}", *(_cell(column, block) for column in columns))
            for block in range(1, NUM_BLOCKS + 1)
            if any(block in column for column in columns)
        ]

    def write(self) -> None:
        """Write report.json into the run's folder, which says that the run is finished."""
        write_whole(self.folder / "report.json", self.to_json())

    def to_json(self) -> str:
        """What programs read of a report: its name, metrics and notes."""
        return json.dumps({"name": self.name, "metrics": self.metrics, "notes": self.notes}, indent=1)

    def to_markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# {self.name}", "", f"Run `{self.folder.name}`; its settings are in `config.yaml`.", ""]
        if self.block_table():
            lines += [
                "## Linear probes, top-1 in %",
                "",
                *_markdown_table(("block", *self.block_networks()), self.block_table()),
                "",
            ]
        lines += [f"- {note}" for note in self.notes]
        if self.notes:
            lines.append("")
        lines += ["## Training", "", *_markdown_table(*self._training_table()), ""]
        return "\n".join(lines)

    def _accuracies(self, prefix: str) -> dict[int, tuple[float, float | None]]:
        """Block -> (accuracy, deviation over seeds)."""
        found = {}
        for block in range(1, NUM_BLOCKS + 1):
            key = f"{prefix}linear_probe/b{block}/top1"
            if key in self.metrics:
                found[block] = (self.metrics[key], self.metrics.get(f"{key}_std"))
        return found

    def _training_table(self) -> tuple[Sequence[str], list[tuple[str, ...]]]:
        """The columns of which any epoch has a number."""
        columns = {
            title: (key, form)
            for title, (key, form) in _TRAINING_COLUMNS.items()
            if any(key in r for r in self.history)
        }
        rows = [
            tuple(format(row[key], form) if key in row else "" for key, form in columns.values())
            for row in self.history
        ]
        return list(columns), rows


def _cell(column: Mapping[int, tuple[float, float | None]], block: int) -> str:
    if block not in column:
        return ""
    accuracy, deviation = column[block]
    spread = f" ± {100 * deviation:.1f}" if deviation is not None else ""
    star = " *" if accuracy == max(value for value, _ in column.values()) else ""
    return f"{100 * accuracy:.1f}{spread}{star}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
