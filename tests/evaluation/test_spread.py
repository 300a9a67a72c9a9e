"""Two workers share measurements, parts of one, or its pictures, and every one knows all the numbers."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.clustering.rows import Group
from rayssl.config import load_config
from rayssl.data.pictures import Plan
from rayssl.evaluate import run_evaluation
from rayssl.evaluate_config import load_evaluation
from rayssl.evaluation import (
    Evaluation,
    FeatureStore,
    KnnConfig,
    LinearProbeConfig,
    SharedEvaluation,
    VocLowShotConfig,
    VocSvmConfig,
)
from rayssl.evaluation.base import BlockEvaluation
from rayssl.evaluation.spread import measure_all, measure_frozen
from rayssl.experiment import build_encoder, evaluate_beside_random
from rayssl.open_data import open_data
from rayssl.runtime import LocalRuntime
from tests.conftest import SMALL
from tests.evaluation.test_detection import write_rectangles
from tests.evaluation.test_linear_probe import TinyEncoder
from tests.evaluation.test_protocols import CPU, DATA, Colours
from tests.two_workers import run_on_two_workers

KNN = KnnConfig(blocks=(1, 3), k=(5,))
SHARED = (
    VocSvmConfig(blocks=(1, 3), costs=(0.1, 1.0)),
    VocLowShotConfig(blocks=(3,), positives=(1, 2), samples=2, costs=(1.0,)),
)


class Watched(Colours):
    """Pictures that remember which of them were looked at."""

    def __init__(self, count: int, *, seed: int, several: bool = False) -> None:
        super().__init__(count, seed=seed, several=several)
        self.seen: list[int] = []

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        batches = [(np.asarray(indices), rest) for indices, rest in plan]
        self.seen += [int(index) for indices, _ in batches for index in indices]
        return super().batches(batches)


def measure(folder: Path | None, items: list[Evaluation], *, num_test: int = 71) -> dict[str, Any]:
    """The items' metrics, which blocks this worker measured, and which pictures it looked at."""
    torch.manual_seed(0)
    encoder, measured = TinyEncoder(), []
    sides = [
        [Watched(101, seed=0, several=several), Watched(num_test, seed=2, several=several)] for several in (False, True)
    ]

    def one(number: int, part: Evaluation, group: Group) -> dict[str, float]:
        assert isinstance(part, BlockEvaluation)
        measured.append([number, *part.blocks])
        train, test = sides[isinstance(part, SharedEvaluation)]
        store = FeatureStore(folder)
        return measure_frozen(part, encoder, train, test, data=DATA, seed=0, device=CPU, features=store, group=group)

    results = measure_all(one, list(enumerate(items)), LocalRuntime(Path()))
    return {"metrics": results, "measured": measured, "seen": [side.seen for side in sides[1]]}


def measure_recipe(folder: Path, name: str) -> dict[str, Any]:
    """A recipe's evaluations of a network that is still untrained, and one by the command, with shuffled labels."""
    entries = [
        "{name: voc07_svm, folds: 2, blocks: [4], costs: [1]}",
        "{name: voc07_low_shot, positives: [1], blocks: [4], costs: [1]}",
    ]
    data = [
        *("data.name=voc2007", f"data.root={folder / 'data'}", "data.download=false", "data.image_size=32"),
        *("backbone.width=16", "backbone.stem=imagenet", f"storage_path={folder / name}"),
    ]
    no_probe = ["online.probe=false", "online.knn=false", "data.validation_fraction=0", "data.limit=null"]
    recipe = load_config("demo-psl", [*SMALL[:-2], *data, *no_probe, f"evaluations=[{', '.join(entries)}]"])
    runtime = LocalRuntime(folder / name / "run")
    pictures = open_data(recipe, folder / name, rank=runtime.rank, barrier=runtime.barrier)
    method = recipe.method.build(build_encoder(recipe), recipe.task_setting(pictures.train.classes), seed=recipe.seed)
    metrics, _ = evaluate_beside_random(recipe, method, pictures, runtime)
    command = [*data, "seeds=2", "sanity=true", "evaluation.blocks=[4]", "evaluation.costs=[1]", "evaluation.folds=2"]
    config, _, _ = load_evaluation("random:resnet18", "voc07_svm", command)
    shown: list[str] = []
    by_command = LocalRuntime(folder / name / "evaluation", show=lambda event: shown.append(str(event)))
    return {"recipe": metrics, "command": run_evaluation(config, by_command).metrics, "shown": shown}


