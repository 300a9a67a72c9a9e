"""Activation memory and time of a training step of RevNet-50: rebuilt, stored by autograd, and by memcnn.

    python benchmarks/revnet_memory.py [--batch 8] [--side 128] [--rounds 5] [--threads 2] [--device cpu]

Memory is the peak of what a step (forward, loss, backward) allocates above parameters and images. A
parameter's gradient is dropped as soon as autograd hands it over, so what counts is activations and what the
backward pass needs for itself. All three train the same network on the same images, which is checked first: as many
parameters, of the same values, the same loss and the same gradients. About 1.5 minutes on 2 cores.
"""

import argparse
import importlib
import json
import tempfile
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from common import Timings, installed_version, interleaved_seconds, print_machine, print_rows, row, skipped
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from rayssl.backbones.reversible import ReversibleBlock
from rayssl.backbones.revnet import RevNet

DEPTHS = (50, 101)
TOLERANCE = 1e-9
"""Of losses and gradients in float64, relative: measured were 2e-14 with 8 images of 128 px."""


def main() -> None:
    """Measure, print a table and the rows."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    print_machine("memcnn")
    print(f"step: batch {options.batch}, side {options.side}, float32, on {options.device}\n")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, options.side, options.side, generator=generator).to(options.device)
    builders: dict[str, Callable[[int], nn.Module]] = {"ours": build_rebuilding, "autograd": build_plain}
    if installed_version("memcnn"):
        builders["memcnn"] = build_memcnn
    check_equal_work({name: seeded(build, DEPTHS[0]) for name, build in builders.items()}, images)
    steps = {
        (name, depth): training_step(seeded(build, depth), images)
        for name, build in builders.items()
        for depth in DEPTHS
    }
    peaks = {contestant: peak_mebibytes(step, images.device) for contestant, step in steps.items()}
    seconds = interleaved_seconds({name: steps[name, DEPTHS[0]] for name in builders}, rounds=options.rounds)
    print_table(peaks, seconds)
    print_rows(compare(peaks, seconds))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="pictures in a step")
    parser.add_argument("--side", type=int, default=128, help="their side in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each contestant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def build_rebuilding(depth: int) -> nn.Module:
    """Our RevNet."""
    return RevNet(depth)


def build_plain(depth: int) -> nn.Module:
    """The same network by plain autograd."""
    return RevNet(depth, reversible=False)


def build_memcnn(depth: int) -> nn.Module:
    """The same network with memcnn's wrapper around every unit that can be inverted."""
    warnings.filterwarnings(
        "ignore", message=".*(custom_fwd|custom_bwd|TypedStorage)"
    )  # what memcnn uses is deprecated
    memcnn = importlib.import_module("memcnn")

    def chain(layer: ReversibleBlock) -> nn.Sequential:
        first, *others = layer.units
        wrapped = [memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(unit.f, unit.g)) for unit in others]
        return nn.Sequential(ReversibleBlock([first], reversible=False), *wrapped)

    network = RevNet(depth, reversible=False)
    b2 = nn.Sequential(network.maxpool, chain(network.layer1))
    b5 = nn.Sequential(chain(network.layer4), network.bn2, network.relu)
    blocks = (network.blocks[0], b2, chain(network.layer2), chain(network.layer3), b5)
    network.set_blocks(blocks, network.block_channels)
    return network


def seeded(build: Callable[[int], nn.Module], depth: int) -> nn.Module:
    """The network with the weights that all contestants start from."""
    torch.manual_seed(0)
    return build(depth)


