"""A run's numbers over its epochs, as small figures with captions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rayssl.backbones import NUM_BLOCKS
from rayssl.html_report.figures import COLOURS, NEUTRAL, Line, accuracy_by_block, curve
from rayssl.html_report.page import figure
from rayssl.html_report.records import RunRecord
from rayssl.html_report.tables import accuracies


@dataclass(frozen=True)
class _Panel:
    """A figure of the training: what it draws, and what has to be said about it."""

    name: str
    unit: str
    series: Mapping[str, str]
    """Label -> key of the history."""
    caption: str
    scope: Literal["stage", "block", "run"] = "stage"
    """What can be compared, so that a line goes on: a stage; stages with the same last block, on which it is measured;
    or all of them."""


_PANELS = (
    _Panel(
        "loss",
        "",
        {"loss": "loss"},
        "What a stage minimises, mean over the epoch. Losses of different tasks, levels or weights can't be compared.",
    ),
    _Panel(
        "pretext accuracy",
        "%",
        {"accuracy": "accuracy", "chance": "chance"},
        "Share of the training views whose target is told rightly, beside guessing. A harder level starts anew; that "
        "the task is solved does not say that the features are good.",
    ),
    _Panel(
        "reconstruction error",
        "squared",
        {"reconstruction": "reconstruction"},
        "Mean squared error of what the auto-encoders give back of training views, over normalised pixels.",
    ),
    _Panel(
        "triplet loss",
        "distance",
        {"triplet": "triplet"},
        "Batch-hard triplet loss over pseudo labels, mean of an anchor, before its weight. Labels are made anew in "
        "every stage. Stuck at the margin, all embeddings are one point.",
    ),
    _Panel(
        "active triplets",
        "%",
        {"active": "active_triplets"},
        "Share of the anchors whose triplet still costs something.",
    ),
    _Panel(
        "online probe, top-1",
        "%",
        {f"B{block}": f"probe/b{block}/top1" for block in range(1, NUM_BLOCKS + 1)},
        "Small linear classifiers on the frozen blocks, told held-out training pictures. Cheaper, and on fewer "
        "pictures, than the probes of the tables above.",
        scope="run",
    ),
    _Panel(
        "kNN, top-1",
        "%",
        {"k = 20": "knn/k20/top1", "k = 200": "knn/k200/top1"},
        "Vote of the k most similar training pictures on a held-out one's class, by cosine.",
        scope="block",
    ),
    _Panel(
        "feature deviation",
        "",
        {"deviation": "feature/std"},
        "About 1 where features use all directions alike, 0 where they have collapsed.",
        scope="block",
    ),
    _Panel(
        "effective rank",
        "directions",
        {"rank": "feature/effective_rank"},
        "In how many directions features vary; 1 or 2 are a collapse.",
        scope="block",
    ),
)
_DASHED = "chance"


def training_panels(run: RunRecord, *, identity: str) -> list[str]:
    """A figure for everything that the run has measured as it trained.

    Args:
        run: The run.
        identity: Keeps the drawings' ids apart from those of other runs on the page.
    """
    ends = stage_ends(run)
    shown = []
    for panel in _PANELS:
        if panel.name == "loss" and any("reconstruction" in row for row in run.report.history):
            continue  # a sum of the two that are drawn, by weights that change
        lines = _lines(run, panel, ends)
        if lines:
            drawing = curve(panel.name, panel.unit, lines, stages=ends, identity=identity)
            shown.append(figure(drawing, _caption(run, panel), legend=legend(lines) if len(lines) > 1 else ()))
    return shown


def stages_sentence(run: RunRecord) -> str:
    """What the shaded bands of the curves are."""
    begun = [stage.name for stage in run.stages[: len(stage_ends(run))]]
    named = "; ".join(f"{number}: {name}" for number, name in enumerate(begun, start=1))
    return f"Bands are stages. {named}."


def stage_ends(run: RunRecord) -> list[float]:
    """The last epoch on record of each stage that was begun, counted over the run."""
    ends: list[float] = []
    total = 0
    for stage in run.stages:
        if total >= run.epochs_done:
            break
        total += stage.epochs
        ends.append(min(total, run.epochs_done))
    return ends


def blocks_figure(run: RunRecord, *, identity: str) -> str | None:
    """Accuracy by block of the run's networks, the untrained one dashed; None without probes."""
    networks = run.report.block_networks()
    lines = [
        Line(title, NEUTRAL if title == "random" else COLOURS[index], _by_block(run, prefix), title == "random")
        for index, (title, prefix) in enumerate(networks.items())
    ]
    if not lines:
        return None
    return figure(
        accuracy_by_block(lines, identity=identity),
        "The table as a picture, as the papers' Tables 5 and 6 are read: where in the network the features are that "
        "tell classes. It says nothing of other uses of the features.",
        legend=legend(lines),
    )


