"""`rayssl report RUN...`: what runs have measured, on a page."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), help="The page, FILE.html; its tables go to FILE.md beside it.")
@click.option("--storage", default="runs", show_default=True, help="Where runs are: a folder, or s3://BUCKET/FOLDER.")
def report(runs: tuple[str, ...], out: Path | None, storage: str) -> None:
    """Write one HTML page about a run, or to compare several; RUN is a run's folder or address, its id, or the name of
    a recipe, which means the newest run of it.

    A run that is not finished gives what it has so far. Without --out the page of one run is report.html in its folder,
    that of several comparison.html beside the first one's folder.
    """
    from rayssl.html_report import find_run, read_run, write_report
    from rayssl.object_store import store_of
    from rayssl.runs import bring_run, locate
    from rayssl.storage import local_folder, parse_storage_path

    folders = []
    for run in runs:
        name, storage_path = locate(run, storage_path=parse_storage_path(storage))
        bring_run(name, storage_path=storage_path)
        folders.append(find_run(name, storage_path=local_folder(storage_path)))
    folders = list(dict.fromkeys(folders))
    records = [read_run(folder) for folder in folders]
    default = folders[0] / "report.html" if len(folders) == 1 else folders[0].parent / "comparison.html"
    page, tables = write_report(records, out or default, show=lambda text: click.echo(text, err=True))
    for record in records:
        if not record.is_finished:
            click.echo(f"note: {record.run_id} is {record.status}", err=True)
    click.echo(f"page        {page}")
    click.echo(f"tables      {tables}")
    store = store_of(storage_path, page)
    if store is not None:
        for file in (page, tables):
            store.push(file)
        click.echo(f"kept in     {store.address_of(page)}")
