"""Two workers with unequal shares of the pictures fit and rank what one process with all of them does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from rayssl.clustering.rows import Group
from rayssl.evaluation.svm import evaluate_low_shot, evaluate_svm, fit_svms, l2_normalize
from rayssl.evaluation.svm_kernel import build_kernel
from rayssl.evaluation.svm_rows import RowShares
from tests.two_workers import run_on_two_workers

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 230, 170, 3
BOUNDARIES = 90, 101
"""Of the training and of the test rows: the first worker's are those before them."""
COSTS = (1e-3, 0.1, 5.0)


def pictures() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectified features that point about the same way, and classes that planes tell most of the time."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 150, generator=generator)
    latent = torch.randn(NUM_TRAIN + NUM_TEST, 12, generator=generator)
    noise = torch.randn(NUM_TRAIN + NUM_TEST, 150, generator=generator)
    features = l2_normalize((latent @ mixing / 3 + noise + 1).clamp_min(0))
    scores = latent[:, :NUM_CLASSES] + 0.5 * torch.randn(len(latent), NUM_CLASSES, generator=generator)
    targets = torch.where(scores > scores.quantile(0.75, dim=0), 1, -1).to(torch.int8)
    targets[5:25, 1] = targets[-30:, 2] = 0
    return features[:NUM_TRAIN], targets[:NUM_TRAIN], features[NUM_TRAIN:], targets[NUM_TRAIN:]


def fit(train: slice, test: slice, group: Group) -> dict[str, Any]:
    """All that a group can compute, on shares of both sets."""
    features, targets, test_features, test_targets = pictures()
    own = features[train], targets[train], test_features[test], test_targets[test]
    svms = fit_svms(*own[:2], COSTS[:2], group=group)
    found = evaluate_svm(*own, costs=COSTS, group=group)
    low_shot = evaluate_low_shot(*own, num_positives=(1, 2), num_samples=2, costs=COSTS, group=group)
    return {
        "weights": svms.weights,
        "biases": svms.biases,
        "table": found.cross_validation.table,
        "precisions": found.average_precision,
        "mean": found.mean,
        "costs": found.cross_validation.costs,
        "low shot": torch.stack([result.table for result in low_shot.values()]),
        "half": fit_svms(features[train].half(), targets[train], [0.1], group=group).weights,
    }


def shares_of(rank: int) -> tuple[slice, slice]:
    train, test = BOUNDARIES
    return (slice(0, train), slice(0, test)) if rank == 0 else (slice(train, None), slice(test, None))


def work(rank: int) -> dict[str, Any]:
    group = distributed.group.WORLD
    train, test = shares_of(rank)
    features, targets, _, _ = pictures()
    kernel = build_kernel(features[train], group)
    held = {"products": kernel.products.centred, "factor": kernel.factor, "remainder": kernel.remainder}
    errors = []
    spoiled = features[train].clone()
    spoiled[0, 0] = float("nan") if rank == 1 else 0.0
    for wrong in (
        lambda: fit_svms(spoiled, targets[train], group=group),
        lambda: fit_svms(features[train], targets[train] + rank, group=group),
        lambda: fit_svms(features[train], targets[train].clamp(max=0), group=group),
        lambda: RowShares(rank, group, device=torch.device("cpu")),
    ):
        try:
            wrong()
        except ValueError as error:
            errors.append(str(error))
    alone = fit_svms(features[train], targets[train], COSTS).weights
    return fit(train, test, group) | {"held": held, "errors": errors, "alone": alone}


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_two_workers(work, Path(tmp_path_factory.mktemp("workers")))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_two_workers_equal_one(two_workers: list[dict[str, Any]]) -> None:
    alone = fit(slice(None), slice(None), None)
    for found in two_workers:
        for name, tolerance in (("weights", 1e-6), ("half", 1e-5)):
            scale = alone[name].abs().amax(-1, keepdim=True)
            torch.testing.assert_close(found[name] / scale, alone[name] / scale, rtol=0, atol=tolerance)
        torch.testing.assert_close(found["biases"], alone["biases"], rtol=1e-5, atol=1e-6)
        assert torch.equal(found["costs"], alone["costs"])
        for name in ("table", "precisions", "low shot"):
            torch.testing.assert_close(found[name], alone[name], rtol=0, atol=1e-6)
        assert found["mean"] == pytest.approx(alone["mean"], abs=1e-6)


def test_both_workers_hold_the_same_result(two_workers: list[dict[str, Any]]) -> None:
    for name in ("weights", "biases", "table", "precisions", "low shot"):
        assert torch.equal(two_workers[0][name], two_workers[1][name]), name


def test_each_worker_keeps_its_own_rows_of_the_kernel(two_workers: list[dict[str, Any]]) -> None:
    features, _, _, _ = pictures()
    whole = build_kernel(features)
    for rank, worker in enumerate(two_workers):
        train, _ = shares_of(rank)
        held = worker["held"]
        torch.testing.assert_close(held["products"], whole.products.centred[train], rtol=0, atol=1e-6)
        assert held["products"].shape == (len(features[train]), NUM_TRAIN)
        assert held["factor"].shape == (len(features[train]), whole.factor.shape[1])
        assert held["remainder"] == pytest.approx(whole.remainder)


def test_what_is_wrong_on_one_worker_is_told_on_both(two_workers: list[dict[str, Any]]) -> None:
    for worker in two_workers:
        not_finite, unknown, no_positives, no_rows = worker["errors"]
        assert "features: must be finite" in not_finite
        assert "targets: must be 1 (positive)" in unknown
        assert "at least 1 positives, class 0 has 0" in no_positives
        assert "every worker must hold at least one, they hold [0, 1]" in no_rows


def test_without_a_group_a_worker_is_alone(two_workers: list[dict[str, Any]]) -> None:
    features, targets, _, _ = pictures()
    for rank, worker in enumerate(two_workers):
        train, _ = shares_of(rank)
        assert torch.equal(worker["alone"], fit_svms(features[train], targets[train], COSTS).weights)
