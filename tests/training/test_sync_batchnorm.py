"""BatchNorm over two workers equals BatchNorm over their whole batch in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayssl.backbones import ResNetConfig
from rayssl.collectives import gather_rows
from rayssl.runtime import LocalRuntime
from rayssl.training.sync_batchnorm import GroupBatchNorm, synchronize_batchnorm
from tests.two_workers import run_on_two_workers

MODES = ["plain", "no affine", "cumulative", "flat"]


def make_network(mode: str) -> nn.Sequential:
    torch.manual_seed(3)
    if mode == "flat":
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    layer = nn.BatchNorm2d(4, affine=mode != "no affine", momentum=None if mode == "cumulative" else 0.1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(layer, nn.ReLU()), nn.Conv2d(4, 2, 3))


def make_inputs(mode: str) -> Tensor:
    """Away from zero, where a sum of squares loses digits to the mean."""
    torch.manual_seed(4)
    return 10 + (torch.randn(8, 5) if mode == "flat" else torch.randn(8, 3, 6, 6))


def train_two_steps(network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """A loss that no average hides: rows count differently."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = gather_rows(network(inputs).flatten(1))
        (outputs.square() * torch.arange(1, 9)[:, None]).mean().backward()
        optimizer.step()
    found = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()
    with torch.no_grad():
        found["outputs"] = gather_rows(network(inputs))
    return found


def train_as_one_of_two(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode in MODES:
        network = make_network(mode)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        synchronize_batchnorm([network], torch.device("cpu"))
        synchronize_batchnorm([network], torch.device("cpu"))  # a block of two stages is met twice
        wrapped = LocalRuntime(Path()).wrap(network)
        found[mode] = train_two_steps(wrapped, make_inputs(mode)[4 * rank : 4 * rank + 4])
        found[mode] = {name.removeprefix("module."): tensor for name, tensor in found[mode].items()}
        new = [layer for layer in network.modules() if isinstance(layer, GroupBatchNorm)]
        found[f"{mode} shared"] = [
            a.running_mean is b.running_mean and a.weight is b.weight for a, b in zip(layers, new, strict=True)
        ]
    backbone = ResNetConfig(depth=18, width=4, stem="small").build()
    synchronize_batchnorm((backbone.blocks[0], backbone, *backbone.blocks), torch.device("cpu"))
    backbone.eval()
    found["eval"] = [
        layer.training for block in backbone.blocks for layer in block.modules() if not list(layer.children())
    ]
    first = list(backbone.blocks[0].children())
    found["held twice"] = first[1] is backbone.bn1 and isinstance(backbone.bn1, GroupBatchNorm)
    return found


def test_two_workers_equal_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Weights and running statistics after two steps, and outputs in eval mode."""
    results = run_on_two_workers(train_as_one_of_two, tmp_path)
    for mode in MODES:
        expected = train_two_steps(make_network(mode), make_inputs(mode))
        for result in results:
            torch.testing.assert_close(result[mode], expected, rtol=1e-4, atol=1e-4)
            assert result[f"{mode} shared"] == [True]
    assert all(result["held twice"] and not any(result["eval"]) for result in results)


def test_one_worker_keeps_its_layers() -> None:
    network = make_network("plain")
    synchronize_batchnorm([network], torch.device("cpu"))
    assert not any(isinstance(layer, GroupBatchNorm) for layer in network.modules())


def test_a_layer_without_a_group_is_the_plain_one() -> None:
    plain = nn.BatchNorm2d(3)
    shared = GroupBatchNorm.sharing(nn.BatchNorm2d(3))
    inputs = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(shared(inputs), plain(inputs))
    torch.testing.assert_close(shared.state_dict(), plain.state_dict())
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        shared(torch.randn(3))