def work(rank: int, *, folder: Path) -> dict[str, Any]:
    return {
        "spread": measure(None, [KNN, LinearProbeConfig(blocks=(3,), epochs=2)]),
        "parts": measure(None, [KNN]),
        "shared": measure(folder / "features", [*SHARED, KNN]),
        "again": measure(folder / "features", [SHARED[0]]),
        "few": measure(None, [SHARED[1]], num_test=1),
        **measure_recipe(folder, "two"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("workers"))
    write_rectangles(folder / "data", trainval=48, test=30)
    return folder


@pytest.fixture(scope="module")
def two_workers(folder: Path) -> list[dict[str, Any]]:
    return run_on_two_workers(partial(work, folder=folder), folder)


def same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> bool:
    """The same names in the same order, and the same values to rounding."""
    pairs = list(zip(found, expected, strict=True))
    return all(list(a) == list(b) and list(a.values()) == pytest.approx(list(b.values()), abs=1e-6) for a, b in pairs)


def test_as_many_items_as_workers_are_measured_whole(two_workers: list[dict[str, Any]]) -> None:
    expected = measure(None, [KNN, LinearProbeConfig(blocks=(3,), epochs=2)])
    assert [worker["spread"]["measured"] for worker in two_workers] == [[[0, 1, 3]], [[1, 3]]]
    for worker in two_workers:
        assert worker["spread"]["metrics"] == expected["metrics"]


def test_an_item_is_cut_into_parts_where_a_worker_would_have_none(two_workers: list[dict[str, Any]]) -> None:
    assert [worker["parts"]["measured"] for worker in two_workers] == [[[0, 1]], [[0, 3]]]
    for worker in two_workers:
        assert same(worker["parts"]["metrics"], measure(None, [KNN])["metrics"])


def test_shared_measurements_equal_one_workers(two_workers: list[dict[str, Any]]) -> None:
    """All workers make them, one after another, once the others are done."""
    expected = measure(None, [*SHARED, KNN])["metrics"]
    for worker, own in zip(two_workers, ([2, 1], [2, 3]), strict=True):
        assert worker["shared"]["measured"] == [own, [0, 1, 3], [1, 3]]
        assert same(worker["shared"]["metrics"], expected)


def test_each_worker_looks_at_its_own_pictures_once(two_workers: list[dict[str, Any]]) -> None:
    """101 training and 71 test pictures; their features are found again by the next protocol and the next call."""
    for worker, (train, test) in zip(two_workers, (((0, 50), (0, 35)), ((50, 101), (35, 71))), strict=True):
        assert worker["shared"]["seen"] == [list(range(*train)), list(range(*test))]
        assert worker["again"]["seen"] == [[], []]
        assert worker["again"]["metrics"] == worker["shared"]["metrics"][:1]


def test_a_single_test_picture_is_measured_by_every_worker(two_workers: list[dict[str, Any]]) -> None:
    expected = measure(None, [SHARED[1]], num_test=1)
    for worker in two_workers:
        assert worker["few"]["metrics"] == expected["metrics"]
        assert worker["few"]["seen"] == expected["seen"]


def test_recipes_and_the_command_give_the_same_numbers_on_two_workers(
    two_workers: list[dict[str, Any]], folder: Path
) -> None:
    alone = measure_recipe(folder, "one")
    assert "random/voc07_svm/best/map" in alone["recipe"]
    assert {"voc07_svm/best/map_std", "sanity/voc07_svm/best/map"} <= set(alone["command"])
    for worker in two_workers:
        assert same([worker["recipe"], worker["command"]], [alone["recipe"], alone["command"]])
    assert "voc07_svm: 3 measurements on 2 workers" in two_workers[0]["shown"]
