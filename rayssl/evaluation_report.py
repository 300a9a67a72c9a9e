"""The result of an evaluation: a table with the papers' numbers beside it, as JSON, Markdown and rows."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from rayssl.evaluate_config import EvaluateConfig
from rayssl.evaluation.papers import paper_number, paper_numbers
from rayssl.files import write_whole
from rayssl.recipe_file import to_plain

HEADER = ("metric", "measured", "paper", "where")


@dataclass(frozen=True)
class EvaluationReport:
    """What was measured, on what, by which settings."""

    folder: Path
    """Where its files go."""
    source: str
    """The encoder's name: a run's id, or alike."""
    part: str
    """Which part of the run; "" for its result."""
    paper_row: str | None
    """The row of the papers' tables that fits the encoder."""
    epochs: int | None
    """Epochs that it was pre-trained; None: unknown, or none."""
    config: EvaluateConfig
    """All settings."""
    metrics: dict[str, float]
    """Numbers in [0, 1], each with its "_std" beside it where there are several seeds or samples."""
    notes: list[str]
    """What a reader has to know."""

    @property
    def stem(self) -> str:
        """The files' name without suffix."""
        part = f"{self.part}-" if self.part else ""
        return f"{part}{self.config.evaluation.name}-{self.config.fingerprint}"

    def rows(self) -> list[tuple[str, ...]]:
        """Rows under `HEADER`: each metric but those of single classes, in percent, beside the paper's number."""
        data = _papers_name(self.config)
        rows: list[tuple[str, ...]] = []
        for name, value in self.metrics.items():
            if name.endswith("_std") or "/ap/" in name or name.startswith("sanity/"):
                continue
            paper = paper_number(name, data=data, row=self.paper_row)
            deviation = self.metrics.get(f"{name}_std")
            spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
            number = f"{paper.percent:.1f}" if paper is not None else ""
            where = f"{paper.table}, {paper.row}: {paper.setting}" if paper is not None else ""
            rows.append((_readable(name), f"{100 * value:.1f}{spread}", number, where))
        return rows

    def class_rows(self) -> list[tuple[str, ...]]:
        """A row a class, a column for each of `class_columns`, of average precisions in percent."""
        name, columns = self.config.evaluation.name, self.class_columns()
        keys = [each.rsplit("/ap/", 1) for each in self.metrics if "/ap/" in each and not each.endswith("_std")]
        classes = list(dict.fromkeys(label for _, label in keys))
        return [
            (each, *(_percent(self.metrics.get(f"{name}/{column}/ap/{each}", math.nan)) for column in columns))
            for each in classes
        ]

    def class_columns(self) -> list[str]:
        """What there are average precisions of classes for: blocks, "b4", or a detector's thresholds, "psl/ap50"."""
        name = self.config.evaluation.name
        heads = [each.rsplit("/ap/", 1)[0] for each in self.metrics if "/ap/" in each]
        return list(dict.fromkeys(head.removeprefix(f"{name}/") for head in heads))

    def setting(self) -> str:
        """Data set, backbone, epochs and dialect in a line, so that nobody mistakes a small run for a reproduction."""
        config = self.config
        backbone = config.backbone
        kind = f"{backbone.name}-{backbone.depth}, width {backbone.width}, {backbone.stem} stem"
        trained = f", pre-trained {self.epochs} epochs" if self.epochs is not None else ""
        dialect = getattr(config.evaluation, "dialect", None)
        spoken = f", dialect {dialect}" if dialect is not None else ""
        side = getattr(
            config.evaluation, "test_side", config.data.image_size
        )  # a detector sees pictures of its own size
        limit = f" (at most {config.data.limit:,} training pictures)" if config.data.limit is not None else ""
        what = self.source if not self.part else f"{self.source}/{self.part}"
        return (
            f"{config.evaluation.name} of {what}: {kind}{trained}; measured on {config.data.name} at "
            f"{side} px{limit}{spoken}"
        )

    def paper_notes(self) -> list[str]:
        """The papers' rows for what was measured, each with its setting."""
        data = _papers_name(self.config)
        numbers = [each for name in self.metrics for each in paper_numbers(name, data=data)]
        if not numbers:
            return ["The papers have no number for this protocol on this data set."]
        return [f"{_readable(each.metric)}: {each}" for each in numbers]

    def to_markdown(self) -> str:
        """The result as Markdown."""
        lines = [f"# {self.config.evaluation.name}: {self.source}", "", f"{self.setting()}.", ""]
        lines += [*_table(HEADER, self.rows()), ""]
        lines += [f"- {note}" for note in self.notes]
        if classes := self.class_rows():
            lines += ["", "## Average precision by class, in %", ""]
            lines += _table(("class", *(column.split("/")[-1].upper() for column in self.class_columns())), classes)
        lines += ["", "## What the papers report, in %", "", *(f"- {note}" for note in self.paper_notes()), ""]
        return "\n".join(lines)

    def write(self) -> Path:
        """Write the JSON and Markdown files; gives the latter's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "source": self.source,
            "part": self.part,
            "epochs": self.epochs,
            "paper_row": self.paper_row,
            "metrics": self.metrics,
            "notes": self.notes,
            "papers": self.paper_notes(),
            "config": to_plain(self.config),
        }
        write_whole(self.folder / f"{self.stem}.json", json.dumps(content, indent=1))
        markdown = self.folder / f"{self.stem}.md"
        write_whole(markdown, self.to_markdown())
        return markdown


def _papers_name(config: EvaluateConfig) -> str:
    """What the papers' numbers call the data set; Places205 has no class of its own here, being class folders."""
    root = str(getattr(config.data, "root", "")).lower()
    return "places205" if config.data.name == "folder" and "places205" in root else config.data.name


def _readable(name: str) -> str:
    """`voc07_svm/b4/map` as "B4 (res4) map", without the protocol's name."""
    words = name.split("/")[1:]
    if words[0] in ("b1", "b2", "b3", "b4", "b5"):
        words[0] = words[0].upper() + (f" (res{words[0][1]})" if words[0] != "b1" else " (conv1)")
    return " ".join(words)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]
