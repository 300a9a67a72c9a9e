"""The `rayssl` command. Imports inside the commands keep `rayssl --help` quick."""

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from rayssl import __version__
from rayssl.commands.doctor import doctor
from rayssl.commands.evaluate import evaluate
from rayssl.commands.plan import plan
from rayssl.commands.report import report
from rayssl.commands.search import search
from rayssl.commands.submit import jobs, submit
from rayssl.errors import RaysslError, RunStopped, full_disk


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rayssl")
def cli() -> None:
    """Self-supervised pre-training, stage by stage, on Ray."""


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--show", "show_only", is_flag=True, help="Print the resolved config and stop.")
@click.option("--fresh", is_flag=True, help="Start a new run even if there is an unfinished one to go on with.")
def pretrain(recipe: str, overrides: tuple[str, ...], show_only: bool, fresh: bool) -> None:
    """Pre-train an encoder by RECIPE (a name or a YAML file) and evaluate it.

    Dotted keys override the recipe: rayssl pretrain psl-rotation-small data.name=folder data.root=DIR.
    The same command goes on with a run that was interrupted. `rayssl recipes` lists what comes with rayssl.
    """
    from rayssl.config import load_config_with_notes
    from rayssl.recipe_file import to_yaml

    config, notes = load_config_with_notes(recipe, overrides)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if show_only:
        click.echo(to_yaml(config), nl=False)
        return
    from rayssl.launch import mlflow_command, pretrain
    from rayssl.progress import Display, print_report

    with Display() as display:
        report = pretrain(config, fresh=fresh, show=display.show)
    print_report(report, console=display.console)
    click.echo(f"\ncheckpoint  {report.folder / 'encoder.pt'}")
    click.echo(f"report      {report.folder / 'report.md'}")
    click.echo(f"MLflow      {mlflow_command(config.storage_path)}")


@cli.command()
def recipes() -> None:
    """List the recipes that come with rayssl."""
    from rayssl.config import recipe_summaries

    for name, summary in recipe_summaries():
        click.echo(f"{name:32} {summary}")


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def schema(file: Path) -> None:
    """Write the JSON schema of recipes to FILE, for editors that check YAML while one types."""
    from rayssl.config import ExperimentConfig
    from rayssl.recipe_file import write_json_schema

    write_json_schema(ExperimentConfig, file)
    click.echo(f"{file}: written. Name it in a recipe's first line: # yaml-language-server: $schema={file}")


for _command in (doctor, evaluate, jobs, plan, report, search, submit):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None, *, command: click.Command = cli) -> None:
    """Run a command as the last thing that this process does; see `main`.

    Once threads have ended and what libraries have to do at the end is done, the process leaves at once. Taking down
    what torch and MLflow have built takes 2 s, and Ray 2.60 was seen to wait there for ever for a thread of its own: a
    job whose work was done never ended.
    """
    code: object = 1  # of an error that nobody expects, whose traceback comes before the process ends
    # Registered before anything large is imported, so that it is called last.
    atexit.register(lambda: _leave(code))
    try:
        main(arguments, command=command)
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
        raise


def _leave(code: object) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def main(arguments: Sequence[str] | None = None, *, command: click.Command = cli) -> None:
    """Run a command; a user's mistake is one message and exit code 2, an interruption 130 (or 143)."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except RunStopped as stop:
        click.echo(str(stop), err=True)
        sys.exit(128 + signal.SIGTERM)
    except RaysslError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        mistake = full_disk(error)
        if mistake is None:
            raise
        click.echo(f"error: {mistake}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(130)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that the run is marked as killed and its lock is given back."""
    sys.exit(128 + number)
