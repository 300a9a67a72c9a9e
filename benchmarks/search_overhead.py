"""What a search costs beside the training itself: eight trivial trials of one worker, one at a time.

    python benchmarks/search_overhead.py [--trials 8]

Wall time less the seconds of the same runs in a plain process, a trial: of the whole search, from the call to its
result, with Ray's start, MLflow's new database, tables and pictures; and of its parts. The first trial is timed from
the cluster being up, so that its process, its imports and the search's record in MLflow are in it. A later one, which
takes over that process, is timed from the end of the one before. One at a time, trials don't slow each other and
nothing is hidden behind another trial. Each trial must leave the history that the plain run leaves. About a minute.
"""

import common  # isort: skip

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rayssl.cluster.tune import search_cluster
from rayssl.experiment import run_experiment
from rayssl.search import SearchResult, TrialEvent, search
from rayssl.search_space import Study, load_study

_TARGET = 3.0
"""Seconds a trial."""
_CLOCKED = "images_per_second"
"""What may differ between two histories of the same work."""

_STUDY = """
recipe: demo-psl
set:
  data.image_size: 8
  data.limit: 256
  backbone.width: 4
  training.batch_size: 64
  method.task.copies: one
  method.stages.0.epochs: 1
  method.stages.1.epochs: 1
  method.stages.2.epochs: 1
  online.images: 60
  online.every: 1
  evaluations: []
  cluster.workers: 1
  storage_path: {storage}
search:
  optimizer.learning_rate: {{uniform: [0.01, 0.1]}}
tune: {{num_samples: {trials}, scheduler: none, workers: 1, concurrency: 1}}
reuse: false
"""

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Course:
    """Moments of a search, in seconds of one clock."""

    called: float
    cluster_up: float
    trials_ended: list[float]
    returned: float

    def overheads(self, plain: float) -> dict[str, list[float]]:
        """What the search takes beside training, seconds: the whole a trial, the first trial, each later one.

        Args:
            plain: Seconds of a trial's run in a plain process.
        """
        count = len(self.trials_ended)
        return {
            "whole": [(self.returned - self.called) / count - plain],
            "first": [self.trials_ended[0] - self.cluster_up - plain],
            "later": [after - before - plain for before, after in pairwise(self.trials_ended)],
        }


def main() -> None:
    """Run the search and print the overhead of a trial."""
    options = parse_options()
    common.print_machine("ray", "mlflow")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overhead.yaml"
        path.write_text(_STUDY.format(storage=Path(folder) / "runs", trials=options.trials))
        study = load_study(path)
        course, result = clocked_search(study)
        seconds, histories = run_plainly(study)
        check_equal_work(result, study, histories)
    plain = statistics.median(seconds)
    overheads = course.overheads(plain)
    parts = {
        "Ray's start": course.cluster_up - course.called,
        "the first trial": course.trials_ended[0] - course.cluster_up,
        "the others": course.trials_ended[-1] - course.trials_ended[0],
        "what follows": course.returned - course.trials_ended[-1],
    }
    listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
    print(f"{options.trials} trials, one at a time: {course.returned - course.called:.1f} s, of them {listed}")
    print(f"the same run in a plain process: {plain:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})\n")
    common.print_rows(compare(overheads, plain))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=8, help="at least 2")
    options = parser.parse_args()
    if options.trials < 2:
        parser.error(f"--trials: must be at least 2, got {options.trials}")
    return options


def clocked_search(study: Study) -> tuple[Course, SearchResult]:
    """Run the study on a cluster that is started for it."""
    ended: list[float] = []

    def note(event: object) -> None:
        if isinstance(event, TrialEvent) and event.kind == "finished":
            ended.append(time.monotonic())

    called = time.monotonic()
    with search_cluster(study):
        cluster_up = time.monotonic()
        result = search(study, show=note)
        returned = time.monotonic()
    return Course(called, cluster_up, ended, returned), result


def run_plainly(study: Study) -> tuple[list[float], list[History]]:
    """Each trial's run in this process, without Ray or MLflow, after one that warms up: seconds and histories."""
    samples = study.samples()
    seconds: list[float] = []
    histories: list[History] = []
    for values in (samples[0], *samples):
        started = time.perf_counter()
        histories.append(run_experiment(study.config(values)).history)
        seconds.append(time.perf_counter() - started)
    return seconds[1:], histories[1:]


def check_equal_work(result: SearchResult, study: Study, histories: Sequence[History]) -> None:
    """Refuse a comparison of different work.

    Raises:
        RuntimeError: If a trial is missing or its numbers are not those of the plain run.
    """
    folders = {json.dumps(each.values): result.folder / "trials" / each.name for each in result.records.values()}
    for values, history in zip(study.samples(), histories, strict=True):
        path = folders[json.dumps(values)] / "history.jsonl"
        if timeless([json.loads(line) for line in path.read_text().splitlines()]) != timeless(history):
            raise RuntimeError(f"{path}: must hold the numbers of the same run in a plain process")


def timeless(history: History) -> list[dict[str, float]]:
    """A history without what depends on the clock."""
    return [{key: value for key, value in row.items() if key != _CLOCKED} for row in history]


def compare(overheads: Mapping[str, Sequence[float]], plain: float) -> list[dict[str, object]]:
    """Give the rows: the whole search, judged, and its parts."""
    names = {
        "whole": "the whole search, a trial",
        "first": "the first trial, from the cluster being up",
        "later": "a later trial",
    }
    return [
        common.row(
            f"search_overhead, {name} (peer: the plain run; ratio: seconds beyond it)",
            ours=statistics.median(overheads[part]),
            peer=plain,
            unit="s",
            ratio=statistics.median(overheads[part]),
            target=_TARGET if part == "whole" else None,
            at_most=True,
            spread=(min(overheads[part]), max(overheads[part])) if len(overheads[part]) > 1 else None,
        )
        for part, name in names.items()
    ]


if __name__ == "__main__":
    main()
