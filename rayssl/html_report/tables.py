"""The report's tables, as text that both Markdown and HTML show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rayssl.evaluation.papers import PaperNumber, paper_number
from rayssl.evaluation_report import HEADER, EvaluationReport
from rayssl.html_report.records import RunRecord
from rayssl.methods import MGTAConfig

_BLOCKS_DATA = "imagenet"
"""Where the papers probe block by block."""


@dataclass(frozen=True)
class Table:
    """Cells, and what they show."""

    header: tuple[str, ...]
    """Titles of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """As many cells as titles in each."""
    caption: str
    """What the numbers are, and what they are not."""

    def to_markdown(self) -> list[str]:
        """Lines of the table and its caption; what would end a cell is escaped."""
        lines = [f"| {' | '.join(map(_in_markdown, cells))} |" for cells in (self.header, *self.rows)]
        lines.insert(1, f"| {' | '.join('---' for _ in self.header)} |")
        return [*lines, "", self.caption, ""]


def facts_table(runs: Sequence[RunRecord]) -> Table:
    """What was trained, how and on what: a row a setting, a column a run."""
    facts = [_facts(run) for run in runs]
    rows = tuple((title, *(each[title] for each in facts)) for title in facts[0])
    return Table(("setting", *(run.run_id for run in runs)), rows, "All settings are in the run's config.yaml.")


def block_table(run: RunRecord) -> Table | None:
    """Linear probes block by block, beside the networks that the run is compared with and the paper's row."""
    rows = run.report.block_table()
    if not rows:
        return None
    caption = (
        "Top-1 accuracy in %; each column's best block is starred. A linear classifier is trained on the block's "
        "frozen features; random is the same network before training."
    )
    papers = [paper_number(f"linear_probe/{row[0].lower()}/top1", data=_BLOCKS_DATA, row=run.paper_row) for row in rows]
    header = ("block", *run.report.block_networks())
    first = next((paper for paper in papers if paper is not None), None)
    if first is None:
        return Table(header, tuple(rows), caption)
    told = f"{caption} The paper's column is {first.table}, {first.row}: {first.setting}."
    if run.config.data.name != _BLOCKS_DATA:
        told += " This run has other pictures: compare which blocks are good, not the numbers."
    cells = tuple((*row, _percent(paper)) for row, paper in zip(rows, papers, strict=True))
    return Table((*header, "paper"), cells, told)


def best_table(runs: Sequence[RunRecord]) -> Table:
    """Each run's best block beside the untrained network's best block: a row a run."""
    rows = []
    for run in runs:
        block, value = best_block(run)
        _, random = best_block(run, prefix="random/")
        paper = paper_number("linear_probe/best/top1", data=_BLOCKS_DATA, row=run.paper_row)
        where = "" if paper is None else f"{paper.percent:.1f} ({paper.table}, {paper.row})"
        rows.append(
            (
                run.run_id,
                _data(run, whole_path=False),
                str(run.epochs_done),
                "" if block is None else f"B{block}",
                _cell(value),
                _cell(random),
                where,
            )
        )
    return Table(
        ("run", "pictures", "epochs", "best block", "top-1", "random", "paper"),
        tuple(rows),
        "Linear probes: top-1 accuracy in % of the best block, and of the best one of the same network before "
        "training. Runs on other pictures, or of another length, can't be compared. The paper's numbers are "
        "those of ImageNet.",
    )


def best_block(run: RunRecord, *, prefix: str = "") -> tuple[int | None, float]:
    """Number and accuracy in [0, 1] of the block that is probed best; None and nan if none was."""
    found = {number: value for number, value in accuracies(run, prefix=prefix).items() if not math.isnan(value)}
    if not found:
        return None, math.nan
    return max(found.items(), key=lambda item: item[1])


def accuracies(run: RunRecord, *, prefix: str = "") -> dict[int, float]:
    """Block -> top-1 accuracy of its linear probe, in [0, 1]; the prefix names another network, such as "random/"."""
    keys = {number: f"{prefix}linear_probe/b{number}/top1" for number in range(1, 6)}
    return {number: run.report.metrics[key] for number, key in keys.items() if key in run.report.metrics}


def evaluation_table(evaluation: EvaluationReport) -> Table:
    """What `rayssl evaluate` measured, beside the paper's numbers."""
    rows = evaluation.rows()
    has_paper = any(row[2] for row in rows)
    width = len(HEADER) if has_paper else 2
    return Table(HEADER[:width], tuple(row[:width] for row in rows), f"In %: {evaluation.setting()}.")


def class_table(evaluation: EvaluationReport) -> Table | None:
    """The average precision of each class, for protocols that measure it."""
    rows = evaluation.class_rows()
    if not rows:
        return None
    header = ("class", *(column.split("/")[-1].upper() for column in evaluation.class_columns()))
    return Table(header, tuple(rows), f"Average precision by class, in %: {evaluation.setting()}.")


def _facts(run: RunRecord) -> dict[str, str]:
    config = run.config
    backbone = config.backbone
    task = getattr(config.method, "task", None)
    return {
        "status": run.status,
        "recipe": config.name,
        "method": config.method.name,
        "task": task.name if task is not None else "auto-encoder",
        "backbone": f"{backbone.name}-{backbone.depth}, width {backbone.width}, {backbone.stem} stem",
        "pictures": _data(run),
        "stages": _stages(run),
        "epochs trained": f"{run.epochs_done} of {run.epochs_planned}",
        "batch size": str(config.training.batch_size),
        "optimiser": f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}",
        "seed": str(config.seed),
    }


def _stages(run: RunRecord) -> str:
    """The stages with their epochs; MGTA's rounds in a few words, since there may be 20."""
    method = run.config.method
    if not isinstance(method, MGTAConfig):
        return "; ".join(f"{stage.name}: {_epochs(stage.epochs)}" for stage in run.stages)
    baseline, rounds, final = method.baseline, method.rounds, method.final
    if not rounds.count:
        return f"baseline: {_epochs(baseline.epochs)}"
    return (
        f"baseline: {_epochs(baseline.epochs)}; {_count(rounds.count, 'round')}: {_epochs(rounds.epochs)} of N2 and of "
        f"N1 each; final: {_epochs(final.epochs)}"
    )


def _epochs(count: int) -> str:
    return _count(count, "epoch")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _data(run: RunRecord, *, whole_path: bool = True) -> str:
    """Data set, its folder if it has no name of its own, limit and size."""
    data = run.config.data
    root = getattr(data, "root", None)
    place = "" if root is None or data.name != "folder" else f" {root if whole_path else '/'.join(root.parts[-2:])}"
    limit = f", at most {data.limit:,} to train on" if data.limit is not None else ""
    return f"{data.name}{place}{limit}, {data.image_size} px"


def _percent(paper: PaperNumber | None) -> str:
    return "" if paper is None else f"{paper.percent:.1f}"


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _in_markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
