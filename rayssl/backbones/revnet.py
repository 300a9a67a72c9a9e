"""RevNets: residual networks that are trained without storing their activations (Gomez et al. 2017)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.backbones.base import Backbone
from rayssl.backbones.reversible import ReversibleBlock, ReversibleUnit
from rayssl.schema import Config

_UNITS: dict[int, tuple[int, ...]] = {50: (2, 2, 3, 2), 101: (2, 2, 11, 2)}
_EXPANSION = 4


class RevNetConfig(Config):
    """A RevNet (Gomez et al. 2017) with bottleneck residual functions."""

    name: Literal["revnet"] = "revnet"
    depth: Literal[50, 101] = 50
    """The ResNet that it stands in for: 50 has 2-2-3-2 units (24.2 M parameters), 101 has 2-2-11-2."""
    width: int = Field(default=128, ge=8, le=512, multiple_of=4)
    """Channels of the first block; 128 is the paper's network."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution, stride 2, then a max-pool; small: 3x3, stride 1, no pool (images up to 64 px)."""
    reversible: bool = True
    """Rebuild activations in the backward pass: less memory, about a third more time, the same gradients."""

    def build(self) -> "RevNet":
        """Make the network with fresh weights, drawn from torch's global generator."""
        return RevNet(self.depth, width=self.width, stem=self.stem, reversible=self.reversible)


class RevNet(Backbone):
    """The RevNet's body, without the classifier.

    B1 is conv1 + BatchNorm + ReLU and the max-pool belongs to B2, as in our ResNet; B2..B5 are
    `layer1`..`layer4`, the last one with the network's final BatchNorm and ReLU. Layers are in
    pre-activation order, so B2..B4 give sums before any activation.

    Args:
        depth: 50 or 101.
        width: Channels of B1, a multiple of 4; B2..B5 have 4, 8, 16 and 26 times as many.
        stem: "imagenet" or "small", as in `RevNetConfig`.
        reversible: Whether the backward pass rebuilds activations; `state_dict()` has the same keys either way.

    Source: Gomez et al. 2017, table 1 and their published configuration (filters 128, 128, 256, 512, 832).
    """

    def __init__(self, depth: int, *, width: int = 128, stem: str = "imagenet", reversible: bool = True) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        filters = [width, 2 * width, 4 * width, 13 * width // 2]
        channels = [width] + [_EXPANSION * count for count in filters]
        units = _UNITS[depth]
        self.layer1 = _layer(channels[0], channels[1], units[0], stride=1, activated=True, reversible=reversible)
        self.layer2 = _layer(channels[1], channels[2], units[1], stride=2, reversible=reversible)
        self.layer3 = _layer(channels[2], channels[3], units[2], stride=2, reversible=reversible)
        self.layer4 = _layer(channels[3], channels[4], units[3], stride=2, reversible=reversible)
        self.bn2 = nn.BatchNorm2d(channels[4])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        b1 = nn.Sequential(self.conv1, self.bn1, self.relu)
        b2 = nn.Sequential(self.maxpool, self.layer1)
        b5 = nn.Sequential(self.layer4, self.bn2, self.relu)
        self.set_blocks((b1, b2, self.layer2, self.layer3, b5), tuple(channels))


class Bottleneck(nn.Module):
    """A residual function: 1x1, 3x3 and 1x1 convolutions, each after BatchNorm and ReLU.

    Args:
        inputs: Channels of the half that it reads.
        outputs: Channels of the half that it adds to; the 3x3 convolution has a quarter of them.
        stride: Of the first convolution, as in the paper's code.
        activated: The input comes from BatchNorm and ReLU already, so the first pair is left out.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, activated: bool = False) -> None:
        super().__init__()
        inner = outputs // _EXPANSION
        self.bn1 = None if activated else nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Give the residual, (N, outputs, H / stride, W / stride)."""
        if self.bn1 is not None:
            features = F.relu(self.bn1(features), inplace=True)
        features = F.relu(self.bn2(self.conv1(features)), inplace=True)
        features = F.relu(self.bn3(self.conv2(features)), inplace=True)
        residual: Tensor = self.conv3(features)
        return residual


def _layer(
    inputs: int, outputs: int, count: int, *, stride: int, reversible: bool, activated: bool = False
) -> ReversibleBlock:
    """`count` units over halves of the channels; the first one projects to the new size and channels."""
    inputs, outputs = inputs // 2, outputs // 2
    projections = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.Conv2d(inputs, outputs, 1, stride, bias=False))
    first = Bottleneck(inputs, outputs, stride=stride, activated=activated)
    units = [ReversibleUnit(first, Bottleneck(outputs, outputs), projections)]
    units += [ReversibleUnit(Bottleneck(outputs, outputs), Bottleneck(outputs, outputs)) for _ in range(count - 1)]
    return ReversibleBlock(units, reversible=reversible)
