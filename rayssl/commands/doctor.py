"""`rayssl doctor`: is everything here that a run needs?"""

import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--address",
    help="A Ray head to look at, HOST:PORT, or its dashboard, http://HOST:PORT; left out: RAY_ADDRESS, or none.",
)
@click.option("--storage", default="runs", show_default=True, help="A folder, or s3://BUCKET/FOLDER.")
@click.option("--data", "data_root", type=click.Path(path_type=Path), help="A folder of pictures to try.")
def doctor(address: str | None, storage: str, data_root: Path | None) -> None:
    """Check versions, GPUs, Ray, MLflow, storage, pictures, shared memory and limits: each ok, or what to do."""
    from rayssl.doctor import examine
    from rayssl.storage import parse_storage_path

    failed = False
    for finding in examine(address=address, storage_path=parse_storage_path(storage), data_root=data_root):
        failed |= not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:14}  {finding.text}")
    sys.exit(2 if failed else 0)
