"""Report: what a run measured, as an object, as a text table and as Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayssl.backbones import NUM_BLOCKS


@dataclass(frozen=True)
class Report:
    """The outcome of a run."""

    folder: Path
    """Where the run lies."""
    name: str
    """Name of the recipe."""
    history: list[dict[str, float]]
    """A row an epoch: stage, epoch, loss, accuracy, chance, learning_rate, images_per_second, probe/..., knn/...,
    feature/..."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final numbers; those of a randomly initialised network begin with "random/"."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know."""

    def block_table(self) -> list[tuple[str, str, str]]:
        """Rows (block, trained, random) of the linear probes, in percent; each column's best block is starred."""
        rows: list[tuple[str, str, str]] = []
        columns = {who: self._accuracies(prefix) for who, prefix in (("trained", ""), ("random", "random/"))}
        for block in range(1, NUM_BLOCKS + 1):
            if block in columns["trained"]:
                rows.append((f"B{block}", _cell(columns["trained"], block), _cell(columns["random"], block)))
        return rows

    def write(self) -> Path:
        """Write report.json and report.md into the run's folder; gives the latter's path.

        report.json is written last and renamed: it says that the run is finished.
        """
        markdown = self.folder / "report.md"
        markdown.write_text(self.to_markdown())
        partial = self.folder / "report.json.partial"
        partial.write_text(json.dumps({"name": self.name, "metrics": self.metrics, "notes": self.notes}, indent=1))
        partial.rename(self.folder / "report.json")
        return markdown

    def to_markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# {self.name}", "", f"Run `{self.folder.name}`; its settings are in `config.yaml`.", ""]
        if self.block_table():
            lines += [
                "## Linear probes, top-1 in %",
                "",
                *_markdown_table(("block", "trained", "random"), self.block_table()),
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
        header = ("stage", "epoch", "loss", "pretext accuracy", "chance", "views/s", "best online probe", "kNN (k=20)")
        rows: list[tuple[str, ...]] = [
            (
                f"{row['stage']:.0f}",
                f"{row['epoch']:.0f}",
                f"{row['loss']:.4f}",
                f"{row['accuracy']:.1%}",
                f"{row['chance']:.1%}",
                f"{row['images_per_second']:.0f}",
                f"{row['probe/best/top1']:.1%}" if "probe/best/top1" in row else "",
                f"{row['knn/k20/top1']:.1%}" if "knn/k20/top1" in row else "",
            )
            for row in self.history
        ]
        return header, rows


def _cell(column: Mapping[int, tuple[float, float | None]], block: int) -> str:
    if block not in column:
        return ""
    accuracy, deviation = column[block]
    spread = f" ± {100 * deviation:.1f}" if deviation is not None else ""
    star = " *" if accuracy == max(value for value, _ in column.values()) else ""
    return f"{100 * accuracy:.1f}{spread}{star}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
