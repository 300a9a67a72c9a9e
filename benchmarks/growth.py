"""How time and memory grow with batch, images, clusters, features and workers, piece by piece, and a picture of it.

    python benchmarks/growth.py [--rounds 3] [--picture docs/growth.svg]

Every piece runs at four sizes, each twice the one before, with one thread: views of a batch (SimCLR, 64 px), a training
step (ResNet-18 of half the width, rotations, 64 px), k-means (10 iterations), the SVMs of one fold (4 classes x 3
costs) and kNN (500 queries). The slope of the logarithms is the power by which it grows: 1 is linear. An SVM's memory
and time grow with the square of its images, since it keeps their inner products; all else should be linear at most.
Seconds are CPU seconds. Memory is the peak of what torch allocates beside the input. A training step and k-means are
also done by one process and shared by two, over gloo, in wall seconds, beside halves of the work without any exchange:
what two processes lose is told in shares of their time. About 3 minutes on 2 cores.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import torch
from common import Timings, interleaved_seconds, print_machine, print_rows, row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from revnet_memory import peak_mebibytes
from stage_step import Scene, build_stage, made_up_batch, make_views, training_step
from torch import Tensor, distributed

from rayssl.backbones import ResNetConfig
from rayssl.clustering import kmeans
from rayssl.data.augment import Draws
from rayssl.evaluation.knn import knn_top1
from rayssl.evaluation.svm import fit_svms, l2_normalize
from rayssl.runtime import LocalRuntime
from rayssl.tasks import RotationConfig, RotationLevel, TaskSetting
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view

CPU = torch.device("cpu")
SIDE = 64
MARGIN = 0.15
"""A power may be this much above what it should be: sizes are few and times vary."""
SPEED_UP = 1.6
"""Least that two processes must be faster than one."""
WORKERS = (1, 2)
WHOLE, HALF, HALVES, SHARED = WAYS = ("whole", "half", "halves", "shared")
"""What is timed to see where two processes lose: one does all of the work; one does half of it; each does half of it,
at the same time, and knows nothing of the other; both share it and exchange sums."""

PARTS: Mapping[str, Callable[[Mapping[str, float]], float]] = {
    "half of the time of one": lambda seconds: seconds[WHOLE] / 2,
    "what half of the work takes beyond": lambda seconds: seconds[HALF] - seconds[WHOLE] / 2,
    "how two halves slow each other": lambda seconds: seconds[HALVES] - seconds[HALF],
    "exchanging sums": lambda seconds: seconds[SHARED] - seconds[HALVES],
}
"""Seconds by way -> a part of what two processes take; together they are all of it."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Sweep:
    """One piece at several sizes of one variable."""

    piece: str
    variable: str
    sizes: tuple[int, ...]
    build: Callable[[int], Run]
    """Size -> what is timed; the input is made before."""
    power: float = 1.0
    """By which time and memory should grow, at most."""


@dataclass(frozen=True)
class Growth:
    """What a sweep found, by size."""

    piece: str
    variable: str
    sizes: tuple[int, ...]
    seconds: list[float]
    mebibytes: list[float]
    power: float
    """By which both should grow, at most."""
    spread: tuple[float, float] | None = None
    """Least and greatest power of the seconds of a round."""


@dataclass(frozen=True)
class Shared:
    """What the same work takes one process and two, see `WAYS`."""

    seconds: Timings
    """Way -> wall seconds."""
    mebibytes: list[float]
    """Of the first process, alone and sharing."""


def main() -> None:
    """Measure, print a table, draw the picture and print the rows."""
    options = parse_options()
    torch.set_num_threads(1)
    print_machine("scikit-learn", "matplotlib")
    found = [measure(sweep, rounds=options.rounds) for sweep in sweeps()]
    for growth in found:
        print_growth(growth)
    shared = measure_workers(rounds=3 * options.rounds)
    for piece, both in shared.items():
        print_shares(piece, both)
        seconds = [both.seconds[way] for way in (WHOLE, SHARED)]
        found.append(Growth(piece, "workers", WORKERS, seconds, both.mebibytes, -1.0))
    draw(found, options.picture)
    print(f"\n{options.picture}: written\n")
    print_rows(
        [each for growth in found if growth.variable != "workers" for each in compare(growth)]
        + [compare_workers(piece, both) for piece, both in shared.items()]
    )


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed runs at each size")
    default = Path(__file__).parent.parent / "docs" / "growth.svg"
    parser.add_argument("--picture", type=Path, default=default, help="where the figure goes; its ending is its format")
    return parser.parse_args()


def sweeps() -> list[Sweep]:
    """All pieces and what they grow with."""
    return [
        Sweep("views", "batch", doubled(128), build_views),
        Sweep("training step", "batch", doubled(16), build_step),
        Sweep("k-means", "images", doubled(8000), build_kmeans),
        Sweep("k-means", "clusters", doubled(50), lambda k: build_kmeans(16_000, num_clusters=k)),
        Sweep("k-means", "features", doubled(128), lambda dim: build_kmeans(16_000, dim=dim)),
        Sweep("SVM fold", "images", doubled(500), build_svm, power=2.0),
        Sweep("SVM fold", "features", doubled(1024), lambda dim: build_svm(1000, dim=dim)),
        Sweep("kNN", "images", doubled(5000), build_knn),
        Sweep("kNN", "features", doubled(256), lambda dim: build_knn(10_000, dim=dim)),
    ]


