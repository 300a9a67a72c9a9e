"""jobs/reproduce.py: its rows are the papers', and a row that is finished is not trained again."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rayssl.config import load_config
from rayssl.evaluation.papers import paper_number
from rayssl.sources import paper_row
from tests.conftest import SMALL, SmallRun

SCRIPT = Path(__file__).parent.parent.parent / "jobs" / "reproduce.py"


@pytest.fixture
def reproduce() -> ModuleType:
    specification = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    import sys

    sys.modules["reproduce"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_every_row_has_a_recipe_of_its_kind_and_a_number(reproduce: ModuleType) -> None:
    for table in reproduce.TABLES.values():
        for row, recipe, own in table.rows:
            assert paper_number(table.metric, data=table.data, row=row) is not None, row
            if row != "IAE":  # the baseline is told by its number of rounds, which no row is named after
                assert paper_row(load_config(recipe, own)) == row


def test_rows_are_trained_once_and_stand_beside_the_papers(
    reproduce: ModuleType, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shrunken demo in place of a row's recipe."""
    rows = (("Rotation+PSL", "demo-psl", tuple(SMALL)),)
    table = reproduce.PaperTable("PSL, Table 6", "linear_probe/best/top1", "imagenet", rows)
    monkeypatch.setitem(reproduce.TABLES, "psl-table-6", table)
    reproduce.main(["psl-table-6", f"storage_path={small_run.storage}"])
    first = capsys.readouterr().out
    reproduce.main(["psl-table-6", f"storage_path={small_run.storage}"])
    second = capsys.readouterr().out
    assert "stage 1/3" in first
    assert "stage 1/3" not in second
    assert "finished before" in second
    line = next(line for line in first.splitlines() if "Rotation+PSL" in line and "53.3" in line)
    assert line in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["psl-table-6", "--rows", "Rotaton"], "--rows: unknown 'Rotaton'. Did you mean 'Rotation'?"),
        (["psl-table-6", "sed=1"], "unknown key. Did you mean 'seed'?"),
        (["mgta-table-2"], "--voc: is required for this table"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    reproduce: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        reproduce.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
