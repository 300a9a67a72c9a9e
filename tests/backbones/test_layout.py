"""The layout of weights in memory changes speed, and results by rounding alone."""

import copy

import pytest
import torch
from torch import nn

from rayssl.backbones import Backbone, ResNetConfig, RevNetConfig, lay_out


def is_channels_last(block: nn.Module) -> bool:
    weights = [
        module.weight for module in block.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    ]
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize(
    ("config", "image_size", "tiny"),
    [
        (ResNetConfig(depth=18, width=16, stem="small"), 32, [False] * 5),
        (ResNetConfig(depth=18, width=32, stem="small"), 32, [False, False, False, False, True]),
        (ResNetConfig(depth=18, width=64), 64, [False, False, False, True, True]),
        (ResNetConfig(depth=18, width=32), 224, [False] * 5),
        (RevNetConfig(depth=50, width=32), 64, [False, False, False, True, True]),
    ],
)
def test_tiny_maps_are_computed_channels_first_to_the_same_result(
    config: ResNetConfig | RevNetConfig, image_size: int, tiny: list[bool]
) -> None:
    torch.manual_seed(0)
    plain: Backbone = config.build()
    laid_out = copy.deepcopy(plain)
    statistics = copy.deepcopy(laid_out.state_dict())
    lay_out(laid_out, image_size)
    assert all(torch.equal(laid_out.state_dict()[name], value) for name, value in statistics.items())
    assert laid_out.training
    assert [not is_channels_last(block) for block in laid_out.blocks] == tiny
    images = torch.randn(4, 3, image_size, image_size)
    for network in (plain, laid_out):
        network(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), laid_out.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        error = (one.grad - other.grad).norm() / one.grad.norm().clamp(min=1e-12)
        assert error < 1e-3, name
