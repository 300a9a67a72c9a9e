"""Two workers with unequal shares compute what one process with all rows does."""

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed

from rayssl.clustering import calinski_harabasz, choose_num_clusters, kmeans, sampling, whiten
from rayssl.clustering.lloyd import run_lloyd
from rayssl.clustering.rows import Group, share_rows
from tests.two_workers import run_on_two_workers

NUM_ROWS, BOUNDARY = 900, 250


def all_rows() -> Tensor:
    """Lumpy, and far from 0; wide enough for distance bounds."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(15, 280, generator=generator)
    return centers[torch.arange(NUM_ROWS) % 15] + torch.randn(NUM_ROWS, 280, generator=generator) + 1


def cluster(share: slice, group: Group) -> dict[str, Any]:
    """Everything that a group can compute, on the rows of a share."""
    features = all_rows()[share]
    result = kmeans(features, 25, seed=3, group=group)
    narrow = kmeans(features[:, :6], 10, group=group)
    start = all_rows()[:12] + 1000 * (torch.arange(12) % 3 == 0)[:, None]
    reseeded = run_lloyd(share_rows(features, group), start, max_iterations=10, tolerance=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choice = choose_num_clusters(features, [5, 15, 30], group=group)
    return {
        "labels": result.labels,
        "centers": result.centers,
        "numbers": [result.inertia, result.calinski_harabasz, result.num_iterations],
        "narrow labels": narrow.labels,
        "reseeded labels": reseeded.labels,
        "num reseeded": reseeded.num_reseeded,
        "choice": choice.num_clusters,
        "scores": list(choice.scores.values()),
        "choice labels": choice.result.labels,
        "score": calinski_harabasz(features, torch.arange(NUM_ROWS)[share] % 7, group=group),
        "white": whiten(features[:, :20], group=group),
    }


def work(rank: int) -> dict[str, Any]:
    group = distributed.group.WORLD
    found = cluster(slice(0, BOUNDARY) if rank == 0 else slice(BOUNDARY, None), group)
    errors = []
    for features in (
        torch.full((3, 2), float("nan") if rank == 1 else 0.0),
        torch.zeros(3, 2 + rank),
        torch.zeros(3) if rank == 0 else torch.zeros(3, 1),
    ):
        try:
            kmeans(features, 2, group=group)
        except ValueError as error:
            errors.append(str(error))
    record = mock.patch.object(sampling, "cluster_points", wraps=sampling.cluster_points)
    with record as cluster_points, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choose_num_clusters(all_rows()[:BOUNDARY, :8], [2, 3, 4, 5], group=group)
    seeded = [call.args[1] for call in cluster_points.call_args_list]
    idle = kmeans(all_rows()[: 0 if rank == 0 else 100, :5], 4, group=group)
    alone = kmeans(all_rows()[:100, :5], 4)
    return found | {
        "errors": errors,
        "seeded": seeded,
        "idle": idle.labels,
        "idle inertia": idle.inertia,
        "alone": alone.inertia,
    }


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_two_workers(work, Path(tmp_path_factory.mktemp("workers")))


def test_two_workers_equal_one(two_workers: list[dict[str, Any]]) -> None:
    alone = cluster(slice(None), None)
    for name in ("labels", "narrow labels", "reseeded labels", "choice labels"):
        assert torch.equal(torch.cat([worker[name] for worker in two_workers]), alone[name]), name
    torch.testing.assert_close(torch.cat([worker["white"] for worker in two_workers]), alone["white"])
    for worker in two_workers:
        torch.testing.assert_close(worker["centers"], alone["centers"])
        assert worker["numbers"] == pytest.approx(alone["numbers"])
        assert worker["num reseeded"] == alone["num reseeded"] > 0
        assert worker["choice"] == alone["choice"] == 15
        assert worker["scores"] == pytest.approx(alone["scores"])
        assert worker["score"] == pytest.approx(alone["score"])


def test_the_starts_of_a_grid_are_found_on_all_workers_at_once(two_workers: list[dict[str, Any]]) -> None:
    """Of four numbers each worker starts two, and of the best three that start again two and one."""
    first, second = (worker["seeded"] for worker in two_workers)
    assert (first[:2], second[:2]) == ([5, 3], [4, 2])
    assert (len(first), len(second)) == (4, 3)
    assert len(set(first[2:] + second[2:])) == 3


def test_both_workers_hold_the_same_centres(two_workers: list[dict[str, Any]]) -> None:
    assert torch.equal(two_workers[0]["centers"], two_workers[1]["centers"])


def test_what_is_wrong_on_one_worker_is_told_on_both(two_workers: list[dict[str, Any]]) -> None:
    for worker in two_workers:
        not_finite, uneven, no_matrix = worker["errors"]
        assert "in 3 of 6 rows" in not_finite
        assert "as many dimensions on every worker, got [2, 3]" in uneven
        assert "must be floats of shape (rows, dimensions) on every worker" in no_matrix


def test_a_worker_without_rows_takes_part_and_without_a_group_none_does(two_workers: list[dict[str, Any]]) -> None:
    first, second = two_workers
    assert len(first["idle"]) == 0
    expected = kmeans(all_rows()[:100, :5], 4)
    assert torch.equal(second["idle"], expected.labels)
    for worker in two_workers:
        assert worker["idle inertia"] == pytest.approx(expected.inertia)
        assert worker["alone"] == pytest.approx(expected.inertia)
