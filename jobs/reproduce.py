"""Run the rows of a paper's table, one after another, and print them beside the paper's numbers.

    python jobs/reproduce.py psl-table-6 data.root=/shared/imagenet storage_path=/shared/runs cluster.workers=8
    python jobs/reproduce.py mgta-table-2 --voc /shared/voc data.root=/shared/miniimagenet storage_path=/shared/runs
    python jobs/reproduce.py psl-table-9 --voc /shared/voc --places /shared/places205 --inaturalist /shared/inat ...
    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/reproduce.py ...

KEY=VALUE overrides go to every row's recipe; `--rows 'Rotation+PSL,Rotation'` takes some of the rows. A row whose run
is finished is not trained again, what was measured of it is not measured again, and a run that was interrupted goes on,
so the same command can be repeated. With fewer pictures or epochs than the recipes', the table shows what these give:
it is no reproduction then. Whatever ends it, the table is printed as far as it got.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.table import Table

from rayssl import cli
from rayssl.config import ExperimentConfig, load_config
from rayssl.errors import ConfigError
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation.papers import paper_number
from rayssl.html_report import read_run
from rayssl.launch import pretrain
from rayssl.launch_evaluation import evaluate
from rayssl.progress import Display
from rayssl.recipe_file import did_you_mean
from rayssl.report import Report
from rayssl.runs import finished_run
from rayssl.search_display import wide_console

_SUPERVISED = "Supervised"
_DELTA, _AP75 = "detection/psl/delta_ap75", "detection/psl/ap75"


@dataclass(frozen=True)
class Protocol:
    """How some of a table's columns are measured."""

    metrics: tuple[str, ...]
    """What the rows are compared by."""
    data: str
    """Our name of the set that it is measured on."""
    name: str | None = None
    """The evaluation; None: the recipe's own, at the end of each run."""
    overrides: tuple[str, ...] = ()
    """Its settings; {folder} stands for what the option names."""
    option: str | None = None
    """The option that names the folder of the set; None: the pictures that the run was trained on."""
    supervised: tuple[str, ...] = ()
    """Settings of the supervised row alone."""


@dataclass(frozen=True)
class PaperTable:
    """A table that a command repeats."""

    title: str
    protocols: tuple[Protocol, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]
    """The paper's name of a row, the recipe, and overrides that belong to the row."""


@dataclass
class Row:
    """A row as far as it got."""

    name: str
    recipe: str
    metrics: dict[str, float] = field(default_factory=dict)
    """By metric and data set, METRIC@DATA."""


_AUGMENTED = "evaluation.views=augmented"
"""Random crops in each epoch, as in the paper; cached features of sets as large would take up to 200 GiB."""
_PROBE = (Protocol(("linear_probe/best/top1",), "imagenet", "linear_probe", (_AUGMENTED,)),)
_VOC, _ROOT = "voc", "data.root={folder}"
_RESNET = ("backbone.name=resnet", "backbone.depth=50", "backbone.width=64")
_TRANSFER = (
    (_SUPERVISED, "supervised-resnet50-imagenet", ()),
    ("Jigsaw", "end-to-end-jigsaw-g3-imagenet", ()),
    ("Jigsaw+PSL", "psl-jigsaw-imagenet", ()),
    ("Rotation", "end-to-end-rotation-g3-imagenet", _RESNET),
    ("Rotation+PSL", "psl-rotation-imagenet", _RESNET),
)
"""Rows of PSL's Tables 7 to 9: ResNet-50 for both tasks (section 4.3)."""
_MGTA = (
    ("IAE", "iae-miniimagenet", ()),
    ("MGTA (k=100)", "mgta-miniimagenet", ("method.clusters=100",)),
    ("MGTA (k=300)", "mgta-miniimagenet", ("method.clusters=300",)),
)
"""Rows of MGTA's tables. The supervised one was pre-trained on pictures that the paper does not name."""


def _semi_supervised(fraction: float) -> Protocol:
    metric = f"semi_supervised/{100 * fraction:g}_percent/top5"
    return Protocol((metric,), "imagenet", "semi_supervised", (f"evaluation.fraction={fraction:g}",))


def _frozen_body(data: str) -> Protocol:
    overrides = (f"data.name={data}", _ROOT, "evaluation.setting=mgta")
    return Protocol(("detection/mgta/ap50",), data, "detection", overrides, _VOC)


