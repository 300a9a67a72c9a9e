"""`rayssl search STUDY`: many runs, and the settings that are best."""

import shlex
import signal
import sys
from pathlib import Path

import click

from rayssl.errors import RunStopped


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--fresh", is_flag=True, help="Start a new search even if there is an unfinished one to go on with.")
@click.option("--resume", is_flag=True, help="Only go on with an unfinished search; a mistake if there is none.")
@click.option("--dry-run", is_flag=True, help="Check the study, print the first samples and the plan, and stop.")
def search(study: Path, overrides: tuple[str, ...], fresh: bool, resume: bool, dry_run: bool) -> None:
    """Search for the best settings of a recipe by STUDY, a YAML file.

    Dotted keys override the recipe, those that begin with tune. the study: rayssl search
    search_spaces/psl_difficulty.yaml data.name=folder data.root=DIR tune.num_samples=4.
    The same command goes on with a search that was interrupted.
    """
    from rayssl.cluster.tune import trials_at_a_time
    from rayssl.search_display import SearchDisplay, print_plan, print_result, wide_console
    from rayssl.search_space import load_study
    from rayssl.storage import in_job, lasting

    if fresh and resume:
        raise click.UsageError("--fresh starts a new search, --resume refuses to. Give one of them")
    loaded = load_study(study, overrides)
    if dry_run:
        print_plan(loaded, at_a_time=trials_at_a_time(loaded), console=wide_console())
        return
    if in_job():
        lasting(loaded.base.storage_path)
    from rayssl.launch import mlflow_command
    from rayssl.search import search

    try:
        with SearchDisplay(loaded) as display:
            result = search(loaded, resume=resume, fresh=fresh, show=display.show)
    except (KeyboardInterrupt, RunStopped, SystemExit) as stop:  # the last one by a second SIGTERM
        command = shlex.join(["rayssl", "search", str(study), *overrides])
        is_interrupted = isinstance(stop, KeyboardInterrupt)
        word = "interrupted" if is_interrupted else "stopped"
        click.echo(f"{word}; nothing is lost, go on with: {command}", err=True)
        sys.exit(128 + (signal.SIGINT if is_interrupted else signal.SIGTERM))
    print_result(loaded, result, console=display.console)
    if result.recipe is not None:
        click.echo(f"\nrecipe      {result.recipe}")
    click.echo(f"results     {result.folder / 'results.md'}")
    click.echo(f"MLflow      {mlflow_command(loaded.base.storage_path)}")
