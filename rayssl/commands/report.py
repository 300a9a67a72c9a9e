"""`rayssl report RUN...`: what runs have measured, on a page."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), help="The page, FILE.html; its tables go to FILE.md beside it.")
@click.option("--storage", "storage_path", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def report(runs: tuple[str, ...], out: Path | None, storage_path: Path) -> None:
    """Write one HTML page about a run, or to compare several; RUN is a run's folder, its id, or the name of a recipe,
    which means the newest run of it.

    A run that is not finished gives what it has so far. Without --out the page of one run is report.html in its folder,
    that of several comparison.html beside the first one's folder.
    """
    from rayssl.html_report import find_run, read_run, write_report

    folders = list(dict.fromkeys(find_run(run, storage_path=storage_path) for run in runs))
    records = [read_run(folder) for folder in folders]
    default = folders[0] / "report.html" if len(folders) == 1 else folders[0].parent / "comparison.html"
    page, tables = write_report(records, out or default, show=lambda text: click.echo(text, err=True))
    for record in records:
        if not record.is_finished:
            click.echo(f"note: {record.run_id} is {record.status}", err=True)
    click.echo(f"page        {page}")
    click.echo(f"tables      {tables}")
