"""ResNet-18, 34 and 50 in torchvision's layout and key names, with a stem for small images and a free width."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import nn

from rayssl.backbones.base import Backbone
from rayssl.schema import Config

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

_UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNetConfig(Config):
    """A ResNet (He et al. 2016)."""

    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50] = 50
    """Number of layers."""
    width: int = Field(default=64, ge=4, le=512)
    """Channels of the first block; 64 is the paper's network, and the only one that loads torchvision's weights."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 convolution, stride 2, then a max-pool; small: 3x3, stride 1, no pool (images up to 64 px)."""

    def build(self) -> "ResNet":
        """Make the network with fresh weights, drawn from torch's global generator."""
        return ResNet(self.depth, width=self.width, stem=self.stem)


class ResNet(Backbone):
    """The ResNet's body, without the classifier.

    B1 is conv1 + BatchNorm + ReLU, the max-pool belongs to B2 (He et al. name it conv2_x), B3..B5 are
    `layer2`..`layer4`. `state_dict()` has torchvision's keys but for `fc`.

    Args:
        depth: 18, 34 or 50.
        width: Channels of B1.
        stem: "imagenet" or "small", as in `ResNetConfig`.
    """

    def __init__(self, depth: int, *, width: int = 64, stem: str = "imagenet") -> None:
        # torchvision brings torch's compiler along, 1.5 s that only those who build a network have to wait for.
        from torchvision.models.resnet import BasicBlock, Bottleneck

        super().__init__()
        residual, layout = Bottleneck if depth == 50 else BasicBlock, _UNITS[depth]
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        planes = [width, 2 * width, 4 * width, 8 * width]
        channels = [width] + [p * residual.expansion for p in planes]
        self.layer1 = _layer(residual, channels[0], planes[0], layout[0], stride=1)
        self.layer2 = _layer(residual, channels[1], planes[1], layout[1], stride=2)
        self.layer3 = _layer(residual, channels[2], planes[2], layout[2], stride=2)
        self.layer4 = _layer(residual, channels[3], planes[3], layout[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        b1 = nn.Sequential(self.conv1, self.bn1, self.relu)
        b2 = nn.Sequential(self.maxpool, self.layer1)
        self.set_blocks((b1, b2, self.layer2, self.layer3, self.layer4), tuple(channels))


def _layer(
    residual: "type[BasicBlock] | type[Bottleneck]", inputs: int, planes: int, count: int, *, stride: int
) -> nn.Sequential:
    """`count` residual units; the first one changes size and channels, with a projection where it must."""
    from torchvision.models.resnet import conv1x1

    outputs = planes * residual.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    units = [residual(inputs, planes, stride, shortcut)]
    units += [residual(outputs, planes) for _ in range(count - 1)]
    return nn.Sequential(*units)
