"""Each recipe's network takes a training step at its real size, and all tasks are the same on one worker and on two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayssl.config import ExperimentConfig, load_config, recipe_names
from rayssl.data.augment import Draws
from rayssl.experiment import build_encoder, run_experiment
from rayssl.methods.psl import PSL, PSLConfig
from rayssl.recipe_file import flatten
from rayssl.runtime import LocalRuntime
from rayssl.tasks import TaskSetting
from tests.conftest import SMALL
from tests.tasks.task_batches import as_batch
from tests.two_workers import run_on_two_workers


def psl_recipes_with_different_last_stages() -> list[Any]:
    """One recipe for each network, task and last stage; the others' last stages are copies of those."""
    found: dict[str, str] = {}
    for name in recipe_names():
        config = load_config(name)
        if isinstance(config.method, PSLConfig):
            last = config.method.stages[-1].model_dump(exclude={"epochs"})
            key = [flatten(config.backbone), flatten(config.method.task), last, config.method.gradient]
            found.setdefault(json.dumps([*key, config.data.image_size], sort_keys=True), name)
    return [pytest.param(name, marks=pytest.mark.slow) if is_large(name) else name for name in found.values()]


def is_large(name: str) -> bool:
    """Ablations of the paper's recipes, whose networks and tasks others have too."""
    return name.endswith("imagenet") and not name.startswith("psl-")


@pytest.mark.parametrize("name", psl_recipes_with_different_last_stages())
def test_a_recipe_takes_a_step_at_its_real_size(name: str) -> None:
    config = load_config(name)
    assert isinstance(config.method, PSLConfig)
    encoder = build_encoder(config)
    before = [p.detach().clone() for p in encoder.blocks[-1].parameters()]
    setting = TaskSetting(config.data.image_size, 2, workers=2, classes=("a", "b"))
    stage = PSL(config.method, encoder, setting, seed=0).build_stage(len(config.method.stages) - 1).train()
    optimizer = config.optimizer.build(stage)
    count = 1 if stage.task.examples_per_image > 1 else 2
    side = config.data.decode_size
    images = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    views = stage.task.make_views(as_batch(images, Draws(0, 0, 0, batch_size=count), torch.arange(count)))
    outcome = stage(views.inputs, views.targets)
    outcome.loss.backward()
    optimizer.step()
    assert torch.isfinite(outcome.loss)
    after = list(encoder.blocks[-1].parameters())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


TASKS = {
    "rotation": ["method.task.copies=all"],
    "jigsaw": ["method.task.name=jigsaw", "method.task.head_width=8"],
    "simclr": ["method.task.name=simclr"],
    "supervised": ["method.task.name=supervised"],
}
LEVELS = {
    "rotation": ["angles: 2", "angles: 4", "angles: 8"],
    "jigsaw": ["num_permutations: 4", "num_permutations: 6", "num_permutations: 9"],
    "simclr": ["color_strength: 0", "color_strength: 1.0", "color_strength: 1.0, gray: 0.2, sobel: 0.2"],
    "supervised": ["smallest_crop: 0.5"] * 3,
}


def small_config(task: str, storage: Path, workers: int) -> ExperimentConfig:
    """The shrunken demo on another task, with BatchNorm over all workers; no measurements."""
    blocks = ("[1, 2, 3]", "[2, 3, 4]", "[3, 4, 5]")
    stages = ", ".join(
        f"{{blocks: {b}, epochs: 1, level: {{{level}}}}}" for b, level in zip(blocks, LEVELS[task], strict=True)
    )
    overrides = [line for line in SMALL if "method.stages" not in line and "evaluations.0" not in line]
    overrides = [line for line in overrides if "method.task" not in line and "workers" not in line]
    overrides += [*TASKS[task], f"method.stages=[{stages}]", f"cluster.workers={workers}", f"storage_path={storage}"]
    # Wider than SMALL: torch 2.15's backward pass of strided 1x1 convolutions of 4 to 8 channels, channels last, now
    # and then spoils memory on CPUs.
    overrides += [
        "backbone.width=16",
        "training.sync_batchnorm=true",
        "online.probe=false",
        "online.knn=false",
        "evaluations=[]",
    ]
    return load_config("demo-psl", [*overrides, "optimizer.learning_rate=0.002"])


def train(task: str, storage: Path, workers: int) -> dict[str, Any]:
    config = small_config(task, storage, workers)
    folder = storage / task
    folder.mkdir(parents=True, exist_ok=True)
    report = run_experiment(config, LocalRuntime(folder))
    weights: dict[str, Tensor] = torch.load(folder / "encoder.pt", weights_only=True)
    return {"loss": [row["loss"] for row in report.history], "weights": weights}


class TrainAll:
    """All tasks, one after another; an object, since processes are given what can be pickled."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def __call__(self, rank: int) -> dict[str, Any]:
        return {task: train(task, self.storage, 2) for task in TASKS}


def test_one_and_two_workers_give_the_same_curve(tmp_path: Path) -> None:
    """To rounding, which three stages amplify, in fp32, for the same global batch and synchronised BatchNorm."""
    (tmp_path / "group").mkdir()
    results = run_on_two_workers(TrainAll(tmp_path / "two"), tmp_path / "group")
    for task in TASKS:
        alone = train(task, tmp_path / "one", 1)
        assert results[0][task]["loss"] == results[1][task]["loss"]
        assert results[0][task]["loss"] == pytest.approx(alone["loss"], rel=1e-3), task
