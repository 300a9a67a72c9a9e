"""The parts of the page about one run: its numbers, and what its pictures show."""

from collections.abc import Iterator
from pathlib import Path

from rayssl.errors import DataError
from rayssl.evaluation_report import HEADER
from rayssl.html_report.curves import blocks_figure, stages_sentence, training_panels
from rayssl.html_report.examples import file_uri, task_examples
from rayssl.html_report.feature_sections import feature_sections
from rayssl.html_report.page import bullets, figure, heading, image, panels, paragraph, table
from rayssl.html_report.pictures import open_few
from rayssl.html_report.records import RunRecord
from rayssl.html_report.tables import block_table, class_table, evaluation_table

_WIDEST = 704
"""Of drawn files, in pixels; the page is not wider."""


def number_sections(run: RunRecord, *, level: int, identity: str = "") -> Iterator[str]:
    """Probes, evaluations and curves of a run.

    Args:
        run: The run.
        level: Of the headings.
        identity: Keeps its drawings' ids apart from those of other runs on the page.
    """
    probes = block_table(run)
    if probes is not None:
        yield heading(level, "Linear probes")
        yield table(probes)
        yield blocks_figure(run, identity=identity) or ""
    yield bullets(run.report.notes)
    yield from _evaluations(run, level=level)
    curves = training_panels(run, identity=identity)
    if curves:
        yield heading(level, "Training")
        yield paragraph(stages_sentence(run))
        yield panels(curves)


def picture_sections(run: RunRecord) -> Iterator[str]:
    """What a run's pictures show, as far as they are still there: views, reconstructions, neighbours and a map."""
    try:
        with open_few(run.config) as pictures:
            yield heading(2, "Pictures as the network sees them")
            for example in task_examples(run.config, pictures.shown):
                yield heading(3, example.title)
                grid = image(example.picture, text=f"Views of {len(pictures.shown)} training pictures", kind="grid")
                yield figure(grid, example.caption)
            yield from _reconstructions(run)
            yield from feature_sections(run, pictures)
    except DataError as error:
        yield heading(2, "Pictures")
        yield paragraph(f"The run's pictures can't be shown, they are not where they were: {error}", kind="warning")
        yield from _reconstructions(run)


def _evaluations(run: RunRecord, *, level: int) -> Iterator[str]:
    drawn = _drawn_examples(run.report.folder)
    if run.evaluations or run.unread or drawn:
        yield heading(level, "Evaluations")
    for evaluation in run.evaluations:
        part = f" of {evaluation.part}" if evaluation.part else ""
        yield heading(level + 1, f"{evaluation.config.evaluation.name}{part} on {evaluation.config.data.name}")
        rows = evaluation_table(evaluation)
        yield table(rows) if rows.rows else paragraph(rows.caption)
        notes = list(evaluation.notes)
        if len(rows.header) < len(HEADER):  # no number of the papers stands in the table
            notes += [f"paper: {note}" for note in evaluation.paper_notes()]
        yield bullets(notes)
        classes = class_table(evaluation)
        if classes is not None:
            yield table(classes)
        yield from drawn.pop(evaluation.stem, [])
    for name, figures in drawn.items():
        yield heading(level + 1, f"Examples of {name}")
        yield from figures
    yield from (paragraph(sentence, kind="warning") for sentence in run.unread)


def _drawn_examples(folder: Path) -> dict[str, list[str]]:
    """Figures that evaluations left, evaluations/NAME/examples/*.png, each with its caption beside it in a .txt."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("evaluations/[!.]*/examples/*.png")):
        beside = path.with_suffix(".txt")
        caption = beside.read_text(encoding="utf-8").strip() if beside.is_file() else path.stem
        drawing = image(file_uri(path, width=_WIDEST), text=caption, kind="natural")
        found.setdefault(path.parent.parent.name, []).append(figure(drawing, caption))
    return {name: [panels(figures)] for name, figures in found.items()}


def _reconstructions(run: RunRecord) -> Iterator[str]:
    """The files that MGTA drew at each stage's end, in the order of its stages."""
    order = {stage.name.replace(" of N", "-n"): number for number, stage in enumerate(run.stages)}
    files = sorted(
        run.report.folder.glob("reconstructions/*.png"), key=lambda path: (order.get(path.stem, len(order)), path.name)
    )
    if not files:
        return
    yield heading(2, "Reconstructions")
    yield paragraph(
        "After each stage: training pictures above what the auto-encoder gives back. Sharp pictures say that little is "
        "lost on the way, not that the features tell classes."
    )
    shown = []
    for path in files:
        name = path.stem.replace("-n", " of N")
        drawing = image(file_uri(path, width=_WIDEST), text=f"Reconstructions, {name}", kind="grid")
        shown.append(figure(drawing, f"{name}."))
    yield panels(shown)
