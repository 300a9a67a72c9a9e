"""Training steps on a GPU: every task and PSL stage with ResNet-50 and RevNet-50, beside lightly's step.

    python benchmarks/gpu_step.py [--batch 128] [--side 224] [--rounds 5] [--steps 10] [--device cuda]

Steps in bfloat16 with pictures that lie on the device; for each stage images a second, MFU (FLOPs of the network as
plain autograd runs it, by torch's counter, against the card's dense bfloat16 peak) and the peak of what a step
allocates. SimCLR's step is compared with the one that lightly's documentation writes, in float32 and channels first,
and with the same loop in bfloat16 and channels last. Without lightly installed the peer is the same loop from torch
and torchvision alone, and says so. Both must do equal work: parameters to within .1 %, and a first loss near the log of
the 2N - 1 candidates. Views are made for both beforehand: `gpu_pieces.py` measures how we make them.

Last, `train_stage` itself on decoded pictures in the host's memory, which it reads, copies and makes views of, beside
the step alone, and beside views and step of one batch that lies on the device already: what the loop takes longer than
these is the way of the data.

Needs torch, torchvision, numpy, Pillow, opencv-python-headless, pydantic and pyyaml, and about 1 GB of the host's
memory; no Ray, MLflow or lightly. Some minutes. Without a GPU its rows are skipped; `--device cpu --batch 16 --side 64
--steps 1 --rounds 1` only shows that it works, in some minutes too.
"""

import argparse
import importlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from common import installed_version, interleaved_seconds, print_machine, print_rows, row, skipped
from stage_step import (
    Measured,
    Scene,
    build_stage,
    compare_stages,
    made_up_batch,
    make_views,
    measure_stages,
    peak_tflops,
    print_stages,
    repeated,
    training_step,
)
from torch import Tensor, nn
from torch.nn import functional

from rayssl.backbones import AnyBackbone, ResNetConfig, RevNetConfig
from rayssl.data.cache import CachedPictures
from rayssl.data.loaders import TrainLoader
from rayssl.runtime import LocalRuntime
from rayssl.tasks import (
    JigsawConfig,
    MoCoConfig,
    PretextTask,
    RotationConfig,
    RotationLevel,
    SimCLRConfig,
    TaskSetting,
)
from rayssl.tasks.augmented_views import AugmentationLevel
from rayssl.tasks.jigsaw import JigsawLevel
from rayssl.training.loop import StageSchedule, train_stage
from rayssl.training.optimizers import SGDConfig
from rayssl.training.stage import Stage

LEVEL = AugmentationLevel(color_strength=1.0, gray=0.2, blur=0.5)
"""SimCLR's augmentation."""
WHOLE_NETWORK = (1, 2, 3, 4, 5)
TEMPERATURE = 0.5
"""Of lightly's loss."""
TURNS_AN_EPOCH = 5
"""An epoch of the whole loop has so many turns' steps: its start, when nothing was fetched ahead, is a part of it."""
WAY_OF_THE_DATA = 1.05
"""Most time of the whole loop, in that of making views on the device and the step."""
LOOP_TARGET = 1.15
"""Most time of the whole loop, in steps: the way of the data, and a tenth for making views (`gpu_pieces.py`)."""


def main() -> None:
    """Measure, print tables and the rows."""
    options = parse_options()
    print_machine("torchvision", "lightly")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        names = ("steps of all tasks and stages", "SimCLR against lightly's step", "the whole loop against its step")
        print_rows([skipped(f"gpu_step {name}", "torch finds no CUDA device here") for name in names])
        return
    scene = Scene(device, options.side, options.batch, "bf16", steps=options.steps)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(
        f"{card}, {options.side} px, batch {options.batch}, bfloat16; peak: {peak_tflops(card) or 'unknown'} TFLOPS\n"
    )
    # As they come: a rented GPU may be taken back before the last one.
    for name, measured in measure_all(scene, rounds=options.rounds):
        print_stages(name, measured, scene)
        print_rows(compare_stages(f"gpu_step {name}", measured))
    print_rows(compare_with_lightly(scene, rounds=options.rounds))
    print_rows(compare_loop_with_step(scene, rounds=options.rounds))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    return step_options(__doc__).parse_args()