def doubled(first: int) -> tuple[int, ...]:
    """Four sizes, each twice the one before."""
    return tuple(first * 2**exponent for exponent in range(4))


def build_views(batch: int) -> Run:
    """One augmented view of each picture of a batch."""
    images = made_up_batch(Scene(CPU, SIDE, batch, "fp32")).images
    level = AugmentationLevel(color_strength=1.0, gray=0.2, blur=0.5)
    return lambda: augmented_view(images, Draws(0, 0, 0, batch_size=batch), level, image_size=SIDE)


def build_step(batch: int, runtime: LocalRuntime | None = None) -> Run:
    """A training step, of this process's share of a batch if it is one of several."""
    scene = Scene(CPU, SIDE, batch, "fp32")
    workers = 1 if runtime is None else runtime.world_size
    task = RotationConfig(copies="one").build(RotationLevel(angles=4), TaskSetting(SIDE, batch * workers, workers))
    torch.manual_seed(0)
    stage = build_stage(ResNetConfig(depth=18, width=32).build(), (1, 2, 3, 4, 5), task, CPU, SIDE)
    return training_step(stage if runtime is None else runtime.wrap(stage), make_views(task, scene), scene)


def build_kmeans(num_images: int, *, num_clusters: int = 50, dim: int = 256) -> Run:
    """k-means on one process."""
    features = made_up_features(num_images, dim)
    return lambda: kmeans(features, num_clusters, max_iterations=10, tolerance=0)


def build_svm(num_images: int, *, dim: int = 1024) -> Run:
    """The SVMs of 4 classes and 3 costs."""
    features = l2_normalize(made_up_features(num_images, dim).relu_())
    planes = made_up_features(4, dim)
    targets = torch.where(features @ planes.T > 0, 1, -1)
    return lambda: fit_svms(features, targets, (0.01, 0.1, 1.0))


def build_knn(num_images: int, *, dim: int = 256) -> Run:
    """Votes for 500 queries."""
    features, queries = made_up_features(num_images, dim), made_up_features(500, dim)
    labels = torch.arange(num_images) % 10
    return lambda: knn_top1(features, labels, queries, labels[:500], num_classes=10)


def made_up_features(num_rows: int, dim: int) -> Tensor:
    """Rows of 40 overlapping classes, (num_rows, dim) float32."""
    generator = torch.Generator().manual_seed(dim)
    centers = torch.randn(40, dim, generator=generator)
    return centers[torch.arange(num_rows) % 40] + 2 * torch.randn(num_rows, dim, generator=generator)


def measure(sweep: Sweep, *, rounds: int) -> Growth:
    """CPU seconds and memory at every size, the sizes taking turns."""
    runs = {str(size): sweep.build(size) for size in sweep.sizes}
    seconds = interleaved_seconds(runs, rounds=rounds, clock=time.process_time)
    mebibytes = [peak_mebibytes(run, CPU) for run in runs.values()]
    spread = seconds.spread_of(lambda each: fitted_power(sweep.sizes, list(each.values())))
    return Growth(sweep.piece, sweep.variable, sweep.sizes, list(seconds.values()), mebibytes, sweep.power, spread)


def measure_workers(*, rounds: int) -> dict[str, Shared]:
    """The same work by one and by two processes, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(folder, rounds), nprocs=len(WORKERS))
        found = torch.load(Path(folder) / "result.pt", weights_only=True)
    return {piece: Shared(Timings(rounds), mebibytes) for piece, (rounds, mebibytes) in found.items()}


def work(rank: int, folder: str, rounds: int) -> None:
    """One of two processes; the first one writes down what each piece takes, in seconds and MiB."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(WORKERS)
    )
    runtime = LocalRuntime(Path(folder))
    result = {}
    for piece, ways in (("training step", step_ways(runtime)), ("k-means", kmeans_ways(runtime))):
        # What one does alone the other waits for; memory is that of the first.
        runs = {
            way: partial(together, run if rank == 0 or way not in (WHOLE, HALF) else idle, runtime)
            for way, run in ways.items()
        }
        timings = interleaved_seconds(runs, rounds=rounds)
        mebibytes = [peak_mebibytes(runs[way], CPU) for way in (WHOLE, SHARED)]
        result[piece] = (timings.rounds, mebibytes)
    if rank == 0:
        torch.save(result, Path(folder) / "result.pt")
    runtime.barrier()  # none leaves while another one still talks to it
    distributed.destroy_process_group()


def step_ways(runtime: LocalRuntime) -> dict[str, Run]:
    """A training step of 128 pictures."""
    return {
        WHOLE: build_step(128),
        HALF: build_step(64),
        HALVES: build_step(64),
        SHARED: build_step(64, runtime),
    }


