"""`rayssl evaluate`: any protocol on any encoder."""

import click


@click.command()
@click.argument("source")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--protocol", required=True, help="linear_probe, knn, voc07_svm, voc07_low_shot, semi_supervised or detection."
)
@click.option("--seeds", type=click.IntRange(min=1), help="Repetitions; their mean and deviation are given.")
@click.option("--sanity", is_flag=True, help="Measure with shuffled labels too, which must give chance.")
@click.option("--show", "show_only", is_flag=True, help="Print the resolved config and stop.")
def evaluate(
    source: str, overrides: tuple[str, ...], protocol: str, seeds: int | None, sanity: bool, show_only: bool
) -> None:
    """Measure SOURCE by a protocol of the papers, and set its numbers beside theirs.

    SOURCE is a run (its folder, address or id, or a recipe's name for its newest run), a checkpoint (RUN/stage-2), a
    file of weights (encoder.pt), torchvision:resnet50 with weights=FILE, or random:resnet50. Dotted keys override the
    run's and the protocol's settings:

    rayssl evaluate RUN --protocol voc07_svm data.name=voc2007 data.root=DIR evaluation.blocks=[4]

    rayssl evaluate RUN --protocol detection data.name=voc0712 data.root=DIR evaluation.setting=psl

    Results go to evaluations/ in the run's folder and to its record in MLflow. What the encoder makes of the pictures
    stays in evaluations/.features, so that other protocols and repeated calls are quicker: at most 8 GiB, or as much as
    keep_features_gib=0 or another number says.
    """
    from rayssl.evaluate_config import load_evaluation
    from rayssl.recipe_file import to_yaml
    from rayssl.storage import in_job, lasting

    flags = [*([f"seeds={seeds}"] if seeds is not None else []), *(["sanity=true"] if sanity else [])]
    config, found, notes = load_evaluation(source, protocol, [*overrides, *flags])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if show_only:
        click.echo(to_yaml(config), nl=False)
        return
    if in_job() and found.run_folder is None:
        lasting(config.storage_path)
    from rayssl.evaluation_report import HEADER
    from rayssl.launch_evaluation import evaluate
    from rayssl.progress import Display

    with Display() as display:
        report = evaluate(config, found, show=display.show)
    from rich.table import Table

    table = Table(*HEADER, title=f"{report.setting()}, in %", title_justify="left")
    for row in report.rows():
        table.add_row(*row)
    display.console.print(table)
    for note in report.notes:
        display.console.print(note, markup=False)
    if not any(row[2] for row in report.rows()):
        for note in report.paper_notes():
            display.console.print(f"paper: {note}", markup=False)
    click.echo(f"\nresults     {report.folder / report.stem}.md")
