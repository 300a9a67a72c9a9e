"""What a search found: its trials as records, tables, pictures, and how much each key matters."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rayssl.files import write_whole
from rayssl.recipe_file.wording import show
from rayssl.search_space import Choice, Interval, Study

Status = Literal["running", "finished", "stopped", "failed"]

_FEWEST_TRIALS = 6
_REPEATS = 20
_LONGEST_CELL = 30


@dataclass
class TrialRecord:
    """A trial as it stands."""

    name: str
    values: dict[str, Any]
    """What was searched, by dotted key."""
    status: Status = "running"
    value: float | None = None
    """The metric, when it was last measured."""
    epoch: int = 0
    epochs: int = 0
    """Of the whole run; 0 until the first report."""
    seconds: float = 0.0
    """That it has run, over all starts."""
    reused_epochs: int = 0
    """Epochs that it took over from other trials."""
    message: str = ""
    """Why it failed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All numbers of its last measured epoch."""

    @property
    def seconds_per_epoch(self) -> float | None:
        """Of the epochs that it trained itself, up to its last measured one; None before that."""
        trained = self.epoch - self.reused_epochs
        return self.seconds / trained if trained > 0 else None

    def write(self, folder: Path) -> None:
        """Write trial.json into the trial's folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "trial.json", json.dumps(asdict(self), indent=1))


def read_records(folder: Path) -> dict[str, TrialRecord]:
    """The records of all trials below `folder`, by name."""
    records = [TrialRecord(**json.loads(path.read_text())) for path in sorted(folder.glob("*/trial.json"))]
    return {record.name: record for record in records}


def best_trial(records: Sequence[TrialRecord], mode: str, *, finished: bool = True) -> TrialRecord | None:
    """The trial with the best last value, among those that came to their end; None if there is none.

    A trial that was stopped early may have a better value; a run by its settings would go on and end elsewhere.

    Args:
        records: All trials.
        mode: max or min.
        finished: False: all trials count but those that failed.
    """
    able = [
        each
        for each in records
        if each.value is not None and (each.status == "finished" or (not finished and each.status != "failed"))
    ]
    sign = 1 if mode == "max" else -1
    return max(able, key=lambda each: sign * float(each.value or 0), default=None)


def table(study: Study, records: Sequence[TrialRecord]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, the best trial first."""
    keys = [each.key for each in study.space.keys]
    header = ["trial", "status", "epoch", study.tune.metric, "seconds", *keys]
    sign = -1 if study.tune.mode == "max" else 1
    ordered = sorted(records, key=lambda each: (each.value is None, sign * (each.value or 0), each.name))
    return header, [
        [
            each.name,
            each.status,
            f"{each.epoch}/{each.epochs or '?'}",
            "" if each.value is None else f"{each.value:.4g}",
            f"{each.seconds:.0f}",
            *(name_value(study, key, each.values[key]) if key in each.values else "" for key in keys),
        ]
        for each in ordered
    ]


def name_value(study: Study, key: str, value: Any) -> str:
    """A value as a cell: a long one of a choice begins with its place there, since the first words may be alike."""
    text = show(value)
    given = _given(study, key)
    if len(text) <= _LONGEST_CELL or not isinstance(given, Choice) or value not in given.values:
        return text
    return f"#{given.values.index(value) + 1} {text[: _LONGEST_CELL - 6]}..."


def write_tables(study: Study, records: Sequence[TrialRecord], folder: Path, *, notes: Sequence[str]) -> list[Path]:
    """Write results.csv, with all digits, and results.md, which says that the search is finished: it comes last."""
    keys = [each.key for each in study.space.keys]
    columns = ["trial", "status", "epoch", "epochs", "reused_epochs", study.tune.metric, "seconds", *keys, "message"]
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, columns, extrasaction="ignore")
    writer.writeheader()
    for record in records:
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.values.items()}
        writer.writerow({**asdict(record), **values, "trial": record.name, study.tune.metric: record.value})
    write_whole(folder / "results.csv", sheet.getvalue())
    header, rows = table(study, records)
    lines = [f"# {study.name}", "", *(f"- {note}" for note in notes), ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    write_whole(folder / "results.md", "\n".join(lines) + "\n")
    return [folder / "results.csv", folder / "results.md"]


def importance(study: Study, records: Sequence[TrialRecord]) -> dict[str, float]:
    """How much the metric of the trials depends on each key: shares that sum to 1, the largest first.

    Permutation importance (Breiman 2001) of a random forest that learns the metric from the keys. Trials that were
    stopped count with their last value. Empty if there are fewer than 6 trials or all have one value: nothing could be
    told from them. With few trials the shares are rough all the same.
    """
    measured = [each for each in records if each.value is not None]
    targets = [float(each.value or 0) for each in measured]
    if len(measured) < _FEWEST_TRIALS or max(targets) == min(targets):
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    keys = study.space.keys
    rows = [[_as_number(study, each.key, record.values) for each in keys] for record in measured]
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(rows, targets)
    found = permutation_importance(forest, rows, targets, n_repeats=_REPEATS, random_state=0).importances_mean
    positive = {each.key: max(0.0, float(share)) for each, share in zip(keys, found, strict=True)}
    total = sum(positive.values())
    shares = {key: share / total for key, share in positive.items()} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def draw_pictures(study: Study, records: Sequence[TrialRecord], folder: Path) -> list[Path]:
    """Draw the metric against each searched key, finished trials filled, others hollow; gives the files."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for each in study.space.keys:
        told = [record for record in records if record.value is not None and each.key in record.values]
        if not told:
            continue
        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.subplots()
        for finished, label in ((True, "finished"), (False, "stopped early")):
            points = [record for record in told if (record.status == "finished") is finished]
            across = [_place(study, each.key, record.values) for record in points]
            face = "C0" if finished else "none"
            axes.scatter(
                across, [float(record.value or 0) for record in points], facecolors=face, edgecolors="C0", label=label
            )
        _mark_axis(axes, study, each.key)
        axes.set_xlabel(each.key)
        axes.set_ylabel(study.tune.metric)
        axes.legend()
        path = folder / f"{each.key}.png"
        figure.savefig(path, dpi=120)
        paths.append(path)
    return paths


def _as_number(study: Study, key: str, values: Mapping[str, Any]) -> float:
    """A key's value for a tree: numbers as they are, choices by their place, below all others where it is missing."""
    if key not in values:
        return -1e9
    place = _place(study, key, values)
    return math.log(place) if _is_log(study, key) else place


def _place(study: Study, key: str, values: Mapping[str, Any]) -> float:
    given = _given(study, key)
    value = values[key]
    if isinstance(given, Choice):
        return float(given.values.index(value))
    return float(value) if isinstance(value, int | float) else 0.0


def _mark_axis(axes: Any, study: Study, key: str) -> None:
    given = _given(study, key)
    if isinstance(given, Choice):
        names = [name_value(study, key, value) for value in given.values]
        short = [name if len(name) <= 24 else f"{name[:21]}..." for name in names]
        axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    elif _is_log(study, key):
        axes.set_xscale("log")


def _is_log(study: Study, key: str) -> bool:
    given = _given(study, key)
    return isinstance(given, Interval) and given.log


def _given(study: Study, key: str) -> object:
    return next(each.distribution for each in study.space.keys if each.key == key)
