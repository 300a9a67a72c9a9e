"""What an online measurement costs beside the training: psl-rotation-small, stage by stage.

    python benchmarks/online_cost.py [--rounds 3] [--steps 20] [--threads 1]

The recipe as it ships (network, batches, probe and kNN), on as many made-up pictures as it takes from CIFAR-10, whose
ten classes differ in their colours. In each stage some steps of training and one whole measurement take turns; an epoch
takes the time of those steps as often as it has more of them. The recipe measures every second epoch and at a stage's
end, which the last row counts. Workers share steps and measurements alike, so that one process with a worker's threads
shows what share of an epoch a measurement is. Seconds are CPU seconds. A measurement must give all of its numbers and
tell the classes better than by chance, and the loss of the steps must be finite. About 4 minutes on 2 cores.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import Timings, interleaved_seconds, print_machine, print_rows, row

from rayssl.backbones import lay_out
from rayssl.config import ExperimentConfig, load_config
from rayssl.data import Pictures
from rayssl.data.loaders import TrainLoader
from rayssl.evaluation import OnlineEvaluation
from rayssl.experiment import initial_encoder, local_runtime
from rayssl.methods import Method
from rayssl.open_data import OpenPictures, open_data
from rayssl.runtime import Runtime
from rayssl.training.loop import train_stage

RECIPE = "psl-rotation-small"
TARGET = 0.05
"""Most that a measurement may take, in epochs."""
CLASSES = 10


@dataclass(frozen=True)
class Cost:
    """What a stage's parts take."""

    stage: str
    seconds: Timings
    """Of "steps", some of them, and of a "measurement"."""
    part: float
    """Share of an epoch that those steps are."""
    epochs: int
    """Of the stage."""
    measurements: int
    """That the recipe makes in it."""

    def share(self, seconds: Mapping[str, float]) -> float:
        """A measurement in epochs, by the seconds of a round."""
        return seconds["measurement"] / self.epoch(seconds)

    def epoch(self, seconds: Mapping[str, float]) -> float:
        """Seconds of an epoch's training."""
        return seconds["steps"] / self.part


def main() -> None:
    """Measure, print a line a stage and the rows."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), options)
        runtime = local_runtime(config, Path(folder))
        pictures = open_data(config, runtime.folder)
        print(f"{config.name}: {len(pictures.train):,} pictures, {config.online.images:,} for a measurement\n")
        encoder = initial_encoder(config)
        lay_out(encoder, config.data.image_size)
        method = config.method.build(encoder, config.task_setting(pictures.train.classes), seed=config.seed)
        costs = [measure_stage(config, method, index, pictures, runtime, options) for index in range(method.num_stages)]
    for cost in costs:
        print(
            f"{cost.stage}: an epoch {cost.epoch(cost.seconds):7.1f} s, a measurement "
            f"{cost.seconds['measurement']:6.2f} s, {cost.share(cost.seconds):.1%}"
        )
    print()
    print_rows(compare(costs))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a turn")
    parser.add_argument("--threads", type=int, default=1, help="of the process; the recipe gives a worker one")
    return parser.parse_args()


def make_config(folder: Path, options: argparse.Namespace) -> ExperimentConfig:
    """The recipe on made-up pictures, in this process."""
    limit = load_config(RECIPE).data.limit
    assert limit is not None
    images, labels = made_up_pictures(limit, side=32)
    np.savez(folder / "pictures.npz", images=images, labels=labels)
    data = ["data.name=npz", f"data.file={folder / 'pictures.npz'}"]
    return load_config(RECIPE, [*data, "cluster.workers=0", f"cluster.cpus_per_worker={options.threads}"])


def made_up_pictures(count: int, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise around the colour of each one's class: uint8 (count, side, side, 3), and labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    colours = generator.integers(64, 192, (CLASSES, 3))
    noise = generator.integers(-48, 48, (count, side, side, 3))
    return (colours[labels][:, None, None] + noise).astype(np.uint8), labels


def measure_stage(
    config: ExperimentConfig,
    method: Method,
    index: int,
    pictures: OpenPictures,
    runtime: Runtime,
    options: argparse.Namespace,
) -> Cost:
    """Let steps of a stage and measurements take turns.

    Raises:
        RuntimeError: If the measurement lacks a number or tells nothing, or the loss is not finite.
    """
    plan = method.prepare(index, pictures.train, runtime, optimizer=config.optimizer)
    loader = short_loader(pictures.train, plan.loader.images_per_step, options.steps, seed=config.seed)
    epochs = train_stage(
        plan.stage,
        loader,
        runtime,
        plan.optimizer.build(plan.stage),
        settings=plan.optimizer,
        schedule=replace(method.schedule(index), epochs=options.rounds + 1),
        precision=config.training.precision,
    )
    online = OnlineEvaluation(
        config.online, pictures.train, pictures.validation, data=config.data, seed=config.seed, runtime=runtime
    )
    found: dict[str, float] = {}

    def train() -> None:
        found.update(next(epochs))

    def measure() -> None:
        found.update(online.measure(method.encoder, plan.stage.last_block))

    contestants = {"steps": train, "measurement": measure}
    seconds = interleaved_seconds(contestants, rounds=options.rounds, clock=time.process_time)
    check_work(method.name_of(index), found)
    length, every = method.schedule(index).epochs, config.online.every
    measurements = len({*range(every, length + 1, every), length})
    return Cost(method.name_of(index), seconds, loader.num_steps / plan.loader.num_steps, length, measurements)


def short_loader(pictures: Pictures, images_per_step: int, num_steps: int, *, seed: int) -> TrainLoader:
    """The same few steps in every epoch."""
    rows = np.random.default_rng(seed).choice(len(pictures), (num_steps, images_per_step), replace=False)
    return TrainLoader(pictures, images_per_step=images_per_step, seed=seed, order=lambda epoch: rows)


def check_work(stage: str, found: Mapping[str, float]) -> None:
    """Refuse figures of work that was not done.

    Raises:
        RuntimeError: If a number is missing, the classes are not told, or the loss is not finite.
    """
    for name in ("probe/best/top1", "knn/k20/top1"):
        if found.get(name, 0.0) < 2 / CLASSES:
            raise RuntimeError(f"{stage}: {name} must be above chance, got {found.get(name)}")
    if not math.isfinite(found["loss"]):
        raise RuntimeError(f"{stage}: the loss must be finite, got {found['loss']}")


def compare(costs: list[Cost]) -> list[dict[str, object]]:
    """Give the rows: a measurement as a share of an epoch of its stage, and all of them as a share of the run's."""
    rows = [
        row(
            f"online_cost {RECIPE}, {cost.stage}: a measurement (peer: an epoch's training; ratio: its share)",
            ours=cost.seconds["measurement"],
            peer=cost.epoch(cost.seconds),
            unit="s",
            ratio=cost.share(cost.seconds),
            target=TARGET,
            at_most=True,
            spread=cost.seconds.spread_of(cost.share),
        )
        for cost in costs
    ]
    measuring = sum(cost.measurements * cost.seconds["measurement"] for cost in costs)
    training = sum(cost.epochs * cost.epoch(cost.seconds) for cost in costs)
    return [
        *rows,
        row(
            f"online_cost {RECIPE}, all measurements (peer: all epochs' training; ratio: their share)",
            ours=measuring,
            peer=training,
            unit="s",
            ratio=measuring / training,
            target=TARGET,
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    main()
