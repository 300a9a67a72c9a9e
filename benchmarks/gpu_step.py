"""Training steps on a GPU: every task and PSL stage with ResNet-50 and RevNet-50, beside lightly's step.

    python benchmarks/gpu_step.py [--batch 128] [--side 224] [--rounds 5] [--steps 10] [--device cuda]

Steps in bfloat16 with pictures that lie on the device; for each stage images a second, MFU (FLOPs of the network as
plain autograd runs it, by torch's counter, against the card's dense bfloat16 peak) and the peak of what a step
allocates. SimCLR's step is compared with the one that lightly's documentation writes, in float32 and channels first,
and with the same loop in bfloat16 and channels last. Without lightly installed the peer is the same loop from torch
and torchvision alone, and says so. Views are made for both beforehand: `gpu_pieces.py` measures how we make them.

Needs torch, torchvision and this package's science alone: no Ray, MLflow or lightly. Some minutes. Without a GPU its
rows are skipped; `--device cpu --batch 16 --side 64 --steps 1` only shows that it works.
"""

import argparse
import importlib
import warnings
from collections.abc import Callable, Iterator

import torch
import torchvision
from common import installed_version, interleaved_seconds, print_machine, print_rows, row, skipped
from stage_step import (
    Measured,
    Scene,
    build_stage,
    compare_stages,
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

LEVEL = AugmentationLevel(color_strength=1.0, gray=0.2, blur=0.5)
"""SimCLR's augmentation."""


def main() -> None:
    """Measure, print tables and the rows."""
    options = parse_options()
    print_machine("torchvision", "lightly")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        names = ("steps of all tasks and stages", "SimCLR against lightly's step")
        print_rows([skipped(f"gpu_step {name}", "torch finds no CUDA device here") for name in names])
        return
    scene = Scene(device, options.side, options.batch, "bf16", steps=options.steps)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(
        f"{card}, {options.side} px, batch {options.batch}, bfloat16; peak: {peak_tflops(card) or 'unknown'} TFLOPS\n"
    )
    rows = []
    for name, measured in measure_all(scene, rounds=options.rounds):
        print_stages(name, measured, scene)
        rows += compare_stages(f"gpu_step {name}", measured)
    rows += compare_with_lightly(scene, rounds=options.rounds)
    print_rows(rows)


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
    parser.add_argument("--device", default="cuda")
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
    name, _, _ = lightly_parts()
    task = build_tasks(scene)["SimCLR"]
    views = make_views(task, scene)
    view_a, view_b = views.inputs.chunk(2)
    stage = build_stage(ResNetConfig(depth=50).build(), (1, 2, 3, 4, 5), task, scene.device, scene.side)
    steps = {
        "ours": training_step(stage, views, scene),
        "as documented, fp32": lightly_step(view_a, view_b, lowered=False),
        "in bf16, channels last": lightly_step(view_a, view_b, lowered=True),
    }
    for contestant, step in steps.items():
        if not step().isfinite():
            raise RuntimeError(f"{contestant}: the loss must be finite")
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


if __name__ == "__main__":
    main()
