"""`rayssl submit` and `rayssl jobs`: the same commands on a cluster."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import click

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
        click.echo(f"note: the cluster runs Ray {cluster.ray_version}, this machine {here}", err=True)
    for name in withheld(os.environ):
        click.echo(f"note: {name} is a secret and not sent with the job; set it on the cluster", err=True)
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
    click.echo(f"job {job_id} {job.status.lower()}")
    sys.exit(job.exit_code if job.exit_code is not None else int(job.status != "SUCCEEDED"))


def _check(command: tuple[str, ...]) -> None:
    """Find a recipe's mistakes here, before the cluster is asked for anything."""
    from rayssl.cli import cli
    from rayssl.config import load_config
    from rayssl.errors import ClusterError, ConfigError
    from rayssl.recipe_file import did_you_mean

    name, *arguments = command
    if name not in cli.commands:
        raise ConfigError(f"command '{name}': unknown.{did_you_mean(name, list(cli.commands))}")
    if name != "pretrain":
        return
    recipe, *overrides = [argument for argument in arguments if not argument.startswith("-")] or [""]
    config = load_config(recipe, overrides)
    if isinstance(config.storage_path, Path) and not config.storage_path.expanduser().is_absolute():
        raise ClusterError(
            f"storage_path: must be absolute for a job, since its working copy is deleted with it, got "
            f"{config.storage_path}. Add storage_path=/FOLDER/THAT/ALL/NODES/SEE, or "
            "storage_path=s3://BUCKET/FOLDER."
        )


def _leave_or_stop(address: str, job_id: str) -> None:
    from rayssl.cluster.submit import Cluster

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
    job = cluster.follow(job_id, lambda text: click.echo(text, nl=False))
    sys.exit(job.exit_code if job.exit_code is not None else int(job.status != "SUCCEEDED"))


@jobs.command()
@click.argument("job_id")
@click.pass_obj
def stop(address: str, job_id: str) -> None:
    """Ask a job to stop; its run can be gone on with later."""
    from rayssl.cluster.submit import Cluster

    Cluster(address).stop(job_id)
    click.echo(f"job {job_id} was asked to stop")