def step_options(description: str | None) -> argparse.ArgumentParser:
    """What the programs that time steps on a GPU can be told."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="pictures a step")
    parser.add_argument("--side", type=int, default=224, help="of the views, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each contestant")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    return parser


def build_tasks(scene: Scene) -> dict[str, PretextTask]:
    """The four tasks at one level each, the same for all stages, so that only the stage differs."""
    setting = TaskSetting(scene.side, scene.batch)
    queue_size = 65_536 // scene.batch * scene.batch
    return {
        "SimCLR": SimCLRConfig().build(LEVEL, setting),
        "jigsaw": JigsawConfig().build(JigsawLevel(num_permutations=500), setting),
        "rotation": RotationConfig(copies="one").build(RotationLevel(angles=4), setting),
        "MoCo": MoCoConfig(queue_size=queue_size).build(LEVEL, setting),
    }


def measure_all(scene: Scene, *, rounds: int) -> Iterator[tuple[str, dict[str, Measured]]]:
    """Measure all stages of every backbone and task, one pair after another, since each holds four networks."""
    revnet = RevNetConfig(depth=50)
    backbones: dict[str, tuple[AnyBackbone, AnyBackbone | None]] = {
        "ResNet-50": (ResNetConfig(depth=50), None),
        "RevNet-50": (revnet, revnet.model_copy(update={"reversible": False})),
    }
    for name, (backbone, plain) in backbones.items():
        for task_name, task in build_tasks(scene).items():
            measured = measure_stages(backbone, task, scene, rounds=rounds, plain=plain)
            yield f"{name} {task_name}", measured


class Lightly(nn.Module):
    """The SimCLR of lightly's documentation, with ResNet-50: two passes, a view each, and NT-Xent.

    Args:
        head: From pooled features, 2048, to projections.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet50().children())[:-1])
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Projections, (N, 128)."""
        projections: Tensor = self.head(self.backbone(images).flatten(start_dim=1))
        return projections


def lightly_parts() -> tuple[str, nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Name, head and loss: lightly's own where it is installed, else the same from torch alone."""
    if installed_version("lightly"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of lightly's own imports
            modules, losses = (importlib.import_module(f"lightly.{name}") for name in ("models.modules", "loss"))
        return "lightly's step", modules.SimCLRProjectionHead(2048, 2048, 128), losses.NTXentLoss()
    head = nn.Sequential(
        nn.Linear(2048, 2048, bias=False),
        nn.BatchNorm1d(2048),
        nn.ReLU(),
        nn.Linear(2048, 128, bias=False),
        nn.BatchNorm1d(128),
    )
    return "a torch loop written as lightly's documentation", head, plain_nt_xent


def plain_nt_xent(view_a: Tensor, view_b: Tensor, *, temperature: float = 0.5) -> Tensor:
    """NT-Xent as a few lines of torch: (N, D) each, the mean over 2N anchors, in nats."""
    views = functional.normalize(torch.cat([view_a, view_b]), dim=1)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(views), device=views.device).roll(len(view_a)))


def lightly_step(view_a: Tensor, view_b: Tensor, *, lowered: bool) -> Callable[[], Tensor]:
    """A function that makes one step of lightly's loop on two batches of views, and gives the loss.

    Args:
        view_a: Normalised float views, (N, 3, S, S).
        view_b: The other views of the same pictures.
        lowered: False: float32 and channels first, as documented; True: bfloat16 by autocast, and channels last.
    """
    _, head, criterion = lightly_parts()
    device = view_a.device
    layout = torch.channels_last if lowered else torch.contiguous_format
    model = Lightly(head).to(device).to(memory_format=layout)
    view_a, view_b = (view.contiguous(memory_format=layout) for view in (view_a, view_b))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=lowered):
            z0 = model(view_a)
            z1 = model(view_b)
            loss = criterion(z0, z1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def compare_with_lightly(scene: Scene, *, rounds: int) -> list[dict[str, object]]:
    """Our SimCLR step against lightly's, on the same views."""
    name, head, _ = lightly_parts()
    task = SimCLRConfig(temperature=TEMPERATURE).build(LEVEL, TaskSetting(scene.side, scene.batch))
    views = make_views(task, scene)
    view_a, view_b = views.inputs.chunk(2)
    stage = build_stage(ResNetConfig(depth=50).build(), WHOLE_NETWORK, task, scene.device, scene.side)
    check_equal_size(stage, Lightly(head))
    steps = {
        "ours": training_step(stage, views, scene),
        "as documented, fp32": lightly_step(view_a, view_b, lowered=False),
        "in bf16, channels last": lightly_step(view_a, view_b, lowered=True),
    }
    check_equal_start({key: float(step()) for key, step in steps.items()}, batch=scene.batch)
    seconds = interleaved_seconds({key: repeated(step, scene.steps) for key, step in steps.items()}, rounds=rounds)
    each = {key: value / scene.steps for key, value in seconds.items()}
    print(f"SimCLR, ResNet-50, beside {name}")
    for key, value in each.items():
        print(f"  {key:24} {1000 * value:9.1f} ms {scene.batch / value:9.0f} images/s")
    print(flush=True)
    return [
        row(
            f"gpu_step SimCLR ResNet-50 {scene.side} px, ours in bf16 against {name}, {key}",
            ours=each["ours"],
            peer=each[key],
            unit="s",
            ratio=each[key] / each["ours"],
            target=target,
            spread=seconds.spread(key, "ours"),
        )
        for key, target in (("as documented, fp32", 2.0), ("in bf16, channels last", 1.0))
    ]


def check_equal_size(ours: nn.Module, theirs: nn.Module) -> None:
    """Refuse to compare networks of different size; lightly's has a BatchNorm in place of the last layer's bias.

    Raises:
        RuntimeError: If their parameters differ by more than .1 %.
    """
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (ours, theirs)]
    if abs(counts[0] / counts[1] - 1) > 1e-3:
        raise RuntimeError(f"both networks must have as many parameters, got {counts[0]:,} and {counts[1]:,}")


