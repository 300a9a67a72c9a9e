"""The report of one run or several: one HTML page, and the same tables as Markdown."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rayssl.errors import ConfigError
from rayssl.html_report.curves import comparison_figures
from rayssl.html_report.page import heading, page, panels, paragraph, table
from rayssl.html_report.records import RunRecord
from rayssl.html_report.sections import number_sections, picture_sections
from rayssl.html_report.tables import best_table, block_table, class_table, evaluation_table, facts_table


def write_report(
    runs: Sequence[RunRecord], out: Path, *, show: Callable[[str], None] = lambda text: None
) -> tuple[Path, Path]:
    """Write a page about the runs, and a Markdown file beside it.

    Args:
        runs: At least one. Of a single one its pictures are shown too; several are compared.
        out: The page's file, .html; its folder is made.
        show: Called with what is being done.

    Returns:
        Both files.

    Raises:
        ConfigError: If the file's name does not end in .html, or it can't be written.
    """
    if out.suffix != ".html":
        raise ConfigError(f"--out: must end in .html, got {out}")
    markdown = out.with_suffix(".md")
    content = to_html(runs, show=show)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(content, encoding="utf-8")
        markdown.write_text(to_markdown(runs), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {out} can't be written ({error.strerror})") from None
    return out, markdown


def to_html(runs: Sequence[RunRecord], *, show: Callable[[str], None] = lambda text: None) -> str:
    """The page as text."""
    if len(runs) > 1:
        return page(_title(runs), _comparison(runs))
    show("reading pictures and features ...")
    return page(_title(runs), _single(runs[0]))


def to_markdown(runs: Sequence[RunRecord]) -> str:
    """The tables as Markdown; of a single run with all its epochs."""
    if len(runs) == 1:
        lines = [runs[0].report.to_markdown(), "## Settings", "", *facts_table(runs).to_markdown()]
        return "\n".join([*lines, *_measured(runs[0], level=2)])
    lines = [f"# {_title(runs)}", "", *best_table(runs).to_markdown(), "## Settings", ""]
    lines += facts_table(runs).to_markdown()
    for run in runs:
        lines += [f"## {run.run_id}", "", *_measured(run, level=3)]
    return "\n".join(lines)


def _single(run: RunRecord) -> Iterator[str]:
    yield heading(1, run.run_id)
    if not run.is_finished:
        yield paragraph(f"This run is {run.status}. The report is partial.", kind="warning")
    yield table(facts_table([run]))
    yield from number_sections(run, level=2)
    yield from picture_sections(run)


def _comparison(runs: Sequence[RunRecord]) -> Iterator[str]:
    yield heading(1, _title(runs))
    for run in runs:
        if not run.is_finished:
            yield paragraph(f"{run.run_id} is {run.status}. Its part is partial.", kind="warning")
    yield heading(2, "Best blocks")
    yield table(best_table(runs))
    yield panels(comparison_figures(runs))
    yield heading(2, "Settings")
    yield table(facts_table(runs))
    for number, run in enumerate(runs, start=1):
        yield heading(2, run.run_id)
        yield from number_sections(run, level=3, identity=f"run{number}-")


def _title(runs: Sequence[RunRecord]) -> str:
    return runs[0].run_id if len(runs) == 1 else f"Comparison of {len(runs)} runs"


def _measured(run: RunRecord, *, level: int) -> list[str]:
    """Probes beside the paper's, and evaluations."""
    mark = "#" * level
    probes = block_table(run)
    lines = [] if probes is None else [f"{mark} Linear probes beside the paper's", "", *probes.to_markdown()]
    for evaluation in run.evaluations:
        part = f" of {evaluation.part}" if evaluation.part else ""
        lines += [f"{mark} {evaluation.config.evaluation.name}{part} on {evaluation.config.data.name}", ""]
        rows, classes = evaluation_table(evaluation), class_table(evaluation)
        lines += rows.to_markdown() if rows.rows else [rows.caption, ""]
        lines += classes.to_markdown() if classes is not None else []
        lines += [*(f"- {note}" for note in evaluation.notes), ""]
    return lines
