"""Throughput of 1 to N workers: Ray Train against the same loop under torchrun, and what `rayssl plan` had said.

    python benchmarks/scaling.py [--workers 2] [--batch 64] [--pictures 1437] [--epochs 3] [--rounds 2]

PSL with rotations on the digits that ship with scikit-learn, three stages, one thread a worker. Strong scaling shares a
batch among the workers, weak scaling gives each of them as much as one has alone. What counts are the views a second
that the training loop itself reports, as the median over the epochs of a stage without the first one, and over stages
as all views by all seconds. torchrun and Ray take turns, and must leave the same losses. The plan is made before, from
a few steps in one process and two processes that exchange messages. About 7 minutes on 2 cores.
"""

import common  # isort: skip

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import distributed

from rayssl.cluster.train import run_on_ray
from rayssl.config import ExperimentConfig, load_config
from rayssl.experiment import run_experiment
from rayssl.plan import Plan, plan_experiment
from rayssl.runtime import LocalRuntime

History = Sequence[Mapping[str, float]]

_RECIPE = [
    "data.image_size=32",
    "method.task.copies=one",
    "online.probe=false",
    "online.knn=false",
    "online.every=1000",
    "evaluations=[]",
    "training.checkpoint_every=1000",
    "cluster.max_failures=0",
]
_RAY_TARGET, _PLAN_TARGET, _SCALING_TARGET = 0.97, 0.85, 0.8


def main() -> None:
    """Plan, measure, print a table and the rows; as a worker of torchrun, train."""
    options = _parse_options()
    if options.overrides:
        _work(options.overrides)
        return
    common.print_machine("ray")
    rows: list[dict[str, object]] = []
    alone: list[float] = []
    for mode, workers in _settings(options.workers):
        batch = options.batch * (workers if mode == "weak" else 1)
        overrides = _overrides(options, workers, batch)
        config = load_config("demo-psl", overrides)
        plan = plan_experiment(config, num_workers=workers)
        under_torchrun: list[History] = []
        under_ray: list[History] = []
        for _ in range(options.rounds):
            under_torchrun.append(_torchrun_history(workers, overrides))
            under_ray.append(_ray_history(config))
            _check_equal_work(under_torchrun[-1], under_ray[-1])
        _print_setting(mode, workers, batch, plan, under_torchrun, under_ray)
        planned = _whole([stage.examples_per_second for stage in plan.stages])
        torchrun, ray = ([_whole(_rates(each)) for each in runs] for runs in (under_torchrun, under_ray))
        alone = alone or torchrun
        what = f"scaling {mode}, {workers} worker{'s' if workers > 1 else ''}"
        plans = [planned] * options.rounds
        rows.append(_row(f"{what}, Ray against torchrun", ray, torchrun, _RAY_TARGET))
        rows.append(_row(f"{what}, planned against torchrun", plans, torchrun, _PLAN_TARGET, closeness=True))
        if workers > 1:
            ideal = [workers * each for each in alone]
            rows.append(_row(f"{what}, torchrun against {workers} x 1", torchrun, ideal, _SCALING_TARGET))
    print()
    common.print_rows(rows)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="the most; default: cores")
    parser.add_argument("--batch", type=int, default=64, help="views a step, of one worker alone")
    parser.add_argument("--pictures", type=int, default=1437, help="of the digits, a tenth of them held out")
    parser.add_argument("--epochs", type=int, default=3, help="of each of the three stages, at least 2")
    parser.add_argument("--rounds", type=int, default=2, help="runs under torchrun and under Ray, in turns")
    parser.add_argument("--overrides", type=json.loads, help=argparse.SUPPRESS)  # this process is a worker
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: must be at least 2, since the first one warms up")
    return options


def _settings(most: int) -> list[tuple[str, int]]:
    """One worker, then 2, 4, ... and the most, strong and weak."""
    numbers = [number for number in (2**power for power in range(1, 20)) if number < most]
    several = [*numbers, most] if most > 1 else []
    return [("alone", 1), *((mode, number) for number in several for mode in ("strong", "weak"))]


