"""ResNets against torchvision's own, and the blocks against the paper's counts."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from rayssl.backbones import ResNetConfig


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvision_weights_load_and_give_torchvision_features(depth: int) -> None:
    """Same keys, same order, same numbers: weights go in and out of torchvision unchanged."""
    reference = torchvision.models.get_model(f"resnet{depth}", weights=None)
    reference.fc = nn.Identity()
    reference.eval()
    backbone = ResNetConfig(depth=depth).build().eval()
    assert list(backbone.state_dict()) == list(reference.state_dict())
    backbone.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images).mean((2, 3)), reference(images))


def test_blocks_of_resnet50_have_the_sizes_that_the_paper_trains() -> None:
    """Spec 1.2: 0.010 / 0.216 / 1.220 / 7.098 / 14.965 M; S1..S3 train 1.445, 8.534 and 23.283 M."""
    sizes = [sum(p.numel() for p in block.parameters()) / 1e6 for block in ResNetConfig(depth=50).build().blocks]
    assert [round(s, 3) for s in sizes] == [0.010, 0.216, 1.220, 7.098, 14.965]
    stages = [sum(sizes[i : i + 3]) for i in range(3)]
    assert stages == pytest.approx([1.445, 8.534, 23.283], abs=1.5e-3)


@pytest.mark.parametrize(
    ("depth", "stem", "sides"), [(50, "imagenet", [112, 56, 28, 14, 7]), (18, "small", [32, 32, 16, 8, 4])]
)
def test_each_block_halves_the_map_as_the_paper_says(depth: int, stem: str, sides: list[int]) -> None:
    backbone = ResNetConfig(depth=depth, stem=stem, width=64).build().eval()
    images = torch.randn(1, 3, sides[0] * (2 if stem == "imagenet" else 1), sides[0] * (2 if stem == "imagenet" else 1))
    for block, side in enumerate(sides, start=1):
        features = backbone(images, block)
        assert features.shape == (1, backbone.block_channels[block - 1], side, side)


def test_nothing_above_the_last_block_is_run() -> None:
    backbone = ResNetConfig(depth=18, width=8, stem="small").build()

    def fail(*_: object) -> None:
        raise AssertionError("a block above the last one was run")

    for block in backbone.blocks[3:]:
        block.register_forward_hook(fail)
    assert backbone(torch.randn(2, 3, 16, 16), 3).shape == (2, 16, 8, 8)


def test_a_copy_is_whole_and_its_blocks_are_its_own() -> None:
    """The tuple of blocks is not registered, yet a deep copy must not share layers with the original."""
    backbone = ResNetConfig(depth=18, width=8, stem="small").build()
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin.blocks[0](torch.randn(1, 3, 8, 8)).any()
    assert backbone.conv1.weight.any()


def test_a_block_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="last_block: must be 1..5, got 6"):
        ResNetConfig(depth=18, width=8, stem="small").build()(torch.randn(1, 3, 8, 8), 6)
