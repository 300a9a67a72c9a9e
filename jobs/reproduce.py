"""Run the rows of a paper's table, one after another, and print them beside the paper's numbers.

    python jobs/reproduce.py psl-table-6 data.root=/shared/imagenet storage_path=/shared/runs cluster.workers=8
    python jobs/reproduce.py mgta-table-2 --voc /shared/voc data.root=/shared/miniimagenet storage_path=/shared/runs
    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/reproduce.py ...

KEY=VALUE overrides go to every row's recipe; `--rows 'Rotation+PSL,Rotation'` takes some of the rows. A row whose run
is finished is not trained again, and one that was interrupted goes on, so the same command can be repeated. With fewer
pictures or epochs than the recipes', the table shows what these give: it is no reproduction then.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from rayssl.config import ExperimentConfig, load_config
from rayssl.errors import ConfigError, RaysslError
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation.papers import PaperNumber, paper_number
from rayssl.html_report import read_run
from rayssl.launch import pretrain
from rayssl.launch_evaluation import evaluate
from rayssl.progress import Display
from rayssl.recipe_file import did_you_mean
from rayssl.report import Report
from rayssl.runs import finished_run


@dataclass(frozen=True)
class PaperTable:
    """A table that a command repeats."""

    title: str
    metric: str
    """What its rows are compared by."""
    data: str
    """The set that it is measured on."""
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]
    """The paper's name of a row, the recipe, and overrides that belong to the row."""


def _end_to_end(task: str, row: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The paper does not say on which level its end-to-end rows were trained: all three."""
    return tuple((row, f"end-to-end-{task}-g{level}-imagenet", ()) for level in (1, 2, 3))


TABLES = {
    "psl-table-4": PaperTable(
        "PSL, Table 4 (contrastive rows)",
        "linear_probe/best/top1",
        "imagenet",
        (
            ("SimCLR", "end-to-end-simclr-imagenet", ()),
            ("SimCLR+PSL", "psl-simclr-imagenet", ()),
            ("MoCov2", "end-to-end-moco-imagenet", ()),
            ("MoCov2+PSL", "psl-moco-imagenet", ()),
        ),
    ),
    "psl-table-5": PaperTable(
        "PSL, Table 5 (ResNet-50, jigsaw)",
        "linear_probe/best/top1",
        "imagenet",
        (
            ("Supervised", "supervised-resnet50-imagenet", ()),
            *_end_to_end("jigsaw", "Jigsaw"),
            ("Jigsaw+SL", "sl-jigsaw-imagenet", ()),
            ("Jigsaw+PSL", "psl-jigsaw-imagenet", ()),
            ("Jigsaw+PSL_f", "psl-f-jigsaw-imagenet", ()),
        ),
    ),
    "psl-table-6": PaperTable(
        "PSL, Table 6 (RevNet-50, rotation)",
        "linear_probe/best/top1",
        "imagenet",
        (
            ("Supervised (RevNet-50)", "supervised-revnet50-imagenet", ()),
            *_end_to_end("rotation", "Rotation"),
            ("Rotation+SL", "sl-rotation-imagenet", ()),
            ("Rotation+PSL", "psl-rotation-imagenet", ()),
            ("Rotation+PSL_f", "psl-f-rotation-imagenet", ()),
        ),
    ),
    "mgta-table-2": PaperTable(
        "MGTA, Table 2 (VOC07 SVM on res4)",
        "voc07_svm/b4/map",
        "voc2007",
        (
            ("IAE", "iae-miniimagenet", ()),
            ("MGTA (k=100)", "mgta-miniimagenet", ("method.clusters=100",)),
            ("MGTA (k=300)", "mgta-miniimagenet", ("method.clusters=300",)),
        ),
    ),
}


def main(arguments: list[str]) -> None:
    """Train, measure and print; a mistake ends with one message and code 2."""
    options = _parse(arguments)
    table = TABLES[options.table]
    try:
        chosen = _choose(table, options.rows)
        if table.data == "voc2007" and options.voc is None:
            raise ConfigError("--voc: is required for this table: the folder that holds VOCdevkit/VOC2007")
        configs = [load_config(recipe, [*own, *options.overrides]) for _, recipe, own in chosen]  # mistakes come first
        with Display() as display:
            results = []
            for (row, recipe, own), config in zip(chosen, configs, strict=True):
                display.show(f"{table.title}: {row}, recipe {' '.join((recipe, *own))}")
                report = _train(config, display)
                metrics = (
                    report.metrics if table.data != "voc2007" else _measure_voc(config, report, options.voc, display)
                )
                results.append((row, recipe, metrics, paper_number(table.metric, data=table.data, row=row)))
    except RaysslError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    _print(table, results, display)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rows", help="some of the table's rows, separated by commas")
    parser.add_argument("--voc", type=Path, help="the folder that holds VOCdevkit/VOC2007, for mgta-table-2")
    return parser.parse_args(arguments)


def _choose(table: PaperTable, rows: str | None) -> list[tuple[str, str, tuple[str, ...]]]:
    if rows is None:
        return list(table.rows)
    names = list(dict.fromkeys(row for row, _, _ in table.rows))
    wanted = [name.strip() for name in rows.split(",")]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--rows: unknown '{name}'.{did_you_mean(name, names)} There are: {', '.join(names)}")
    return [each for each in table.rows if each[0] in wanted]


def _train(config: ExperimentConfig, display: Display) -> Report:
    done = finished_run(config)
    if done is None:
        return pretrain(config, show=display.show)
    display.show(f"finished before: {done.path}")
    return read_run(done.path).report


def _measure_voc(trained: ExperimentConfig, report: Report, voc: Path, display: Display) -> dict[str, float]:
    overrides = ["data.name=voc2007", f"data.root={voc}", f"storage_path={trained.storage_path}"]
    config, source, _ = load_evaluation(str(report.folder), "voc07_svm", overrides)
    return evaluate(config, source, show=display.show).metrics


def _print(
    table: PaperTable, results: list[tuple[str, str, dict[str, float], PaperNumber | None]], display: Display
) -> None:
    shown = Table("row", "recipe", "measured", "paper", "of", title=f"{table.title}, in %", title_justify="left")
    for row, recipe, metrics, paper in results:
        measured = f"{100 * metrics[table.metric]:.1f}" if table.metric in metrics else "not measured"
        cells = (f"{paper.percent:.1f}", f"{paper.table}: {paper.setting}") if paper is not None else ("", "")
        shown.add_row(row, recipe, measured, *cells)
    display.console.print(shown)


if __name__ == "__main__":
    main(sys.argv[1:])
