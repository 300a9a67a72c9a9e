"""jobs/reproduce.py: its rows are the papers', and a row that is finished is not trained again."""

import errno
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rayssl.config import ExperimentConfig, load_config
from rayssl.errors import ConfigError, RunStopped
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation.linear_probe import LinearProbeConfig
from rayssl.evaluation.papers import NUMBERS, paper_number
from rayssl.experiment import run_experiment
from rayssl.report import Report
from rayssl.sources import paper_row
from tests.conftest import SMALL, SmallRun

SCRIPT = Path(__file__).parent.parent.parent / "jobs" / "reproduce.py"


@pytest.fixture
def reproduce() -> ModuleType:
    specification = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["reproduce"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_every_row_has_a_recipe_of_its_kind_and_numbers(reproduce: ModuleType) -> None:
    for table in reproduce.TABLES.values():
        for row, recipe, own in table.rows:
            config = load_config(recipe, own)
            for protocol in table.protocols:
                for metric in protocol.metrics:
                    paper = paper_number(metric, data=protocol.data, row=row)
                    assert paper is not None, (row, metric)
                    assert ("RevNet-50" in paper.setting) == (config.backbone.name == "revnet"), row
            if row != "IAE":  # the baseline is told by its number of rounds, which no row is named after
                assert paper_row(config) == row


def test_every_number_of_the_papers_is_in_a_table(reproduce: ModuleType) -> None:
    """But those of networks that no recipe trains: random ones, and MGTA's supervised one; and single blocks."""
    told = {
        (metric, protocol.data, row)
        for table in reproduce.TABLES.values()
        for protocol in table.protocols
        for metric in protocol.metrics
        for row, _, _ in table.rows
    }
    for each in NUMBERS:
        is_other = each.row == "Random" or (each.row == "Supervised" and each.table.startswith("MGTA"))
        is_block = each.metric.startswith("linear_probe/b") and "/best/" not in each.metric
        assert is_other or is_block or (each.metric, each.data, each.row) in told, each


def test_every_protocol_is_one_that_is_known(reproduce: ModuleType, small_run: SmallRun) -> None:
    """Its settings are read, and have the paper's lengths."""
    run = run_experiment(small_run.config("evaluations=[]")).folder
    for table in reproduce.TABLES.values():
        for protocol in table.protocols:
            if protocol.name is not None:
                overrides = [each.replace("{folder}", "/pictures") for each in protocol.overrides]
                config, _, _ = load_evaluation(str(run), protocol.name, [*overrides, *protocol.supervised])
                if isinstance(config.evaluation, LinearProbeConfig):
                    assert config.evaluation.views == "augmented"  # features of so many pictures fit nowhere
                if protocol.data in ("places205", "inaturalist"):
                    assert config.data.image_size == 224
                    assert isinstance(config.evaluation, LinearProbeConfig)
                    wanted = {"places205": (4, 8, 12), "inaturalist": (24, 48, 72)}[protocol.data]
                    shares = config.evaluation.milestones
                    assert [round(config.evaluation.epochs * share) for share in shares] == list(wanted)


@pytest.fixture
def small_table(reproduce: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shrunken demo in place of two rows' recipes, measured by a protocol that takes no time."""
    rows = (("Rotation+PSL", "demo-psl", (*SMALL, "evaluations=[]")), ("Rotation", "demo-psl", (*SMALL, "name=other")))
    protocols = (
        reproduce.Protocol(("knn/b5/k20/top1", "knn/best/k20/top1"), "imagenet", "knn"),
        reproduce.Protocol(("semi_supervised/1_percent/top5",), "imagenet"),
    )
    monkeypatch.setitem(reproduce.TABLES, "psl-table-7", reproduce.PaperTable("A table", protocols, rows))


def test_rows_are_trained_and_measured_once_and_stand_beside_the_papers(
    reproduce: ModuleType, small_table: None, small_run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["psl-table-7", "--rows", "Rotation+PSL", f"storage_path={small_run.storage}"]
    reproduce.cli.main(command, command=reproduce.reproduce)
    first = capsys.readouterr().out
    reproduce.cli.main(command, command=reproduce.reproduce)
    second = capsys.readouterr().out
    assert "stage 1/3" in first
    assert "stage 1/3" not in second
    assert "finished before" in second
    assert "measured before" in second
    line = next(line for line in first.splitlines() if "Rotation+PSL" in line and "54.8" in line)
    assert "not measured" in line
    for name in ("knn/", "54.8"):
        table = [line for line in first.splitlines() if "Rotation+PSL" in line and name in line]
        assert table == [line for line in second.splitlines() if "Rotation+PSL" in line and name in line]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ConfigError("data: a mistake"), 2, "error: data: a mistake"),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), 2, "error: /runs/x: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
        (RunStopped("stopped at step 4"), 143, "stopped at step 4"),
        (SystemExit(143), 143, ""),
    ],
)
def test_what_ends_the_second_row_leaves_the_first_one_printed(
    reproduce: ModuleType,
    small_table: None,
    small_run: SmallRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    message: str,
) -> None:
    def pretrain(config: ExperimentConfig, *, show: object) -> Report:
        if config.name == "other":
            raise raised
        return Report(small_run.storage, "x", [], {"semi_supervised/1_percent/top5": 0.123}, [])

    monkeypatch.setattr(reproduce, "pretrain", pretrain)
    monkeypatch.setattr(reproduce, "_measure", lambda *_: {})
    with pytest.raises(SystemExit) as end:
        reproduce.cli.main(["psl-table-7", f"storage_path={small_run.storage}"], command=reproduce.reproduce)
    assert end.value.code == code
    output, errors = capsys.readouterr()
    assert errors.strip().startswith(message)  # click begins with an empty line after Ctrl-C
    assert len(errors.strip().splitlines()) <= 1
    line = next(line for line in output.splitlines() if "Rotation+PSL" in line and "54.8" in line)
    assert "12.3" in line
    assert any("Rotation " in line and "52.1" in line and "not measured" in line for line in output.splitlines())