def _overrides(options: argparse.Namespace, workers: int, batch: int) -> list[str]:
    stages = [f"method.stages.{index}.epochs={options.epochs}" for index in range(3)]
    size = [f"data.limit={options.pictures}", f"training.batch_size={batch}"]
    return [*_RECIPE, *stages, *size, f"cluster.workers={workers}"]


def _torchrun_history(workers: int, overrides: Sequence[str]) -> History:
    """The run in a group of processes that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        inside = [*overrides, f"storage_path={folder}"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        program = [str(Path(__file__).resolve()), "--overrides", json.dumps(inside)]
        subprocess.run([*launcher, *program], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        history: History = json.loads((Path(folder) / "history.json").read_text())
        return history


def _work(overrides: Sequence[str]) -> None:
    """One process of the group: the whole run, its history written by the first one."""
    distributed.init_process_group("gloo")
    config = load_config("demo-psl", overrides)
    folder = config.storage_folder
    runtime = LocalRuntime(folder, num_threads=config.cluster.cpus_per_worker)
    history = run_experiment(config, runtime).history
    if runtime.rank == 0:
        (folder / "history.json").write_text(json.dumps(history))
    distributed.barrier()
    distributed.destroy_process_group()


def _ray_history(config: ExperimentConfig) -> History:
    """The run on the workers of a TorchTrainer."""
    with tempfile.TemporaryDirectory() as folder:
        return run_on_ray(config, Path(folder), tracking_uri=None, show=lambda event: None).history


def _check_equal_work(torchrun: History, ray: History) -> None:
    """Refuse a comparison of different work.

    Raises:
        RuntimeError: If the losses of any epoch differ.
    """
    wanted, got = (
        [(epoch["stage"], epoch["epoch"], epoch["loss"]) for epoch in history] for history in (torchrun, ray)
    )
    if len(wanted) != len(got) or not np.allclose(wanted, got, rtol=1e-4, atol=0):
        raise RuntimeError(f"Ray: must leave torchrun's (stage, epoch, loss), {wanted}, got {got}")


def _rates(history: History) -> list[float]:
    """Median over a stage's epochs without the first one, for each stage."""
    rates: dict[float, list[float]] = {}
    for epoch in history:
        rates.setdefault(epoch["stage"], []).append(epoch["images_per_second"])
    return [statistics.median(values[1:]) for values in rates.values()]


def _whole(rates: Sequence[float]) -> float:
    """Views a second over stages of equally many views."""
    return statistics.harmonic_mean(rates)


def _print_setting(
    mode: str, workers: int, batch: int, plan: Plan, under_torchrun: Sequence[History], under_ray: Sequence[History]
) -> None:
    print(f"\n{mode}: {workers} x {batch // workers} views a step")
    print(f"{'':10}{'planned':>12}{'torchrun':>12}{'Ray':>12}{'planned/torchrun':>18}{'waiting':>9}   views/s")
    for index, stage in enumerate(plan.stages):
        planned = stage.examples_per_second
        torchrun, ray = (
            statistics.median(_rates(each)[index] for each in runs) for runs in (under_torchrun, under_ray)
        )
        print(
            f"{stage.name:10}{planned:12,.0f}{torchrun:12,.0f}{ray:12,.0f}{planned / torchrun:18.2f}"
            f"{stage.communication_share:9.1%}",
            flush=True,
        )


def _row(
    what: str, ours: Sequence[float], peer: Sequence[float], target: float, *, closeness: bool = False
) -> dict[str, object]:
    """The row of two views a second, a round each; of a plan it counts how close it is, whichever is larger."""

    def ratio(own: float, other: float) -> float:
        return min(own / other, other / own) if closeness else own / other

    medians = statistics.median(ours), statistics.median(peer)
    ratios = [ratio(*each) for each in zip(ours, peer, strict=True)]
    return common.row(
        what,
        ours=medians[0],
        peer=medians[1],
        unit="views/s",
        ratio=ratio(*medians),
        target=target,
        spread=(min(ratios), max(ratios)) if len(ratios) > 1 else None,
    )


if __name__ == "__main__":
    main()
