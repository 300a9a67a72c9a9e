"""`rayssl search STUDY`: many runs, and the settings that are best."""

import shlex
import sys
from pathlib import Path

import click


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--resume", is_flag=True, help="Go on with the newest search of this study that is not finished.")
@click.option("--dry-run", is_flag=True, help="Check the study, print the first samples and the plan, and stop.")
def search(study: Path, overrides: tuple[str, ...], resume: bool, dry_run: bool) -> None:
    """Search for the best settings of a recipe by STUDY, a YAML file.

    Dotted keys override the recipe, those that begin with tune. the study: rayssl search
    search_spaces/psl_difficulty.yaml data.name=folder data.root=DIR tune.num_samples=4.
    """
    from rayssl.cluster.tune import trials_at_a_time
    from rayssl.search_display import SearchDisplay, print_plan, print_result, wide_console
    from rayssl.search_space import load_study
    from rayssl.storage import in_job, lasting

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
            result = search(loaded, resume=resume, show=display.show)
    except KeyboardInterrupt:
        command = shlex.join(["rayssl", "search", str(study), *overrides, "--resume"])
        click.echo(f"interrupted; nothing is lost, go on with: {command}", err=True)
        sys.exit(130)
    print_result(loaded, result, console=display.console)
    if result.recipe is not None:
        click.echo(f"\nrecipe      {result.recipe}")
    click.echo(f"results     {result.folder / 'results.md'}")
    click.echo(f"MLflow      {mlflow_command(loaded.base.storage_path)}")
