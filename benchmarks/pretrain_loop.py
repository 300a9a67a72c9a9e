"""SimCLR's whole training loop, ours against the one of lightly's documentation: ResNet-18, 64 px, batch 128.

    python benchmarks/pretrain_loop.py [--images 768] [--rounds 3] [--threads 2]

The pictures lie decoded in memory (uint8, made up); all that follows is timed, an epoch a turn: views, forward, loss,
backward, optimiser. Both train torchvision's ResNet-18 with lightly's settings: its SimCLRTransform, temperature .5,
SGD with .06 and nothing else. lightly's loop is written as its documentation has it, in float32; its views are made by
the training process or by as many loader processes as there are threads, and the faster way counts. Ours is
`train_stage` on a recipe, in float32 and in bfloat16. Both are compared with lightly's float32, since that is what its
example does: the second ratio is what a recipe's `training.precision: bf16` brings beside everything else.

The two must do equal work: as many steps and pictures, an encoder of the same parameters, and a first loss near the
log of the 2N - 1 candidates. About 3 minutes on 2 cores; needs lightly, else its rows are skipped.
"""

import argparse
import importlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torchvision
from common import Timings, installed_version, interleaved_seconds, print_machine, print_rows, row, skipped
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rayssl.backbones import lay_out
from rayssl.config import load_config
from rayssl.experiment import initial_encoder, local_runtime
from rayssl.open_data import open_data
from rayssl.training.loop import train_stage

SIDE = 64
TARGETS = {"fp32": 1.5, "bf16": 2.4}

_RECIPE = """
name: pretrain-loop
data: {{name: npz, file: {file}, image_size: {side}, validation_fraction: 0}}
backbone: {{name: resnet, depth: 18}}
method:
  name: psl
  task: {{name: simclr, temperature: 0.5, projection_dim: 128}}
  stages: [{{blocks: [1, 2, 3, 4, 5], epochs: {epochs}, level: {{color_strength: 1, gray: 0.2, blur: 0.5}}}}]
optimizer: {{name: sgd, learning_rate: 0.06, momentum: 0, weight_decay: 0, schedule: {{name: constant}}}}
training: {{batch_size: {batch}, precision: {precision}}}
cluster: {{workers: 0, cpus_per_worker: {threads}}}
"""


@dataclass
class Contestant:
    """A loop, an epoch at a time, and what it did."""

    epoch: Callable[[], float]
    """Trains an epoch and gives its mean loss."""
    steps: int
    """Of an epoch."""
    encoder_parameters: int
    head_parameters: int
    losses: list[float] = field(default_factory=list)
    """Of each epoch so far."""

    def run(self) -> None:
        """Train an epoch and keep its loss."""
        self.losses.append(self.epoch())


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print_machine("torchvision", "lightly")
    print(f"an epoch: {options.images} pictures of {SIDE} px in batches of {options.batch}\n")
    images = np.random.default_rng(0).integers(0, 256, (options.images, SIDE, SIDE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "pictures.npz", images=images)
        contestants = {f"ours, {precision}": build_ours(Path(folder), precision, options) for precision in TARGETS}
        if installed_version("lightly"):
            for workers in (0, options.threads):
                contestants[f"lightly, {workers} loaders"] = build_lightly(images, workers, options)
        seconds = interleaved_seconds({name: each.run for name, each in contestants.items()}, rounds=options.rounds)
    for name, each in contestants.items():
        rate = each.steps * options.batch / seconds[name]
        print(
            f"{name:18} {seconds[name]:7.2f} s {rate:7.0f} images/s   {each.steps} steps   loss {each.losses[0]:.3f} "
            f"to {each.losses[-1]:.3f}   parameters {each.encoder_parameters:,} + {each.head_parameters:,}"
        )
    check_equal_work(contestants, batch=options.batch)
    print()
    print_rows(compare(seconds))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=768, help="pictures an epoch")
    parser.add_argument("--batch", type=int, default=128, help="pictures a step")
    parser.add_argument("--rounds", type=int, default=3, help="timed epochs of each")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def build_ours(folder: Path, precision: str, options: argparse.Namespace) -> Contestant:
    """Our loop, from a recipe to the generator of epochs, as `run_experiment` builds it."""
    recipe = folder / f"{precision}.yaml"
    recipe.write_text(
        _RECIPE.format(
            file=folder / "pictures.npz",
            side=SIDE,
            epochs=options.rounds + 1,
            batch=options.batch,
            precision=precision,
            threads=options.threads,
        )
    )
    config = load_config(recipe)
    runtime = local_runtime(config, folder / precision)
    pictures = open_data(config, runtime.folder).train
    encoder = initial_encoder(config)
    lay_out(encoder, config.data.image_size)
    method = config.method.build(encoder, config.task_setting(), seed=config.seed)
    plan = method.prepare(0, pictures, runtime, optimizer=config.optimizer)
    epochs: Iterator[dict[str, float]] = train_stage(
        plan.stage,
        plan.loader,
        runtime,
        plan.optimizer.build(plan.stage),
        settings=plan.optimizer,
        schedule=method.schedule(0),
        precision=config.training.precision,
    )
    return Contestant(
        lambda: next(epochs)["loss"],
        plan.loader.num_steps,
        count_parameters(method.encoder),
        count_parameters(plan.stage.head),
    )


