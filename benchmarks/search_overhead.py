"""What a search costs beside the training itself: eight trivial trials of one worker.

    python benchmarks/search_overhead.py

Wall time from the first trial's start to the last one's end, times the trials at a time, a trial, less the seconds of
the same run in a plain process. Trials share the machine and the plain run does not, so the figure is an upper bound.
"""

import common  # isort: skip

import os
import tempfile
import time
from pathlib import Path

from rayssl.experiment import run_experiment
from rayssl.search import TrialEvent, search
from rayssl.search_space import Study, load_study

_TRIALS = 8
_TARGET = 3.0
"""Seconds a trial."""

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
tune: {{num_samples: {trials}, scheduler: none, workers: 1}}
reuse: false
"""


def main() -> None:
    """Run the search and print the overhead of a trial."""
    common.print_machine("ray", "mlflow")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overhead.yaml"
        path.write_text(_STUDY.format(storage=Path(folder) / "runs", trials=_TRIALS))
        study = load_study(path)
        moments: list[float] = []

        def note(event: object) -> None:
            if isinstance(event, TrialEvent):
                moments.append(time.monotonic())

        started = time.monotonic()
        search(study, show=note)
        whole = time.monotonic() - started
        trials = moments[-1] - moments[0]
        plain = _plain_seconds(study)
    at_a_time = min(_TRIALS, os.cpu_count() or 1)
    overhead = trials * at_a_time / _TRIALS - plain
    print(f"{_TRIALS} trials, {at_a_time} at a time: {trials:.1f} s, of {whole:.1f} s with Ray's and MLflow's start")
    print(f"{plain:.2f} s a run in a plain process, {overhead:.2f} s of overhead a trial")
    common.print_rows(
        [
            common.row(
                "search overhead, a trial of one worker",
                ours=overhead,
                peer=plain,
                unit="s",
                ratio=overhead,
                target=_TARGET,
                at_most=True,
            )
        ]
    )


def _plain_seconds(study: Study) -> float:
    """A trial's run in this process, without Ray; the second of two, since the first one imports and warms up."""
    for values in study.samples()[:2]:
        started = time.perf_counter()
        run_experiment(study.config(values))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
