"""`rayssl submit` and `rayssl jobs`: the same commands on a cluster."""

import os
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from rayssl.cluster.submit import Job

_ADDRESS = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    required=True,
    help="The head's dashboard, http://HEAD:8265 (or RAY_API_SERVER_ADDRESS).",
)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_ADDRESS
@click.option("--no-wait", is_flag=True, help="Leave as soon as the job is submitted.")
@click.option("--python", default="python", show_default=True, help="The interpreter on the cluster.")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT]...")
def submit(address: str, no_wait: bool, python: str, command: tuple[str, ...]) -> None:
    """Run a rayssl command on a cluster: rayssl submit --address http://HEAD:8265 -- pretrain RECIPE KEY=VALUE.

    The working directory is sent along without data, caches and results, MLFLOW_* variables too, but for secrets. The
    job's output is followed, and its exit code is this command's. Ctrl-C asks whether to stop the job or to leave it.
    """
    from rayssl.cluster.submit import Cluster, withheld

    _check(command)
    cluster = Cluster(address)
    here = version("ray")
    if here.split(".")[:2] != cluster.ray_version.split(".")[:2]:
        click.echo(
            f"note: the cluster runs Ray {cluster.ray_version}, this machine {here}; if the job can't be understood "
            f"there, install ray=={cluster.ray_version} here",
            err=True,
        )
    for name in withheld(os.environ):
        click.echo(f"note: {name} holds a secret and is not sent with the job; set it on the cluster", err=True)
    job_id = cluster.submit(command, working_dir=Path.cwd(), python=python)
    click.echo(f"job {job_id} on {address}")
    if no_wait:
        click.echo(f"follow it with: rayssl jobs --address {address} logs --follow {job_id}")
        return
    try:
        job = cluster.follow(job_id, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        _leave_or_stop(address, job_id)
        sys.exit(130)
    _tell_end(job)


def _tell_end(job: "Job") -> NoReturn:
    """Say how a job ended, and leave with its exit code."""
    click.echo(f"job {job.id} {job.status.lower()}")
    if job.exit_code is None and job.status == "FAILED":
        click.echo(f"error: {job.message}", err=True)
    sys.exit(job.exit_status)


def _check(command: tuple[str, ...]) -> None:
    """Find mistakes here, before the cluster is asked for anything."""
    from rayssl.cli import cli
    from rayssl.config import load_config
    from rayssl.errors import ConfigError
    from rayssl.recipe_file import did_you_mean
    from rayssl.search_space import load_study
    from rayssl.storage import is_address, lasting, parse_storage_path

    name, *arguments = command
    if name not in cli.commands or name in ("submit", "jobs"):
        known = [each for each in cli.commands if each not in ("submit", "jobs")]
        raise ConfigError(f"command '{name}': unknown, or none that a job can run.{did_you_mean(name, known)}")
    what, *overrides = [argument for argument in arguments if not argument.startswith("-")] or [""]
    if name in ("pretrain", "search"):
        _check_sent_along(what)
        recipe = load_config(what, overrides) if name == "pretrain" else load_study(what, overrides).base
        lasting(recipe.storage_path)
    elif name == "evaluate" and not (Path(what).is_absolute() or is_address(what)):
        given = [text.removeprefix("storage_path=") for text in overrides if text.startswith("storage_path=")]
        lasting(parse_storage_path((given or ["runs"])[-1]))


def _check_sent_along(file: str) -> None:
    """A recipe or a study that is a file must be in the working directory, which is all that a job is sent."""
    from rayssl.errors import ConfigError

    path = Path(file)
    if path.suffix in (".yaml", ".yml") and not path.is_absolute() and not path.resolve().is_relative_to(Path.cwd()):
        raise ConfigError(
            f"'{file}': lies outside of {Path.cwd()}, which is sent along. Copy it here, or give the absolute path "
            "that it has on the cluster."
        )


def _leave_or_stop(address: str, job_id: str) -> None:
    """After Ctrl-C: another one, or any doubt, leaves the job as it is."""
    from rayssl.cluster.submit import Cluster

    stop = False
    with suppress(click.Abort, KeyboardInterrupt):
        stop = sys.stdin.isatty() and click.confirm(f"\nstop job {job_id} (otherwise it goes on)?", default=False)
    if stop:
        Cluster(address).stop(job_id)
        click.echo("stopping; the same command goes on from the last checkpoint")
    else:
        click.echo(f"job {job_id} goes on; stop it with: rayssl jobs --address {address} stop {job_id}", err=True)


@click.group()
@_ADDRESS
@click.pass_context
def jobs(context: click.Context, address: str) -> None:
    """List, read and stop the jobs of a cluster."""
    context.obj = address


@jobs.command("list")
@click.pass_obj
def list_jobs(address: str) -> None:
    """List the submitted jobs, the newest last."""
    from rayssl.cluster.submit import Cluster

    for job in Cluster(address).jobs():
        click.echo(f"{job.id}  {job.status:9}  {job.command}")


@jobs.command()
@click.argument("job_id")
@click.option("--follow", is_flag=True, help="Go on until the job ends; the exit code is the job's.")
@click.pass_obj
def logs(address: str, job_id: str, follow: bool) -> None:
    """Print what a job has printed."""
    from rayssl.cluster.submit import Cluster

    cluster = Cluster(address)
    if not follow:
        click.echo(cluster.logs(job_id), nl=False)
        return
    try:
        _tell_end(cluster.follow(job_id, lambda text: click.echo(text, nl=False)))
    except KeyboardInterrupt:
        click.echo(f"job {job_id} goes on", err=True)
        sys.exit(130)


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def stop(address: str, job_id: str) -> None:
    """Ask a job to stop; its run can be gone on with later."""
    from rayssl.cluster.submit import Cluster

    Cluster(address).stop(job_id)
    click.echo(f"job {job_id} was asked to stop")
