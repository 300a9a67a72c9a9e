"""A step of each PSL stage against the step that trains the whole network, and against the ratio of their FLOPs.

    python benchmarks/stage_step.py [--side 64] [--batch 64] [--rounds 5] [--threads 2]

ResNet-50 with rotations, channels_last, float32 on the CPU. Where there is a GPU, also 224 px in bfloat16 on it, with
images a second, model FLOPs utilisation (MFU) and peak memory. A step is the body of `train_stage`: forward, loss,
backward, optimiser. Views are the same work for every stage and stay out: they are made before. A stage that takes a
larger share of the time than of the FLOPs wastes time outside its convolutions. About 1.5 minutes on 2 cores.

`gpu_step.py` does the same for all tasks and backbones, with what this program defines.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from common import Timings, interleaved_seconds, print_machine, print_rows, row
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rayssl.backbones import AnyBackbone, Backbone, ResNetConfig, lay_out
from rayssl.data.augment import Draws
from rayssl.data.loaders import Batch
from rayssl.tasks import PretextTask, RotationConfig, RotationLevel, TaskSetting, Views
from rayssl.training.optimizers import SGDConfig
from rayssl.training.stage import Stage

WHOLE = "end to end"
STAGES: Mapping[str, tuple[int, ...]] = {
    "S1": (1, 2, 3),
    "S2": (2, 3, 4),
    "S3": (3, 4, 5),
    WHOLE: (1, 2, 3, 4, 5),
}
"""Blocks that each stage trains (PSL, section 3.2)."""

PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Part of a card's name -> dense bfloat16 TFLOPS, as NVIDIA's data sheets have them (half of what they give with
sparsity). The first part that the name contains as whole words counts."""


@dataclass(frozen=True)
class Scene:
    """What a step is made on."""

    device: torch.device
    side: int
    """Of a view, in pixels."""
    batch: int
    """Pictures a step."""
    precision: str
    """fp32 or bf16."""
    steps: int = 1
    """Steps that are timed at a time: several on a GPU, so that starting and waiting count for little."""


@dataclass(frozen=True)
class Measured:
    """What one step costs."""

    rounds: tuple[float, ...]
    """Seconds of a step, in each round."""
    flops: int
    """Of the network as plain autograd runs it, see `count_flops`."""
    peak_mebibytes: float | None
    """Most that is allocated during the step above what lay there before it; None on a CPU."""

    @property
    def seconds(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.rounds)


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print_machine()
    scenes = [Scene(torch.device("cpu"), options.side, options.batch, "fp32")]
    if torch.cuda.is_available():
        scenes.append(Scene(torch.device("cuda"), 224, 256, "bf16", steps=10))
    rows = []
    for scene in scenes:
        setting = TaskSetting(scene.side, scene.batch)
        task = RotationConfig(copies="one").build(RotationLevel(angles=4), setting)
        measured = measure_stages(ResNetConfig(depth=50), task, scene, rounds=options.rounds)
        name = f"stage_step ResNet-50, rotation, {scene.side} px, {scene.device.type} {scene.precision}"
        print_stages(f"{name}, batch {scene.batch}", measured, scene)
        rows += compare_stages(name, measured)
    print("speed.md's ratios of FLOPs: S1 0.438, S2 0.785, S3 0.863 (before the head)\n")
    print_rows(rows)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=64, help="of the views on the CPU, in pixels")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each stage")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def measure_stages(
    backbone: AnyBackbone, task: PretextTask, scene: Scene, *, rounds: int, plain: AnyBackbone | None = None
) -> dict[str, Measured]:
    """Time a step of each stage and of the whole network, in turns, each with weights of its own.

    Args:
        backbone: The network.
        task: The pretext task, the same for all, so that only the stage differs.
        scene: Device, sizes, precision.
        rounds: Timed turns of each.
        plain: The network whose FLOPs are the model's, if it is another one: a RevNet without its rerun.
    """
    views = make_views(task, scene)
    steps, flops, peaks = {}, {}, {}
    for name, blocks in STAGES.items():
        flops[name] = count_flops(plain or backbone, blocks, task, scene)
        torch.manual_seed(0)
        stage = build_stage(backbone.build(), blocks, task, scene.device, scene.side)
        steps[name] = training_step(stage, views, scene)
        peaks[name] = peak_mebibytes(steps[name], stage, scene.device)
    timings = interleaved_seconds({name: repeated(step, scene.steps) for name, step in steps.items()}, rounds=rounds)
    each = {name: tuple(value / scene.steps for value in values) for name, values in timings.rounds.items()}
    return {name: Measured(each[name], flops[name], peaks[name]) for name in STAGES}


def make_views(task: PretextTask, scene: Scene) -> Views:
    """A step's views of made-up pictures, on the device, in the memory format that the training loop gives them."""
    views = task.make_views(made_up_batch(scene))
    return Views(views.inputs.contiguous(memory_format=torch.channels_last), views.targets)


def made_up_batch(scene: Scene, *, window: int | None = None) -> Batch:
    """Noise as uint8 pictures on the device, (batch, 3, window, window); windows are as large as views if not given."""
    window = window or scene.side
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (scene.batch, window, window, 3), generator=generator, dtype=torch.uint8)
    return Batch(
        images.to(scene.device).permute(0, 3, 1, 2),
        Draws(0, 0, 0, batch_size=scene.batch),
        torch.arange(scene.batch),
        torch.full((scene.batch,), -1),
    )


