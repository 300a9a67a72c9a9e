"""`rayssl plan`: what a run will cost."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from rayssl.plan import Plan

_LOG_WIDTH = 160
"""Columns of a table that no terminal bounds."""


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--workers", type=click.IntRange(min=1), multiple=True, help="How many; may be repeated. Left out: the recipe's."
)
@click.option(
    "--pictures",
    type=click.IntRange(min=1),
    help="Training pictures of the set, before data.limit and the hold-out; left out: those in data.root.",
)
@click.option(
    "--bandwidth-gbit",
    type=click.FloatRange(min=0, min_open=True),
    help="What a worker sends, in Gbit/s; left out: measured between two processes here.",
)
@click.option(
    "--latency-us",
    type=click.FloatRange(min=0),
    help="Of a message, in microseconds; left out: measured, or 0 with --bandwidth-gbit.",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the communication that can hide behind the backward pass.",
)
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    help="What a worker sustains, in 10^12 operations a second; then operations are counted here and nothing is timed.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Timed repetitions; the median counts."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    workers: tuple[int, ...],
    pictures: int | None,
    bandwidth_gbit: float | None,
    latency_us: float | None,
    overlap: float,
    tflops: float | None,
    steps: int,
    as_json: bool,
) -> None:
    """Say what RECIPE costs before it is run: steps, time, memory and traffic of every stage.

    A few steps of each stage are timed on this machine, on made-up pictures, and a model of the communication is added
    for each number of workers; what it takes for granted stands below the table.

    rayssl plan psl-rotation-small data.root=DIR --workers 1 --workers 2

    rayssl plan psl-jigsaw-imagenet --pictures 1281167 --workers 8 --workers 64 --tflops 60 --bandwidth-gbit 400
    """
    from rayssl.config import load_config_with_notes
    from rayssl.plan import plan_experiments, to_json

    config, notes = load_config_with_notes(recipe, overrides)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    plans = plan_experiments(
        config,
        list(dict.fromkeys(workers)) or [max(1, config.cluster.most_workers)],
        num_pictures=pictures,
        calibration_steps=steps,
        bandwidth=None if bandwidth_gbit is None else bandwidth_gbit * 1e9 / 8,
        latency=None if latency_us is None else latency_us * 1e-6,
        overlap=overlap,
        flops_per_second=None if tflops is None else tflops * 1e12,
    )
    if as_json:
        click.echo(to_json(plans))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=_LOG_WIDTH)
    for each in plans:
        console.print(_stages(each))
    if len(plans) > 1:
        console.print(_comparison(plans))
    for sentence in dict.fromkeys(sentence for each in plans for sentence in each.assumptions):
        console.print(sentence, markup=False)


def _stages(plan: "Plan") -> "Table":
    from rich.table import Table

    title = f"{plan.recipe}, {plan.num_workers} worker{'s' if plan.num_workers > 1 else ''} ({plan.device})"
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for heading in (
        "pictures",
        "a step",
        "steps",
        "epochs",
        "ms a step",
        "waiting",
        "views/s",
        "MiB a worker",
        "MiB sent",
        "labelling",
        "probes",
        "time",
    ):
        table.add_column(heading, justify="right")
    for stage in plan.stages:
        table.add_row(
            stage.name,
            f"{stage.pictures:,}",
            f"{stage.images_per_step:,}",
            f"{stage.steps:,}",
            str(stage.epochs),
            f"{1e3 * stage.step_seconds:.1f}",
            f"{stage.communication_share:.1%}",
            f"{stage.examples_per_second:,.0f}",
            f"{stage.memory_bytes / 2**20:,.0f}",
            f"{stage.synchronized_bytes / 2**20:.1f}",
            _time(stage.preparing_seconds),
            _time(stage.measuring_seconds),
            _time(stage.seconds),
        )
    if plan.start_seconds:
        table.add_row("decoding", *[""] * 11, _time(plan.start_seconds))
    total = (f"{plan.steps:,}", *[""] * 4, f"{plan.memory_bytes / 2**20:,.0f}", *[""] * 3, _time(plan.seconds))
    table.add_section()
    table.add_row("all", "", "", *total)
    return table


def _comparison(plans: list["Plan"]) -> "Table":
    from rich.table import Table

    first = plans[0]
    table = Table(title=f"beside {first.num_workers}", title_justify="left")
    for heading in ("workers", "time", "hours of all workers", "speed-up", "of the ideal"):
        table.add_column(heading, justify="right")
    for plan in plans:
        speed_up = first.seconds / plan.seconds
        table.add_row(
            str(plan.num_workers),
            _time(plan.seconds),
            f"{plan.device_hours:,.2f}",
            f"{speed_up:.2f}",
            f"{speed_up * first.num_workers / plan.num_workers:.0%}",
        )
    return table


def _time(seconds: float) -> str:
    """As 0.4 s below ten seconds, else as 1 day, 2:03:04."""
    if seconds == 0:
        return "-"
    return f"{seconds:.1f} s" if seconds < 10 else str(timedelta(seconds=round(seconds)))