def kmeans_ways(runtime: LocalRuntime) -> dict[str, Run]:
    """k-means of 32,000 features."""
    features = made_up_features(32_000, 256)
    half = features.chunk(runtime.world_size)[runtime.rank]
    run = partial(kmeans, num_clusters=50, max_iterations=10, tolerance=0)
    return {
        WHOLE: partial(run, features),
        HALF: partial(run, half),
        HALVES: partial(run, half),
        SHARED: partial(run, half, group=distributed.group.WORLD),
    }


def together(run: Run, runtime: LocalRuntime) -> None:
    """Run until all workers are done, from when all are ready."""
    runtime.barrier()
    run()
    runtime.barrier()


def idle() -> None:
    """Let the other one work."""


def fitted_power(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p for which values are nearest to c * sizes ** p: the slope of the logarithms, by least squares."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


def print_growth(growth: Growth) -> None:
    """Print a line a size, the powers, and those of the last doubling alone, where fixed costs weigh least."""
    print(f"{growth.piece} by {growth.variable}")
    for size, seconds, mebibytes in zip(growth.sizes, growth.seconds, growth.mebibytes, strict=True):
        print(f"  {size:8,} {1000 * seconds:10.1f} ms {mebibytes:10.1f} MiB")
    for title, first in (("power", 0), ("at last", -2)):
        time_power, memory_power = (
            fitted_power(growth.sizes[first:], values[first:]) for values in (growth.seconds, growth.mebibytes)
        )
        print(f"  {title:8} {time_power:10.2f}    {memory_power:10.2f}", flush=True)


def compare(growth: Growth) -> list[dict[str, object]]:
    """Give the rows of a sweep: the powers of time and of memory, beside what they should be at most."""
    measured = {"time": growth.seconds, "memory": growth.mebibytes}
    powers = {name: fitted_power(growth.sizes, values) for name, values in measured.items()}
    return [
        row(
            f"growth {growth.piece}: {name} by {growth.variable} (power; peer: what it should be at most)",
            ours=power,
            peer=growth.power,
            unit="power",
            ratio=power,
            target=growth.power + MARGIN,
            at_most=True,
            spread=growth.spread if name == "time" else None,
        )
        for name, power in powers.items()
    ]


def print_shares(piece: str, shared: Shared) -> None:
    """Print what two processes lose, in shares of the time that they take."""
    seconds = shared.seconds
    print(f"{piece} by workers: one {1000 * seconds[WHOLE]:.1f} ms, two {1000 * seconds[SHARED]:.1f} ms, of which")
    for name, part in PARTS.items():

        def share(each: Mapping[str, float], part: Callable[[Mapping[str, float]], float] = part) -> float:
            return part(each) / each[SHARED]

        low, high = seconds.spread_of(share)
        print(f"  {name:36} {share(seconds):7.1%} ({low:.1%} to {high:.1%})", flush=True)


def compare_workers(piece: str, shared: Shared) -> dict[str, object]:
    """Give the row of one piece: how much faster two processes are."""
    return row(
        f"growth {piece}: two processes of one thread, by gloo (peer: one)",
        ours=shared.seconds[SHARED],
        peer=shared.seconds[WHOLE],
        unit="s",
        ratio=shared.seconds[WHOLE] / shared.seconds[SHARED],
        target=SPEED_UP,
        spread=shared.seconds.spread(WHOLE, SHARED),
    )


def draw(found: Sequence[Growth], path: Path) -> None:
    """Draw time and memory of each piece, a column a piece, both axes logarithmic."""
    pieces = list(dict.fromkeys(growth.piece for growth in found))
    with mpl.rc_context({"svg.hashsalt": "rayssl", "font.size": 8}):
        figure = Figure(figsize=(3 * len(pieces), 6.6), layout="constrained")
        panels = figure.subplots(2, len(pieces), squeeze=False)
        for column, piece in enumerate(pieces):
            panels[0, column].set_title(piece)
            for panel, name, unit in ((panels[0, column], "time", "s"), (panels[1, column], "memory", "MiB")):
                for growth in found:
                    if growth.piece == piece:
                        plot(panel, growth, growth.seconds if name == "time" else growth.mebibytes)
                panel.set_yscale("log", base=2)
                panel.yaxis.set_major_formatter("{x:.3g}")
                panel.set(xscale="log", xlabel="times the smallest size", ylabel=f"{name} ({unit})")
                panel.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"], minor=False)
                panel.minorticks_off()
                panel.grid(alpha=0.3)
                panel.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def plot(panel: Axes, growth: Growth, values: list[float]) -> None:
    """Draw one line, named by its variable, its range and its power."""
    first, last = growth.sizes[0], growth.sizes[-1]
    label = f"{growth.variable} {first:,} to {last:,}: power {fitted_power(growth.sizes, values):.2f}"
    panel.plot([size / first for size in growth.sizes], values, marker="o", markersize=3, label=label)


if __name__ == "__main__":
    main()
