"""What several test files share: a small run that trains in seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayssl.config import ExperimentConfig, load_config

SMALL = [
    "data.image_size=8",
    "data.limit=256",
    "backbone.width=4",
    "training.batch_size=64",
    "training.checkpoint_every=1",
    "method.task.copies=one",
    "method.stages.0.epochs=1",
    "method.stages.1.epochs=2",
    "method.stages.2.epochs=1",
    "online.images=60",
    "online.every=1",
    "cluster.workers=0",
    "evaluations.0.seeds=2",
    "evaluations.0.epochs=5",
]
"""Overrides that shrink the demo to a few seconds; every stage and the resume inside stage 2 are still there."""


@pytest.fixture
def small_run(tmp_path: Path) -> "SmallRun":
    """Makes configs of the shrunken demo, stored under the test's own folder."""
    return SmallRun(tmp_path / "runs")


class SmallRun:
    """See the fixture."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage

    def config(self, *overrides: str) -> ExperimentConfig:
        """The small config with more overrides."""
        return load_config("demo-psl", [*SMALL, f"storage_path={self.storage}", *overrides])


@pytest.fixture(autouse=True)
def _no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests never write to a tracking server or a cluster that the machine happens to name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