def check_equal_start(losses: dict[str, float], *, batch: int) -> None:
    """Refuse to compare steps that don't begin alike.

    Raises:
        RuntimeError: If a first loss is further than a tenth from log(2N - 1), that of a network that tells nothing.
    """
    chance = math.log(2 * batch - 1)
    for name, loss in losses.items():
        if not abs(loss / chance - 1) <= 0.1:  # nor if it is not a number
            raise RuntimeError(f"{name}: must start near a loss of {chance:.2f}, got {loss:.3f}")


def compare_loop_with_step(scene: Scene, *, rounds: int) -> list[dict[str, object]]:
    """SimCLR's loop, from decoded pictures to weights, against its step, and against views and step on the device."""
    task = build_tasks(scene)["SimCLR"]
    window = round(scene.side * 256 / 224)
    num_steps = TURNS_AN_EPOCH * scene.steps
    stages = [
        build_stage(ResNetConfig(depth=50).build(), WHOLE_NETWORK, task, scene.device, scene.side) for _ in range(3)
    ]
    batch = made_up_batch(scene, window=window)
    step_alone = training_step(stages[1], make_views(task, scene), scene)

    optimizer = SGDConfig().build(stages[2])

    def views_and_step() -> None:
        made = task.make_views(batch)
        inputs = made.inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(scene.device.type, torch.bfloat16, enabled=scene.precision == "bf16"):
            outcome = stages[2](inputs, made.targets)
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        epochs = train_epochs(stages[0], scene, Path(folder), window=window, epochs=rounds + 1, num_steps=num_steps)
        contestants = {
            "the whole loop": lambda: next(epochs),
            "views and step": repeated(views_and_step, num_steps),
            "step alone": repeated(step_alone, num_steps),
        }
        seconds = interleaved_seconds(contestants, rounds=rounds)
    each = {key: value / num_steps for key, value in seconds.items()}
    print(f"SimCLR, ResNet-50, epochs of {num_steps} steps on decoded pictures of {window} px")
    for key, value in each.items():
        print(f"  {key:24} {1000 * value:9.1f} ms {scene.batch / value:9.0f} images/s")
    print(flush=True)
    return [
        row(
            f"gpu_step SimCLR ResNet-50 {scene.side} px, train_stage on decoded pictures (peer: {peer})",
            ours=each["the whole loop"],
            peer=each[key],
            unit="s",
            ratio=each["the whole loop"] / each[key],
            target=target,
            at_most=True,
        )
        for key, peer, target in (
            ("views and step", "views and step of a batch on the device", WAY_OF_THE_DATA),
            ("step alone", "its step alone", LOOP_TARGET),
        )
    ]


def train_epochs(
    stage: Stage, scene: Scene, folder: Path, *, window: int, epochs: int, num_steps: int
) -> Iterator[dict[str, float]]:
    """The package's loop over pictures of noise that lie decoded in memory, as a run opens them."""
    generator = np.random.default_rng(0)
    count = max(scene.batch, min(2048, num_steps * scene.batch))
    pictures = CachedPictures(
        generator.integers(256, size=count * window * window * 3, dtype=np.uint8),
        np.full((count, 2), window),
        np.full(count, -1),
        classes=(),
        numbers=np.arange(count),
        bad_files=[],
        fingerprint="",
    )
    loader = TrainLoader(
        pictures,
        images_per_step=scene.batch,
        seed=0,
        order=lambda epoch: np.random.default_rng(epoch).integers(count, size=(num_steps, scene.batch)),
    )
    settings = SGDConfig()
    schedule = StageSchedule(0, 1, epochs, epochs_before=0, epochs_run=epochs, scope="stage")
    return train_stage(
        stage,
        loader,
        LocalRuntime(folder, use_gpu=scene.device.type == "cuda"),
        settings.build(stage),
        settings=settings,
        schedule=schedule,
        precision=scene.precision,
    )


if __name__ == "__main__":
    main()
