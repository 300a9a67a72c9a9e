"""MGTA on two workers and on one: the same labels, the same batches, the same gradients."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from rayssl.backbones.autoencoder import AutoEncoder
from rayssl.losses import Reduction
from rayssl.methods.mgta_stage import AutoEncoderStage, AutoEncoderTask, TripletTerm
from rayssl.runtime import LocalRuntime
from rayssl.tasks.augmented_views import AugmentationLevel
from rayssl.training.optimizers import AdamConfig
from tests.methods.mgta_parts import SIDE, MemoryPictures, mgta_config, small_encoder, small_method
from tests.two_workers import run_on_two_workers

TARGETS = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3], [0, 0], [0, 4], [1, 5], [2, 6]])
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum")


def prepare_a_round(folder: Path, runtime: LocalRuntime) -> dict[str, Any]:
    """Labels, facts and this worker's batches, of pictures of five sorts."""
    runtime.folder = folder
    method = small_method(mgta_config(clusters={"grid": [3, 5, 7]}), workers=runtime.world_size)
    pictures = MemoryPictures(61)
    pictures.pixels = pictures.pixels[:5][torch.arange(61) % 5] // 2 + pictures.pixels // 64
    found: dict[str, Any] = {}
    for index in range(3):
        plan = method.prepare(index, pictures, runtime, optimizer=AdamConfig())
        batches = list(plan.loader.epoch(index))
        found[f"pictures {index}"] = torch.stack([batch.indices for batch in batches])
        found[f"labels {index}"] = torch.stack([batch.labels for batch in batches])
        found[f"facts {index}"] = dict(plan.facts)
        found[f"files {index}"] = [path.name for path in plan.pictures]
    return found


def differentiate(rank: int, runtime: LocalRuntime) -> dict[str, Any]:
    """Loss, metrics and gradients of a batch of which each worker has its share."""
    found: dict[str, Any] = {}
    share = slice(None) if runtime.world_size == 1 else slice(4 * rank, 4 * rank + 4)
    for reduction in REDUCTIONS:
        task = AutoEncoderTask(AugmentationLevel(), image_size=SIDE)
        network = AutoEncoder(small_encoder())
        stage = AutoEncoderStage(network, task, triplet=TripletTerm(0.5, 0.3), reduction=reduction)
        inputs = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
        model = runtime.wrap(stage.eval())  # in eval mode, as BatchNorm is not shared
        outcome = model(inputs[share], TARGETS[share])
        outcome.loss.backward()
        found[f"{reduction} gradients"] = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        values = torch.stack([outcome.loss.detach(), *outcome.metrics.values()])
        found[f"{reduction} values"] = runtime.sum(values) / runtime.world_size
    return found


def work(folder: Path, rank: int) -> dict[str, Any]:
    runtime = LocalRuntime(folder, num_threads=1)
    return {**prepare_a_round(folder, runtime), **differentiate(rank, runtime)}


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    """Labels and batches are equal; what is computed in another order is so to rounding."""
    expected = work(tmp_path, 0)
    results = run_on_two_workers(partial(work, tmp_path), tmp_path)
    assert expected["facts 1"]["n1/clusters/num"] == 5
    for index in range(3):
        for what in (f"pictures {index}", f"labels {index}"):
            assert torch.equal(torch.cat([result[what] for result in results], dim=1), expected[what])
        for result in results:
            torch.testing.assert_close(result[f"facts {index}"], expected[f"facts {index}"], rtol=1e-3, atol=1e-3)
        assert results[0][f"files {index}"] == expected[f"files {index}"]
        assert results[1][f"files {index}"] == []
    for reduction in REDUCTIONS:
        for result in results:
            torch.testing.assert_close(result[f"{reduction} values"], expected[f"{reduction} values"])
            gradients, others = expected[f"{reduction} gradients"], result[f"{reduction} gradients"]
            assert gradients.keys() == others.keys()
            for name, gradient in gradients.items():
                assert (others[name] - gradient).norm() <= 1e-4 * gradient.norm(), (reduction, name)