def test_sigterm_ends_it_with_143(small_run: SmallRun) -> None:
    """As the cluster sends it: a checkpoint is written, and the table printed as far as it got."""
    row = ("Rotation+PSL", "demo-psl", (*SMALL, "method.stages.1.epochs=500"))
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import reproduce\n"
        f"table = reproduce.PaperTable('A table', reproduce._PROBE, ({row!r},))\n"
        "reproduce.TABLES['psl-table-6'] = table; reproduce.cli.run(sys.argv[1:], command=reproduce.reproduce)"
    )
    command = [sys.executable, "-c", code, "psl-table-6", f"storage_path={small_run.storage}"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        for line in process.stdout:
            if line.startswith("stage 2/3"):
                process.send_signal(signal.SIGTERM)
                break
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert any("Rotation+PSL" in line and "53.3" in line and "not measured" in line for line in output.splitlines())


def test_the_difference_is_taken_from_the_supervised_row_that_was_measured(reproduce: ModuleType) -> None:
    ap75, delta = "detection/psl/ap75@voc0712", "detection/psl/delta_ap75@voc0712"
    rows = [reproduce.Row("Supervised", "a", {ap75: 0.5}), reproduce.Row("Jigsaw", "b", {ap75: 0.4})]
    reproduce._add_differences(rows)
    assert [row.metrics[delta] for row in rows] == pytest.approx([0.0, -0.1])
    alone = [reproduce.Row("Jigsaw", "b", {ap75: 0.4})]
    reproduce._add_differences(alone)
    assert delta not in alone[0].metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["psl-table-6", "--rows", "Rotaton"], "--rows: unknown 'Rotaton'. Did you mean 'Rotation'?"),
        (["psl-table-6", "sed=1"], "unknown key. Did you mean 'seed'?"),
        (["mgta-table-2"], "--voc: is required for mgta-table-2"),
        (["psl-table-9", "--voc", "x"], "--inaturalist, --places: is required for psl-table-9"),
        (["psl-table-3"], "psl-table-3"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    reproduce: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        reproduce.cli.main(arguments, command=reproduce.reproduce)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
