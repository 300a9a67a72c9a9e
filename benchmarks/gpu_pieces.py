"""What surrounds a training step on a GPU: making views there, and k-means.

    python benchmarks/gpu_pieces.py [--batch 128] [--side 224] [--rows 200000] [--dim 2048] [--rounds 5]

Views of each task are made from uint8 windows that lie on the device, and should take little beside the step of
ResNet-50, in bfloat16, that they are for. k-means is compared with the textbook loop in torch, by matrix products, from
centres that are rows drawn at random, with at least as many iterations; the features are made up, 600 overlapping
classes. Needs what `gpu_step.py` needs, and 8 GB of the device's memory. Without a GPU its rows are skipped; `--device
cpu --batch 16 --side 64 --steps 1 --rounds 1 --rows 2000 --dim 64` only shows that it works.
"""

import argparse
from collections.abc import Callable

import torch
from common import interleaved_seconds, print_machine, print_rows, row, skipped
from gpu_step import build_tasks, step_options
from stage_step import Scene, build_stage, made_up_batch, make_views, repeated, training_step
from torch import Tensor

from rayssl.backbones import ResNetConfig
from rayssl.clustering import kmeans
from rayssl.data.loaders import Batch
from rayssl.tasks import PretextTask

KMEANS_ITERATIONS = 25
CLUSTERS = 300
VIEWS_TARGET = 0.1
"""Most time of making views, in steps."""


def main() -> None:
    """Measure, print tables and the rows."""
    options = parse_options()
    print_machine("torchvision")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        names = ("views on the device", "k-means on the device")
        print_rows([skipped(f"gpu_pieces {name}", "torch finds no CUDA device here") for name in names])
        return
    scene = Scene(device, options.side, options.batch, "bf16", steps=options.steps)
    rows = compare_views(scene, rounds=options.rounds)
    rows += compare_kmeans(device, options.rows, options.dim, rounds=options.rounds)
    print()
    print_rows(rows)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = step_options(__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="of the features that are clustered")
    parser.add_argument("--dim", type=int, default=2048, help="their dimensions")
    return parser.parse_args()


def compare_views(scene: Scene, *, rounds: int) -> list[dict[str, object]]:
    """How long each task takes to make a batch's views on the device, beside the step that they are for."""
    rows = []
    window = round(scene.side * 2**0.5)
    print("views, made on the device from uint8 windows")
    for name, task in build_tasks(scene).items():
        batch = made_up_batch(scene, window=window)
        stage = build_stage(ResNetConfig(depth=50).build(), (1, 2, 3, 4, 5), task, scene.device, scene.side)
        contestants = {
            "views": repeated(maker_of_views(task, batch), scene.steps),
            "step": repeated(training_step(stage, make_views(task, scene), scene), scene.steps),
        }
        seconds = interleaved_seconds(contestants, rounds=rounds)
        each = {key: value / scene.steps for key, value in seconds.items()}
        rate = scene.batch / each["views"]
        share = each["views"] / each["step"]
        print(f"  {name:10} {1000 * each['views']:9.1f} ms {rate:9.0f} images/s, {share:.1%} of a step")
        rows.append(
            row(
                f"gpu_pieces {name}: views on the device (peer: the ResNet-50 step that they are for)",
                ours=each["views"],
                peer=each["step"],
                unit="s",
                ratio=share,
                target=VIEWS_TARGET,
                at_most=True,
                spread=seconds.spread("views", "step"),
            )
        )
    print(flush=True)
    return rows


def maker_of_views(task: PretextTask, batch: Batch) -> Callable[[], None]:
    """A function that makes the views of a batch as the loop does; later calls draw other numbers."""

    def make() -> None:
        task.make_views(batch).inputs.contiguous(memory_format=torch.channels_last)

    return make


def compare_kmeans(device: torch.device, num_rows: int, dim: int, *, rounds: int) -> list[dict[str, object]]:
    """Our k-means on the device against the textbook loop there,."""
    generator = torch.Generator(device).manual_seed(0)
    centers = torch.randn(2 * CLUSTERS, dim, device=device, generator=generator)
    classes = torch.randint(len(centers), (num_rows,), device=device, generator=generator)
    features = centers[classes].add_(torch.randn(num_rows, dim, device=device, generator=generator), alpha=2)
    inertias: dict[str, float] = {}

    def run_ours() -> None:
        result = kmeans(features, CLUSTERS, max_iterations=KMEANS_ITERATIONS, tolerance=0)
        inertias["ours"] = result.inertia

    def run_plain() -> None:
        inertias["plain"] = plain_kmeans(features, CLUSTERS, iterations=KMEANS_ITERATIONS)

    seconds = interleaved_seconds({"ours": run_ours, "plain": run_plain}, rounds=min(rounds, 3))
    for name, value in seconds.items():
        print(f"k-means {num_rows} x {dim}, k={CLUSTERS}: {name:6} {value:7.3f} s, inertia {inertias[name]:.6g}")
    title = f"gpu_pieces k-means {num_rows} x {dim}, k={CLUSTERS}, against the textbook loop in torch"
    return [
        row(
            title,
            ours=seconds["ours"],
            peer=seconds["plain"],
            unit="s",
            ratio=seconds["plain"] / seconds["ours"],
            target=1.0,
            spread=seconds.spread("plain", "ours"),
        ),
        row(
            f"{title}: inertia",
            ours=inertias["ours"],
            peer=inertias["plain"],
            unit="squared distance",
            ratio=inertias["ours"] / inertias["plain"],
            target=1.0,
            at_most=True,
        ),
    ]


def plain_kmeans(features: Tensor, num_clusters: int, *, iterations: int) -> float:
    """Lloyd's algorithm from rows drawn at random, by matrix products; the inertia of the last centres.

    A cluster that loses all its rows keeps its centre.
    """
    generator = torch.Generator().manual_seed(0)
    centers = features[torch.randperm(len(features), generator=generator)[:num_clusters].to(features.device)]
    for _ in range(iterations):
        labels, _ = _nearest(features, centers)
        sums = torch.zeros_like(centers).index_add_(0, labels, features)
        counts = labels.bincount(minlength=num_clusters)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return float(_nearest(features, centers)[1].double().sum())


def _nearest(features: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's nearest centre and its squared distance, (N,) each."""
    parts = []
    for part in features.split(16_384):
        scores = centers.square().sum(1) - 2 * (part @ centers.T)
        least, labels = scores.min(1)
        parts.append((labels, least + part.square().sum(1)))
    labels, distances = zip(*parts, strict=True)
    return torch.cat(labels), torch.cat(distances)


if __name__ == "__main__":
    main()