def check_equal_work(networks: dict[str, nn.Module], images: Tensor) -> None:
    """Make one step with each of the contestants and compare what it gave with plain autograd's.

    In float64: rebuilt activations differ from stored ones by rounding, and in float32 that turns ReLUs on and off, so
    that autograd's own gradients are 1 % from the true ones.

    Raises:
        RuntimeError: If parameters, loss or gradients differ.
    """
    weights = {name: dict(network.state_dict()) for name, network in networks.items()}
    for name, own in weights.items():
        if not agree(own, weights["autograd"], torch.equal):
            raise RuntimeError(f"{name}: must start from autograd's weights, and have no others")
    losses = {name: loss_with_gradients(network.double(), images.double()) for name, network in networks.items()}
    for name, loss in losses.items():
        if abs(loss / losses["autograd"] - 1) > TOLERANCE:
            raise RuntimeError(f"{name}: must have autograd's loss, {losses['autograd']:.6g}, got {loss:.6g}")
    gradients = {name: gradients_of(network) for name, network in networks.items()}
    for name, own in gradients.items():
        if not agree(own, gradients["autograd"], are_close):
            raise RuntimeError(f"{name}: must have autograd's gradients, up to {TOLERANCE:g} of each")


def loss_with_gradients(network: nn.Module, images: Tensor) -> float:
    """The loss of a step, whose gradients are left in the network."""
    loss: Tensor = network.to(images.device).train()(images).square().mean()
    loss.backward()
    return float(loss.detach())


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    """Name -> gradient of every parameter that has one."""
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def are_close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the difference of two tensors is short beside the second one."""
    return bool((ours - theirs).norm() <= TOLERANCE * theirs.norm())


def agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], are_equal: Callable[[Tensor, Tensor], bool]) -> bool:
    """Whether the names are the same and the tensors of each name are equal."""
    return ours.keys() == theirs.keys() and all(are_equal(ours[name], theirs[name]) for name in ours)


def training_step(network: nn.Module, images: Tensor) -> Callable[[], float]:
    """A function that runs one step without an optimiser and gives the loss; no gradient outlives it."""
    network.to(images.device).train()
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(drop_gradient)

    def step() -> float:
        loss = network(images).square().mean()
        loss.backward()
        return float(loss.detach())

    return step


def drop_gradient(parameter: Tensor) -> None:
    """Forget a parameter's gradient."""
    parameter.grad = None


def peak_mebibytes(step: Callable[[], object], device: torch.device) -> float:
    """Give the most memory that one step holds above what there was before it, as the allocator saw it."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: float(event["ts"]))]
    return max(accumulate(changes)) / 2**20


def print_table(peaks: dict[tuple[str, int], float], seconds: dict[str, float]) -> None:
    """Print a line a contestant."""
    shallow, deep = DEPTHS
    print(
        f"{'':10}{f'peak, {shallow}':>12}{f'peak, {deep}':>12}{'growth':>9}{f'step, {shallow}':>11}{'to autograd':>18}"
    )
    for name, duration in seconds.items():
        small, large = peaks[name, shallow], peaks[name, deep]
        print(
            f"{name:10}{small:8.0f} MiB{large:8.0f} MiB{large / small - 1:9.1%}{duration:9.2f} s"
            f"{duration / seconds['autograd']:17.2f}x"
        )
    print()


def compare(peaks: dict[tuple[str, int], float], seconds: Timings) -> list[dict[str, object]]:
    """Give the rows: memory against both peers, growth with depth, and time."""
    shallow, deep = DEPTHS
    growth = {name: peaks[name, deep] / peaks[name, shallow] - 1 for name in seconds}
    rows = []
    for peer in ("memcnn", "autograd"):
        benchmark = f"revnet_memory peak against {peer}"
        if peer not in seconds:
            rows.append(skipped(benchmark, f"{peer} is not installed"))
            continue
        ours, theirs = peaks["ours", shallow], peaks[peer, shallow]
        rows.append(row(benchmark, ours=ours, peer=theirs, unit="MiB", ratio=theirs / ours, target=1.0))
    rows.append(
        row(
            f"revnet_memory growth from {shallow} to {deep} layers (peer: autograd)",
            ours=growth["ours"],
            peer=growth["autograd"],
            unit="share",
            ratio=growth["ours"],
            target=0.10,
            at_most=True,
        )
    )
    rows.append(
        row(
            "revnet_memory time of a step against autograd",
            ours=seconds["ours"],
            peer=seconds["autograd"],
            unit="s",
            ratio=seconds["ours"] / seconds["autograd"],
            target=1.4,
            at_most=True,
            spread=seconds.spread("ours", "autograd"),
        )
    )
    return rows


if __name__ == "__main__":
    main()