class PictureSet(Dataset):
    """Pictures in memory, as torchvision's CIFAR10 gives them: through PIL and a transform, with a label."""

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], object]) -> None:
        self._images = images
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self._transform(Image.fromarray(self._images[index])), 0


def build_lightly(images: np.ndarray, workers: int, options: argparse.Namespace) -> Contestant:
    """The SimCLR of lightly's documentation in plain PyTorch (docs.lightly.ai/examples/simclr.html), at our sizes.

    Loader processes stay alive from epoch to epoch, unlike there, where a long epoch hides their start.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lightly's own imports
        transforms, modules = (importlib.import_module(f"lightly.{name}") for name in ("transforms", "models.modules"))
        criterion = importlib.import_module("lightly.loss").NTXentLoss()
    torch.manual_seed(0)
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    head = modules.SimCLRProjectionHead(512, 512, 128)
    loader: DataLoader = DataLoader(
        PictureSet(images, transforms.SimCLRTransform(input_size=SIDE)),
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06)

    def epoch() -> float:
        total = torch.zeros(())
        for (x0, x1), _ in loader:
            z0 = head(backbone(x0).flatten(start_dim=1))
            z1 = head(backbone(x1).flatten(start_dim=1))
            loss = criterion(z0, z1)
            total += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(total / len(loader))

    return Contestant(epoch, len(loader), count_parameters(backbone), count_parameters(head))


def count_parameters(module: nn.Module) -> int:
    """Numbers that training moves."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_equal_work(contestants: dict[str, Contestant], *, batch: int) -> None:
    """Refuse a comparison of different work.

    The heads differ by lightly's BatchNorm behind the last layer, in place of its bias: by less than .1 %.

    Raises:
        RuntimeError: If steps or parameters differ, a loss is not finite, or an epoch's mean loss is further than a
            tenth from log(2N - 1), the loss of a network that tells nothing.
    """
    first = next(iter(contestants.values()))
    chance = math.log(2 * batch - 1)
    for name, each in contestants.items():
        if (each.steps, each.encoder_parameters) != (first.steps, first.encoder_parameters):
            raise RuntimeError(f"{name}: must make as many steps with as many parameters as the others")
        if abs(each.head_parameters / first.head_parameters - 1) > 1e-3:
            raise RuntimeError(f"{name}: must have a head of the others' size, got {each.head_parameters}")
        if not all(math.isfinite(loss) for loss in each.losses) or abs(each.losses[0] / chance - 1) > 0.1:
            raise RuntimeError(f"{name}: must start near a loss of {chance:.2f} and stay finite, got {each.losses}")


def compare(seconds: Timings) -> list[dict[str, object]]:
    """Give the rows: our two precisions against lightly's float32."""
    peers = [name for name in seconds if name.startswith("lightly")]
    rows = []
    for precision, target in TARGETS.items():
        benchmark = f"pretrain_loop SimCLR ResNet-18 64 px, ours in {precision}, lightly in fp32"
        if not peers:
            rows.append(skipped(benchmark, "lightly is not installed"))
            continue
        ours, peer = f"ours, {precision}", min(peers, key=seconds.__getitem__)
        rows.append(
            row(
                benchmark,
                ours=seconds[ours],
                peer=seconds[peer],
                unit="s an epoch",
                ratio=seconds[peer] / seconds[ours],
                target=target,
                spread=seconds.spread(peer, ours),
            )
        )
    return rows


if __name__ == "__main__":
    main()
