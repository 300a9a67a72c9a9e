"""Everything that a run depends on is killed, with real processes on a cluster of two nodes: benchmarks/faults.py."""

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
faults: Any = importlib.import_module("faults")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes and an MLflow server for all tests of this file."""
    place = faults.open_place(tmp_path_factory.mktemp("faults"))
    yield place
    place.close()


@pytest.fixture(scope="module", params=list(faults.RECIPES))
def undisturbed(request: pytest.FixtureRequest, place: Any) -> tuple[str, Any]:
    """A method, and its run without any fault."""
    attempt = faults.run(place, request.param, "whole", faults.let_be, random.Random(0))
    assert attempt.code == 0, attempt.output[-20:]
    return request.param, attempt


@pytest.mark.parametrize("fault", list(faults.FAULTS))
def test_a_fault_changes_nothing(place: Any, undisturbed: tuple[str, Any], fault: str) -> None:
    method, whole = undisturbed
    try:
        attempt = faults.run(place, method, fault.replace(" ", "-"), faults.FAULTS[fault], random.Random(fault))
    except PermissionError as error:
        pytest.skip(str(error))
    finally:
        place.mend()
    other_size = fault in faults.OTHER_SIZE
    outcome = faults.judge(place, attempt, whole, may_differ=other_size)
    assert outcome["recovered"], attempt.output[-20:]
    assert outcome["equal"] or other_size
    assert not any(outcome[name] for name in faults.COUNTED), outcome
