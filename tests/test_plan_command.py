"""`rayssl plan` as a person meets it."""

import json

import pytest
from click.testing import CliRunner

from rayssl import cli
from rayssl.errors import DataError
from tests.conftest import SMALL

ONE_STEP = ["--steps", "1"]


def test_the_table_names_stages_sums_and_assumptions() -> None:
    arguments = ["plan", "demo-psl", *SMALL, *ONE_STEP, "--workers", "1", "--workers", "2", "--bandwidth-gbit", "10"]
    result = CliRunner().invoke(cli.cli, arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [sum(f"│ stage-{number} " in line for line in lines) for number in (1, 2, 3)] == [2, 2, 2]
    assert any(line.startswith("demo-psl, 2 workers (cpu)") for line in lines)
    assert any("of the ideal" in line for line in lines)
    assert any(line.startswith("Network: sums in a ring, 10 Gbit/s and 0 us a message (given); 0%") for line in lines)
    assert any(line.startswith("Left out:") for line in lines)


def test_json_is_one_document_with_what_the_table_says() -> None:
    overlap = ["--latency-us", "50", "--overlap", "0.25"]
    arguments = ["plan", "demo-psl", *SMALL, *ONE_STEP, "--workers", "2", "--bandwidth-gbit", "8", *overlap, "--json"]
    result = CliRunner().invoke(cli.cli, arguments)
    assert result.exit_code == 0, result.output
    (plan,) = json.loads(result.output)["plans"]
    assert plan["num_workers"] == 2
    assert [stage["name"] for stage in plan["stages"]] == ["stage-1", "stage-2", "stage-3"]
    assert plan["steps"] == 3 * (1 + 2 + 1)
    first = plan["stages"][0]
    ring = first["synchronized_bytes"] / 1e9 + 2 * 50e-6
    assert first["communication_seconds"] == pytest.approx(0.75 * ring)
    assert plan["seconds"] == pytest.approx(plan["start_seconds"] + sum(stage["seconds"] for stage in plan["stages"]))


def test_left_out_workers_are_the_recipes() -> None:
    arguments = ["plan", "demo-psl", *SMALL, *ONE_STEP, "cluster.workers=2", "--bandwidth-gbit", "8", "--json"]
    result = CliRunner().invoke(cli.cli, arguments)
    assert [plan["num_workers"] for plan in json.loads(result.output)["plans"]] == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo-psl"], "Did you mean 'demo-psl'?"),
        (["demo-psl", "data.name=folder", "data.root=nowhere", "--workers", "1"], "--pictures N"),
        (["demo-psl", "--workers", "3"], "training.batch_size: must be a multiple of"),
        (["psl-jigsaw-imagenet", "--pictures", "9999", "--tflops", "1"], "--bandwidth-gbit: needed for 8 workers"),
        (["demo-psl", "--workers", "0"], "Invalid value for '--workers'"),
        (["demo-psl", "--overlap", "2"], "Invalid value for '--overlap'"),
        (["demo-psl", "--bandwidth-gbit", "0"], "Invalid value for '--bandwidth-gbit'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", *arguments])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_the_error_of_missing_pictures_is_the_runs_own_kind() -> None:
    result = CliRunner().invoke(cli.cli, ["plan", "demo-psl", "data.name=folder", "data.root=nowhere"])
    assert isinstance(result.exception, DataError)
