"""What the tests of MGTA share: pictures in memory, a small method, and a recipe that runs in seconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayssl.backbones import ResNet, ResNetConfig
from rayssl.config import ExperimentConfig, load_config
from rayssl.data import BadFile
from rayssl.data.pictures import Plan, Targets
from rayssl.methods import MGTA, MGTAConfig
from rayssl.tasks import TaskSetting

SIDE = 16
SMALL = [
    "data={name: digits, image_size: 16, limit: 160, validation_fraction: 0.1}",
    "backbone.width=4",
    "method.baseline.epochs=1",
    "method.rounds.count=2",
    "method.rounds.epochs=2",
    "method.final.epochs=1",
    "method.clusters=8",
    "method.triplet.classes=4",
    "training.batch_size=32",
    "online={probe: false, knn: false, images: 20}",
    "cluster.workers=0",
    "evaluations=[]",
]
"""Overrides that shrink mgta-small; two rounds of two epochs are still there."""


class MemoryPictures:
    """Random pictures with labels, as `Pictures`."""

    def __init__(self, count: int = 60, *, side: int = SIDE, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        self.side = side
        self.labels = np.arange(count) % 3
        self.classes: tuple[str, ...] = ("a", "b", "c")
        self.bad_files: list[BadFile] = []
        self.targets: Targets | None = None
        self.numbers = np.arange(len(self.labels))
        self.fingerprint = ""

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[Tensor]:
        for indices, _ in plan:
            yield self.pixels[torch.from_numpy(indices)]


def small_config(storage: Path, *overrides: str) -> ExperimentConfig:
    return load_config("mgta-small", [*SMALL, f"storage_path={storage}", *overrides])


def mgta_config(**fields: Any) -> MGTAConfig:
    """Two rounds, 5 clusters, batches of 2 x 3."""
    defaults = {"clusters": 5, "triplet": {"classes": 2, "instances": 3}, "rounds": {"count": 2, "epochs": 1}}
    return MGTAConfig.model_validate({**defaults, **fields})


def small_encoder(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNetConfig(depth=18, width=4, stem="small").build()


def small_method(config: MGTAConfig, *, workers: int = 1, seed: int = 3) -> MGTA:
    return config.build(small_encoder(), TaskSetting(image_size=SIDE, batch_size=12, workers=workers), seed=seed)
