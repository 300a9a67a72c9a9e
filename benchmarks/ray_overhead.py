"""What Ray Train costs a training epoch: one worker under Ray against the same recipe in a plain process.

    python benchmarks/ray_overhead.py [--images 1536] [--epochs 6] [--runs 2] [--threads 1]

An epoch lasts from the end of one report to the end of the next, so that it holds the training, the checkpoint and the
report itself. Plain and Ray runs take turns; of each run the first epoch, which warms up, and the last, which also
closes the stage, are left out, and the median of all others counts. Start-up is what passes from the call to the first
line of work, and is printed beside. The worker has the threads that the plain process has, one unless told otherwise,
as in the recipes: the cluster's own processes need some of the other core. About 4 minutes on 2 cores.
"""

import common  # isort: skip

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayssl.cluster.train import work_on_ray
from rayssl.config import ExperimentConfig, load_config
from rayssl.experiment import local_runtime, run_experiment
from rayssl.runtime import Runtime, Tracker

SIDE = 32
TARGET = 1.03
"""Most that an epoch under Ray may take, in plain epochs."""

_RECIPE = """
name: ray-overhead
data: {{name: npz, file: {file}, image_size: {side}, validation_fraction: 0}}
backbone: {{name: resnet, depth: 18, width: 32, stem: small}}
method:
  name: psl
  task: {{name: rotation, copies: one}}
  stages: [{{blocks: [1, 2, 3, 4, 5], epochs: {epochs}, level: {{angles: 4}}}}]
optimizer: {{name: sgd}}
training: {{batch_size: 128, checkpoint_every: 1}}
cluster: {{workers: {workers}, cpus_per_worker: {threads}}}
online: {{probe: false, knn: false}}
storage_path: {storage}
"""


@dataclass(frozen=True)
class Course:
    """The course of a run: moments of one clock that all processes of the machine share, in seconds."""

    called: float
    began: float
    """The first line of work."""
    reports: list[float]
    """The end of each report, one an epoch."""

    @property
    def startup(self) -> float:
        """Seconds until the work began."""
        return self.began - self.called

    @property
    def epochs(self) -> list[float]:
        """Seconds of each epoch but the first and the last."""
        return [after - before for before, after in zip(self.reports, self.reports[1:-1], strict=False)]


class Clocked:
    """A runtime that notes when each of its reports is done; everything else is the runtime's own."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.moments: list[float] = []

    def report(self, metrics: Mapping[str, float], save: Callable[[Path], None] | None = None) -> None:
        """Report, then look at the clock."""
        self._runtime.report(metrics, save)
        self.moments.append(time.monotonic())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    common.print_machine("ray")
    if common.installed_version("ray") is None:
        common.print_rows([common.skipped("ray_overhead, an epoch of one worker", "ray is not installed")])
        return
    courses: dict[str, list[Course]] = {"plain": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (options.images, SIDE, SIDE, 3), dtype=np.uint8)
        np.savez(Path(folder) / "pictures.npz", images=images)
        for turn in range(options.runs):
            courses["plain"].append(run_plain(make_config(Path(folder), 0, options), Path(folder) / f"plain-{turn}"))
            courses["ray"].append(run_on_ray(make_config(Path(folder), 1, options), Path(folder) / f"ray-{turn}"))
    medians = {name: statistics.median(sum((run.epochs for run in runs), [])) for name, runs in courses.items()}
    for name, runs in courses.items():
        starts = ", ".join(f"{run.startup:.1f}" for run in runs)
        epochs = "; ".join(", ".join(f"{seconds:.2f}" for seconds in run.epochs) for run in runs)
        print(f"{name:6} median epoch {medians[name]:6.2f} s ({epochs})   start-up {starts} s")
    print()
    common.print_rows(
        [
            common.row(
                "ray_overhead, an epoch of one worker (peer: the plain loop; ratio: our time)",
                ours=medians["ray"],
                peer=medians["plain"],
                unit="s",
                ratio=medians["ray"] / medians["plain"],
                target=TARGET,
                at_most=True,
            )
        ]
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1536, help="pictures an epoch")
    parser.add_argument("--epochs", type=int, default=6, help="of each run; the first and the last don't count")
    parser.add_argument("--runs", type=int, default=2, help="of each kind")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error(f"--epochs: must be at least 3, got {options.epochs}")
    return options


def make_config(folder: Path, workers: int, options: argparse.Namespace) -> ExperimentConfig:
    """The recipe for 0 workers (this process) or 1 (Ray)."""
    recipe = folder / f"{workers}-workers.yaml"
    recipe.write_text(
        _RECIPE.format(
            file=folder / "pictures.npz",
            side=SIDE,
            epochs=options.epochs,
            workers=workers,
            threads=options.threads,
            storage=folder,
        )
    )
    return load_config(recipe)


def run_plain(config: ExperimentConfig, folder: Path) -> Course:
    """The recipe in this process."""
    called = time.monotonic()
    folder.mkdir()
    began, reports = clocked_experiment(config, local_runtime(config, folder), None)
    return Course(called, began, reports)


def run_on_ray(config: ExperimentConfig, folder: Path) -> Course:
    """The recipe on a worker of a Ray cluster that is started for it."""
    called = time.monotonic()
    folder.mkdir()
    began, reports = work_on_ray(clocked_experiment, config, folder, tracking_uri=None, show=lambda event: None)
    return Course(called, began, reports)


def clocked_experiment(
    config: ExperimentConfig, runtime: Runtime, tracker: Tracker | None
) -> tuple[float, list[float]]:
    """Run an experiment; when it began, and the end of each report."""
    began = time.monotonic()
    clocked = Clocked(runtime)
    run_experiment(config, clocked, tracker)
    return began, clocked.moments


if __name__ == "__main__":
    main()