def comparison_figures(runs: Sequence[RunRecord]) -> list[str]:
    """Several runs in one figure each: accuracy by block, and the best online probe by epoch."""
    colours = {run.run_id: COLOURS[index % len(COLOURS)] for index, run in enumerate(runs)}
    blocks = [Line(run.run_id, colours[run.run_id], _by_block(run, "")) for run in runs]
    blocks = [line for line in blocks if line.values] + _random_lines(runs, colours)
    probes = [Line(run.run_id, colours[run.run_id], _series(run.report.history, "probe/best/top1")) for run in runs]
    probes = [line for line in probes if line.values]
    figures = []
    if blocks:
        caption = (
            "Linear probes by block, a line a run; dashed: the same networks before training. Lines can be compared "
            "where pictures, network and length of the runs are the same."
        )
        figures.append(figure(accuracy_by_block(blocks, identity="all-"), caption, legend=legend(blocks)))
    if probes:
        caption = (
            "The best block's online probe by epoch. An epoch costs less where a stage trains few blocks, and held-out "
            "pictures are few: small differences are noise."
        )
        drawing = curve("best online probe, top-1", "%", probes, identity="all-")
        figures.append(figure(drawing, caption, legend=legend(probes)))
    return figures


def legend(lines: Iterable[Line]) -> list[tuple[str, str, bool]]:
    """Label, colour and whether it is dashed, of each line."""
    return [(line.label, line.colour, line.is_dashed) for line in lines]


def _lines(run: RunRecord, panel: _Panel, ends: Sequence[float]) -> list[Line]:
    """The panel's lines that have points; for each of MGTA's networks its own where one number is drawn."""
    history = run.report.history
    networks = [run.stages[int(row["stage"]) - 1].network for row in history]
    several = len(panel.series) == 1 and len({*networks}) > 1
    breaks = () if panel.scope == "run" else tuple(ends) if panel.scope == "stage" else _changes(run, ends)
    lines = []
    for index, (label, key) in enumerate(panel.series.items()):
        if not several:
            is_dashed = label == _DASHED
            colour = NEUTRAL if is_dashed else COLOURS[index]
            lines.append(Line(label, colour, _series(history, key), is_dashed, breaks))
            continue
        for network in (1, 2):
            rows = [row for row, trained in zip(history, networks, strict=True) if trained == network]
            lines.append(Line(f"N{network}", COLOURS[2 - network], _series(rows, key), breaks=breaks))
    return [line for line in lines if line.values]


def _caption(run: RunRecord, panel: _Panel) -> str:
    if panel.scope != "block":
        return panel.caption
    blocks = [stage.last_block for stage in run.stages]
    if len({*blocks}) == 1:
        return f"{panel.caption} Measured on B{blocks[0]}."
    return f"{panel.caption} Measured on each stage's last block, so stages can't be compared."


def _changes(run: RunRecord, ends: Sequence[float]) -> tuple[float, ...]:
    """The stages' ends after which another block is the last one."""
    blocks = [stage.last_block for stage in run.stages]
    return tuple(end for end, block, later in zip(ends, blocks, blocks[1:], strict=False) if block != later)


def _series(rows: Iterable[Mapping[str, float]], key: str) -> dict[float, float]:
    return {row["epoch"]: row[key] for row in rows if key in row}


def _by_block(run: RunRecord, prefix: str) -> dict[float, float]:
    return {float(block): accuracy for block, accuracy in accuracies(run, prefix=prefix).items()}


def _random_lines(runs: Sequence[RunRecord], colours: Mapping[str, str]) -> list[Line]:
    """The untrained networks; one line where several runs began alike, in the run's colour where they did not."""
    found: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for run in runs:
        values = _by_block(run, "random/")
        if values:
            found.setdefault(tuple(values.items()), []).append(run.run_id)
    if len(found) == 1:
        return [Line("random", NEUTRAL, dict(next(iter(found))), is_dashed=True)]
    return [
        Line(f"random, as {', '.join(names)} began", colours[names[0]], dict(values), is_dashed=True)
        for values, names in found.items()
    ]