TABLES = {
    "psl-table-4": PaperTable(
        "PSL, Table 4 (contrastive rows)",
        _PROBE,
        (
            ("SimCLR", "end-to-end-simclr-imagenet", ()),
            ("SimCLR+PSL", "psl-simclr-imagenet", ()),
            ("MoCov2", "end-to-end-moco-imagenet", ()),
            ("MoCov2+PSL", "psl-moco-imagenet", ()),
        ),
    ),
    "psl-table-5": PaperTable(
        "PSL, Table 5 (ResNet-50, jigsaw)",
        _PROBE,
        (
            ("Supervised", "supervised-resnet50-imagenet", ()),
            ("Jigsaw", "end-to-end-jigsaw-g3-imagenet", ()),  # the hardest level, says the caption
            ("Jigsaw+SL", "sl-jigsaw-imagenet", ()),
            ("Jigsaw+PSL", "psl-jigsaw-imagenet", ()),
            ("Jigsaw+PSL_f", "psl-f-jigsaw-imagenet", ()),
        ),
    ),
    "psl-table-6": PaperTable(
        "PSL, Table 6 (RevNet-50, rotation)",
        _PROBE,
        (
            ("Supervised (RevNet-50)", "supervised-revnet50-imagenet", ()),
            ("Rotation", "end-to-end-rotation-g3-imagenet", ()),
            ("Rotation+SL", "sl-rotation-imagenet", ()),
            ("Rotation+PSL", "psl-rotation-imagenet", ()),
            ("Rotation+PSL_f", "psl-f-rotation-imagenet", ()),
        ),
    ),
    "psl-table-7": PaperTable(
        "PSL, Table 7 (semi-supervised, top-5)", (_semi_supervised(0.01), _semi_supervised(0.1)), _TRANSFER
    ),
    "psl-table-8": PaperTable(
        "PSL, Table 8 (detection, VOC07+12)",
        (
            Protocol(
                ("detection/psl/ap", "detection/psl/ap50", _AP75, _DELTA),
                "voc0712",
                "detection",
                ("data.name=voc0712", _ROOT, "evaluation.setting=psl"),
                _VOC,
                supervised=("evaluation.learning_rate=0.02",),
            ),
        ),
        _TRANSFER,
    ),
    "psl-table-9": PaperTable(
        "PSL, Table 9 (VOC07 SVM, Places205, iNaturalist 2018)",
        (
            Protocol(("voc07_svm/best/map",), "voc2007", "voc07_svm", ("data.name=voc2007", _ROOT), _VOC),
            Protocol(
                ("linear_probe/best/top1",),
                "places205",
                "linear_probe",
                (
                    "data.name=folder",
                    "data.root={folder}/train",
                    "data.test_root={folder}/val",
                    "data.image_size=224",
                    "evaluation.epochs=14",
                    _AUGMENTED,
                ),
                "places",
            ),
            Protocol(
                ("linear_probe/best/top1",),
                "inaturalist",
                "linear_probe",
                ("data.name=inaturalist", _ROOT, "evaluation.epochs=84", _AUGMENTED),
                "inaturalist",
            ),
        ),
        _TRANSFER,
    ),
    "mgta-table-2": PaperTable(
        "MGTA, Table 2 (VOC07 SVM on res4)",
        (Protocol(("voc07_svm/b4/map",), "voc2007", "voc07_svm", ("data.name=voc2007", _ROOT), _VOC),),
        _MGTA,
    ),
    "mgta-table-3": PaperTable(
        "MGTA, Table 3 (detection, body frozen)", (_frozen_body("voc2007"), _frozen_body("voc0712")), _MGTA
    ),
}


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("table", type=click.Choice(list(TABLES)))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--rows", help="Some of the table's rows, separated by commas.")
@click.option("--voc", type=click.Path(path_type=Path), help="The folder that holds VOCdevkit.")
@click.option("--places", type=click.Path(path_type=Path), help="The folder that holds train/ and val/ of Places205.")
@click.option("--inaturalist", type=click.Path(path_type=Path), help="The folder of iNaturalist 2018.")
def reproduce(table: str, overrides: tuple[str, ...], rows: str | None, **folders: Path | None) -> None:
    """Train, measure and print."""
    chosen = TABLES[table]
    wanted = _choose(chosen, rows)
    missing = {each.option for each in chosen.protocols if each.option is not None and folders[each.option] is None}
    if missing:
        listed = ", ".join(f"--{option}" for option in sorted(missing))
        raise ConfigError(f"{listed}: is required for {table}: {chosen.title}")
    configs = [load_config(recipe, [*own, *overrides]) for _, recipe, own in wanted]  # mistakes come first
    found: list[Row] = []
    try:
        with Display() as display:
            for (name, recipe, own), config in zip(wanted, configs, strict=True):
                found.append(Row(name, " ".join((recipe, *own))))
                display.show(f"{chosen.title}: {name}, recipe {found[-1].recipe}")
                _fill(found[-1], config, chosen, folders, display)
    finally:
        _print(chosen, found, len(wanted))


