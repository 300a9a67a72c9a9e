"""What Ray Train costs a training epoch: one worker under Ray against the same recipe in a plain process.

    python benchmarks/ray_overhead.py [--images 384] [--epochs 42] [--threads 1]

Both run at the same time and train in turns, an epoch each, so that each pair of epochs meets the same machine; while
one trains, the other waits for its turn. An epoch lasts from the turn's begin to the end of its report and holds the
training, the record in MLflow (a local SQLite database for each) and the report with its checkpoint, after every epoch;
the first pair, which warms up, and the last, which also closes the stage, are left out. What counts is the median of
the pairs' ratios, and the interval that holds it with 95 %. How much of an epoch goes into MLflow and into the report
is told beside it: both take the same seconds of a longer epoch. Start-up is what passes from the call to the first line
of work, and is printed. The two must leave the same history.

The worker has the threads that the plain process has, one unless told otherwise, as in the recipes: the cluster's own
processes need some of the other core. About 6 minutes on 2 cores.
"""

import common  # isort: skip

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayssl.cluster.train import work_on_ray
from rayssl.config import ExperimentConfig, load_config
from rayssl.experiment import local_runtime, run_experiment
from rayssl.runtime import Runtime, Tracker
from rayssl.tracking import MLflowTracker

SIDE = 32
TARGET = 1.03
"""Most that an epoch under Ray may take, in plain epochs."""
_OVER = "over"
WHERE = {"plain": "in a plain process", "ray": "under Ray"}
_CLOCKED = "images_per_second"
"""What may differ between two histories of the same work."""

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
cluster: {{workers: {workers}, cpus_per_worker: {threads}, max_failures: 0}}
online: {{probe: false, knn: false}}
storage_path: {storage}
"""


@dataclass(frozen=True)
class Turns:
    """The right to train, which two processes hand to each other as a file."""

    folder: Path
    own: str
    other: str

    def take(self) -> None:
        """Wait until it is this one's turn.

        Raises:
            RuntimeError: If the other one has failed.
        """
        while not self._file(self.own).exists():
            if (self.folder / _OVER).exists():
                raise RuntimeError(f"{self.own}: waits for a turn, but '{self.other}' has ended")
            time.sleep(0.005)
        self._file(self.own).unlink()

    def give(self) -> None:
        """Let the other one train."""
        self._file(self.other).touch()

    def end(self) -> None:
        """Let nobody wait any more."""
        (self.folder / _OVER).touch()

    def _file(self, name: str) -> Path:
        return self.folder / f"turn-of-{name}"


@dataclass(frozen=True)
class Course:
    """What a run took, in seconds."""

    startup: float
    """Until the work began."""
    epochs: list[float]
    """Each epoch."""
    recording: list[float]
    """The part of each epoch that went into MLflow."""
    reporting: list[float]
    """The part of each that went into the report and its checkpoint."""
    history: list[dict[str, float]]

    @property
    def counted(self) -> slice:
        """The epochs that count."""
        return slice(1, len(self.epochs) - 1)


class Clocked:
    """A runtime that trains in turns and notes what its epochs take; everything else is the runtime's own."""

    def __init__(self, runtime: Runtime, turns: Turns) -> None:
        self._runtime = runtime
        self._turns = turns
        self._since = time.monotonic()
        self._recorded = 0.0
        self.epochs: list[float] = []
        self.recording: list[float] = []
        self.reporting: list[float] = []

    def report(
        self,
        metrics: Mapping[str, float],
        save: Callable[[Path], None] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """Report, look at the clock, and let the other one train an epoch."""
        begun = time.monotonic()
        self._runtime.report(metrics, save, in_background=in_background)
        ended = time.monotonic()
        self.epochs.append(ended - self._since)
        self.reporting.append(ended - begun)
        self.recording.append(self._recorded)
        self._turns.give()
        self._turns.take()
        self._since, self._recorded = time.monotonic(), 0.0

    def note_recording(self, seconds: float) -> None:
        """Count seconds that MLflow took."""
        self._recorded += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


class ClockedTracker:
    """A tracker that tells how long it takes to record numbers; everything else is the tracker's own."""

    def __init__(self, tracker: Tracker, note: Callable[[float], None]) -> None:
        self._tracker = tracker
        self._note = note

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record, between two looks at the clock."""
        begun = time.monotonic()
        self._tracker.log_metrics(metrics, step=step)
        self._note(time.monotonic() - begun)

    def child(self, name: str, *, reopen: bool = True) -> "ClockedTracker":
        """The child, clocked as well."""
        return ClockedTracker(self._tracker.child(name, reopen=reopen), self._note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    common.print_machine("ray", "mlflow")
    if common.installed_version("ray") is None:
        common.print_rows([common.skipped("ray_overhead, an epoch of one worker", "ray is not installed")])
        return
    with tempfile.TemporaryDirectory() as folder:
        courses = run_both(Path(folder), options)
    check_equal_work(courses)
    for name, course in courses.items():
        epochs = course.epochs[course.counted]
        print(
            f"{name:6} {len(epochs)} epochs: median {statistics.median(epochs):.3f} s ({min(epochs):.3f} to "
            f"{max(epochs):.3f}), in MLflow {statistics.median(course.recording[course.counted]):.3f}, in the report "
            f"{statistics.median(course.reporting[course.counted]):.3f} s; start-up {course.startup:.1f} s"
        )
    print()
    common.print_rows(compare(courses))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=384, help="pictures an epoch")
    parser.add_argument("--epochs", type=int, default=42, help="of each run; the first and the last don't count")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error(f"--epochs: must be at least 3, got {options.epochs}")
    return options


def run_both(folder: Path, options: argparse.Namespace) -> dict[str, Course]:
    """The recipe in a plain process and on a worker of a Ray cluster that is started for it, in turns."""
    images = np.random.default_rng(0).integers(0, 256, (options.images, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=images)
    turns = Turns(folder, "ray", "plain")
    turns.give()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        plain = pool.submit(run_plain, make_config(folder, 0, options), folder / "plain")
        try:
            ray = run_on_ray(make_config(folder, 1, options), folder / "ray")
        finally:
            turns.end()
        return {"plain": plain.result(), "ray": ray}


def make_config(folder: Path, workers: int, options: argparse.Namespace) -> ExperimentConfig:
    """The recipe for 0 workers (a plain process) or 1 (Ray)."""
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
    tracker = MLflowTracker.open(folder, uri=f"sqlite:///{folder}.db")
    turns = Turns(folder.parent, "plain", "ray")
    began, *course = clocked_experiment(config, local_runtime(config, folder), tracker, turns=turns)
    return Course(began - called, *course)


def run_on_ray(config: ExperimentConfig, folder: Path) -> Course:
    """The recipe on Ray's worker."""
    called = time.monotonic()
    folder.mkdir()
    uri = f"sqlite:///{folder}.db"
    MLflowTracker.open(folder, uri=uri)
    work = partial(clocked_experiment, turns=Turns(folder.parent, "ray", "plain"))
    began, *course = work_on_ray(work, config, folder, tracking_uri=uri, show=lambda event: None)
    return Course(began - called, *course)


def clocked_experiment(config: ExperimentConfig, runtime: Runtime, tracker: Tracker | None, *, turns: Turns) -> Any:
    """Run an experiment; when it began, and what `Course` keeps."""
    began = time.monotonic()
    assert tracker is not None
    try:
        turns.take()
        clocked = Clocked(runtime, turns)
        history = run_experiment(config, clocked, ClockedTracker(tracker, clocked.note_recording)).history
        turns.give()
    except BaseException:
        turns.end()
        raise
    return began, clocked.epochs, clocked.recording, clocked.reporting, history


def check_equal_work(courses: Mapping[str, Course]) -> None:
    """Refuse a comparison of different work.

    Raises:
        RuntimeError: If the two runs' numbers differ.
    """
    plain, ray = (
        [{key: value for key, value in row.items() if key != _CLOCKED} for row in course.history]
        for course in (courses["plain"], courses["ray"])
    )
    if plain != ray:
        raise RuntimeError(f"ray: must leave the history of the plain run, {plain}, got {ray}")


def compare(courses: Mapping[str, Course]) -> list[dict[str, object]]:
    """Give the rows: an epoch under Ray, judged, and what of it goes into MLflow and the report."""
    plain, ray = (course.epochs[course.counted] for course in (courses["plain"], courses["ray"]))
    ratios = [ours / peer for ours, peer in zip(ray, plain, strict=True)]
    rows = [
        common.row(
            "ray_overhead, an epoch of one worker (peer: the plain loop; ratio: our time; spread: its 95 % interval)",
            ours=statistics.median(ray),
            peer=statistics.median(plain),
            unit="s",
            ratio=statistics.median(ratios),
            target=TARGET,
            at_most=True,
            spread=common.median_interval(ratios),
        )
    ]
    for name, course in courses.items():
        epochs = course.epochs[course.counted]
        parts = {
            "recording in MLflow": course.recording[course.counted],
            "the report with its checkpoint": course.reporting[course.counted],
        }
        rows += [share_row(f"{part}, {WHERE[name]}", seconds, epochs) for part, seconds in parts.items()]
    return rows


def share_row(part: str, seconds: Sequence[float], epochs: Sequence[float]) -> dict[str, object]:
    """The row of a part of an epoch."""
    shares = [each / epoch for each, epoch in zip(seconds, epochs, strict=True)]
    return common.row(
        f"ray_overhead, {part} (peer: the epoch; ratio: its share)",
        ours=statistics.median(seconds),
        peer=statistics.median(epochs),
        unit="s",
        ratio=statistics.median(shares),
        target=None,
        spread=common.median_interval(shares),
    )


if __name__ == "__main__":
    main()