def build_stage(backbone: Backbone, blocks: Sequence[int], task: PretextTask, device: torch.device, side: int) -> Stage:
    """The stage that trains these blocks, ready on the device, as `PSL.prepare` makes it."""
    for number, block in enumerate(backbone.blocks, start=1):
        block.requires_grad_(number in blocks)
    lay_out(backbone.to(device), side)
    stage = Stage(backbone, blocks, task).to(device)
    stage.head.to(memory_format=torch.channels_last)
    return stage.train()


def training_step(stage: nn.Module, views: Views, scene: Scene) -> Callable[[], Tensor]:
    """A function that does what `train_stage` does with one batch's views, and gives the loss.

    Args:
        stage: A `Stage`, or one that synchronises its gradients.
        views: The step's inputs and targets.
        scene: For the precision.
    """
    optimizer = SGDConfig().build(stage)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(scene.device.type, torch.bfloat16, enabled=scene.precision == "bf16"):
            outcome = stage(views.inputs, views.targets)
        outcome.loss.backward()
        optimizer.step()
        return outcome.loss.detach()

    return step


def repeated(step: Callable[[], object], count: int) -> Callable[[], None]:
    """A function that runs a step several times."""

    def run() -> None:
        for _ in range(count):
            step()

    return run


def count_flops(backbone: AnyBackbone, blocks: Sequence[int], task: PretextTask, scene: Scene) -> int:
    """Floating-point operations of a step's forward and backward pass, a multiplication and an addition being two.

    Counted by torch from the shapes of convolutions and matrix products of a step with 16 pictures, times the batch;
    similarities between all views of a batch, which grow faster, are less than a thousandth. The optimiser and what
    works element by element are left out, as is usual. The network must not rerun layers in its backward pass: torch
    can't count that.
    """
    few = replace(scene, batch=16)
    stage = build_stage(backbone.build(), blocks, task, scene.device, scene.side)
    views = make_views(task, few)
    with FlopCounterMode(display=False) as counter:
        stage(views.inputs, views.targets).loss.backward()
    return counter.get_total_flops() * scene.batch // few.batch


def flop_ratios(flops: Mapping[str, int]) -> dict[str, float]:
    """Each stage's share of the whole network's FLOPs."""
    return {name: count / flops[WHOLE] for name, count in flops.items() if name != WHOLE}


def peak_mebibytes(step: Callable[[], object], stage: nn.Module, device: torch.device) -> float | None:
    """Most that a step has beside weights and the optimiser's state: activations, gradients, work space.

    None on a CPU.
    """
    if device.type != "cuda":
        return None
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    # The first step's gradients are still there, and freed by the second one.
    gradients = sum(p.grad.nbytes for p in stage.parameters() if p.grad is not None)
    before = torch.cuda.memory_allocated() - gradients
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_tflops(card: str) -> float | None:
    """A card's dense bfloat16 TFLOPS by its name; None if the table lacks it."""
    words = card.replace("-", " ").split()
    for part, peak in PEAK_TFLOPS.items():
        wanted = part.split()
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))):
            return peak
    return None


def utilisation(flops: float, seconds: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation: FLOPs a second as a share of the card's TFLOPS; None if those are unknown."""
    return None if peak is None else flops / seconds / (peak * 1e12)


def print_stages(title: str, measured: Mapping[str, Measured], scene: Scene) -> None:
    """Print a line a stage."""
    on_gpu = scene.device.type == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name(scene.device)) if on_gpu else None
    ratios = flop_ratios({name: each.flops for name, each in measured.items()})
    print(title)
    for name, each in measured.items():
        line = f"  {name:11} {1000 * each.seconds:9.1f} ms {scene.batch / each.seconds:9.0f} images/s"
        line += f" {each.flops / 1e9:9.1f} GFLOP"
        if on_gpu:
            share = utilisation(each.flops, each.seconds, peak if scene.precision == "bf16" else None)
            line += f"   MFU {'unknown' if share is None else f'{share:.1%}'}   peak {each.peak_mebibytes:,.0f} MiB"
        if name != WHOLE:
            line += f"   time {each.seconds / measured[WHOLE].seconds:.3f}, FLOPs {ratios[name]:.3f} of end to end"
        print(line)
    print(flush=True)


def compare_stages(name: str, measured: Mapping[str, Measured]) -> list[dict[str, object]]:
    """Give the rows: each stage's share of the time must not exceed its share of the FLOPs."""
    whole = measured[WHOLE]
    ratios = flop_ratios({stage: each.flops for stage, each in measured.items()})
    timings = Timings({stage: each.rounds for stage, each in measured.items()})
    return [
        row(
            f"{name}: {stage} (peer: {WHOLE}; target: ratio of FLOPs)",
            ours=measured[stage].seconds,
            peer=whole.seconds,
            unit="s",
            ratio=measured[stage].seconds / whole.seconds,
            target=ratio,
            at_most=True,
            spread=timings.spread(stage, WHOLE),
        )
        for stage, ratio in ratios.items()
    ]


if __name__ == "__main__":
    main()