def _choose(table: PaperTable, rows: str | None) -> list[tuple[str, str, tuple[str, ...]]]:
    if rows is None:
        return list(table.rows)
    names = list(dict.fromkeys(row for row, _, _ in table.rows))
    wanted = [name.strip() for name in rows.split(",")]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--rows: unknown '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}")
    return [each for each in table.rows if each[0] in wanted]


def _fill(
    row: Row, config: ExperimentConfig, table: PaperTable, folders: dict[str, Path | None], display: Display
) -> None:
    """Train the row's recipe and measure it, a protocol after the other."""
    report = _train(config, display)
    for protocol in table.protocols:
        metrics = report.metrics if protocol.name is None else _measure(row, config, report, protocol, folders, display)
        row.metrics |= {f"{name}@{protocol.data}": metrics[name] for name in protocol.metrics if name in metrics}


def _train(config: ExperimentConfig, display: Display) -> Report:
    done = finished_run(config)
    if done is None:
        return pretrain(config, show=display.show)
    display.show(f"finished before: {done.path}")
    return read_run(done.path).report


def _measure(
    row: Row,
    trained: ExperimentConfig,
    report: Report,
    protocol: Protocol,
    folders: dict[str, Path | None],
    display: Display,
) -> dict[str, float]:
    folder = folders[protocol.option] if protocol.option is not None else None
    overrides = [each.replace("{folder}", str(folder)) for each in protocol.overrides]
    overrides += [*(protocol.supervised if row.name == _SUPERVISED else ()), f"storage_path={trained.storage_path}"]
    assert protocol.name is not None
    config, source, _ = load_evaluation(str(report.folder), protocol.name, overrides)
    before = report.folder / "evaluations" / f"{protocol.name}-{config.fingerprint}.json"
    if before.is_file():
        display.show(f"measured before: {before}")
        metrics: dict[str, float] = json.loads(before.read_text())["metrics"]
        return metrics
    return evaluate(config, source, show=display.show).metrics


def _print(table: PaperTable, rows: list[Row], wanted: int) -> None:
    """A line for each row and metric; of rows that were not come to there is none."""
    done = f", {len(rows)} of {wanted} rows" if len(rows) < wanted else ""
    shown = Table(
        "row", "recipe", "metric", "measured", "paper", "of", title=f"{table.title}, in %{done}", title_justify="left"
    )
    _add_differences(rows)
    for row in rows:
        for protocol in table.protocols:
            for name in protocol.metrics:
                value = row.metrics.get(f"{name}@{protocol.data}")
                paper = paper_number(name, data=protocol.data, row=row.name)
                cells = (f"{paper.percent:.1f}", f"{paper.table}: {paper.setting}") if paper is not None else ("", "")
                measured = "not measured" if value is None else f"{100 * value:.1f}"
                shown.add_row(row.name, row.recipe, f"{name} {protocol.data}", measured, *cells)
    wide_console().print(shown)


def _add_differences(rows: list[Row]) -> None:
    """Table 8's last column: AP75 less that of the supervised network which was measured here."""
    ap75, delta = f"{_AP75}@voc0712", f"{_DELTA}@voc0712"
    reference = next((row.metrics[ap75] for row in rows if row.name == _SUPERVISED and ap75 in row.metrics), None)
    for row in rows:
        if reference is not None and ap75 in row.metrics:
            row.metrics[delta] = row.metrics[ap75] - reference


if __name__ == "__main__":
    cli.run(sys.argv[1:], command=reproduce)
