"""MGTA's auto-encoder: a ResNet and its mirror, in which a transposed convolution undoes every convolution."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.backbones.resnet import ResNet

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

_TOTAL_STRIDES = {"imagenet": 32, "small": 8}


class AutoEncoder(nn.Module):
    """Rebuilds pictures from the encoder's last feature map (B5).

    The target is the normalised picture that went in, so the output is linear. The average of the same map is the
    picture's embedding, for clustering and for the triplet loss.

    Attributes:
        encoder: The network that is kept after training; shared, not copied.
        decoder: Its mirror, with fresh weights; see `build_decoder`.

    Args:
        encoder: ResNet-18, 34 or 50 of any width, with either stem.

    Raises:
        ValueError: If the encoder is no `ResNet`.

    Source: MGTA, section 3.1 and Table 1.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, ResNet):
            raise ValueError(
                f"encoder: the decoder can only mirror a ResNet, got {type(encoder).__name__}. "
                "Take ResNet-18, 34 or 50 (backbone.name: resnet)."
            )
        self.encoder = encoder
        self.decoder = build_decoder(encoder)

    def forward(self, images: Tensor) -> Tensor:
        """Give the reconstruction.

        Args:
            images: Normalised pictures, (N, 3, H, W); sides as `check_side` wants them.

        Returns:
            As `images`, (N, 3, H, W), in their units.

        Raises:
            ValueError: If a side is not a multiple of the encoder's total stride.
        """
        return self.embed_and_reconstruct(images)[1]

    def embed_and_reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give embeddings and reconstruction from one pass through the encoder.

        Args:
            images: Normalised pictures, (N, 3, H, W); sides as `check_side` wants them.

        Returns:
            Embeddings, (N, C): the global average of B5's map, neither centred nor scaled.
            Reconstruction, (N, 3, H, W), in the units of `images`.

        Raises:
            ValueError: If a side is not a multiple of the encoder's total stride.
        """
        for side in images.shape[-2:]:
            self.check_side(side)
        feature_map = self.encoder(images)
        return feature_map.mean((2, 3)), self.decoder(feature_map)

    def check_side(self, side: int) -> None:
        """Refuse pictures that would come out in another size; the rule is that of the function `check_side`.

        Args:
            side: Height or width of the pictures, in pixels.

        Raises:
            ValueError: If it is not a multiple of the encoder's total stride; names the nearest sides that are.
        """
        check_side(side, stem="imagenet" if _has_pool(self.encoder) else "small")


def check_side(side: int, *, stem: str) -> None:
    """Refuse pictures that would come out in another size; needs no network.

    The encoder rounds up where it halves an odd side, the decoder doubles: 84 px would come back as 96.

    Args:
        side: Height or width of the pictures, in pixels.
        stem: "imagenet" (total stride 32) or "small" (8), as in `ResNetConfig`.

    Raises:
        ValueError: If it is not a multiple of the encoder's total stride; names the nearest sides that are.
    """
    stride = _TOTAL_STRIDES[stem]
    if side >= stride and side % stride == 0:
        return
    below = max(side, 0) // stride * stride
    nearest = f"the nearest are {below} and {below + stride}" if below else f"the nearest is {stride}"
    raise ValueError(
        f"image side: must be a multiple of {stride}, the total stride of a ResNet with the {stem} stem, "
        f"so that the decoder gives the same size back, got {side}; {nearest}."
    )


def build_decoder(encoder: ResNet) -> nn.Sequential:
    """Make the mirror of a ResNet: its layers from the last to the first, each convolution transposed.

    Table 1 lists the *input* channels of the transposed convolutions. A row is a layer of the encoder run backwards:
    the unit that changes size and channels, with a projection as its shortcut, is the last one. At 224 px the sides
    are 7, 14, 28, 56, 56 (the four rows), 112 (doubled, where the encoder has its max-pool) and 224. With the small
    stem there is nothing to double, and the output layer keeps the size, as that stem's convolution does.

    Every transposed convolution before a BatchNorm starts from the distribution of the convolution that it mirrors
    (He et al. 2015, fan-out). Seen from a transposed convolution of stride 1 that count is its fan-in, so the scale of
    activations is kept on the way up. The output layer has nothing behind it that would set its scale: N(0, .01) and
    a bias of 0 let reconstructions start near the mean colour, so the first loss is about the pictures' variance.

    Args:
        encoder: Gives the layout; its weights are not used.

    Returns:
        From B5's map, (N, C, h, w), to pictures, (N, 3, h * total stride, w * total stride). Its parts are named
        after those that they mirror (layer4 .. layer1), then come `unpool` and `output`.

    Source: MGTA, Table 1. The paper does not say where its rows upsample, which shortcuts they have, how the
    interpolation works or how weights start: the mirror decides the first two, nearest neighbours are torch's default.
    """
    output = _mirror_stem(encoder.conv1)
    decoder = nn.Sequential(
        OrderedDict(
            layer4=_mirror_layer(encoder.layer4),
            layer3=_mirror_layer(encoder.layer3),
            layer2=_mirror_layer(encoder.layer2),
            layer1=_mirror_layer(encoder.layer1),
            unpool=nn.Upsample(scale_factor=2, mode="nearest") if _has_pool(encoder) else nn.Identity(),
            output=output,
        )
    )
    for module in decoder.modules():
        if isinstance(module, nn.ConvTranspose2d) and module is not output:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return decoder


def _has_pool(encoder: ResNet) -> bool:
    """Whether it has the imagenet stem."""
    return isinstance(encoder.maxpool, nn.MaxPool2d)


def _mirror_layer(layer: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*[_MirroredUnit(unit) for unit in reversed(layer)])


class _MirroredUnit(nn.Module):
    """A residual unit run backwards: from its output's channels and size to those of its input."""

    def __init__(self, unit: "BasicBlock | Bottleneck") -> None:
        super().__init__()
        # The shortcut's convolution is not among them: it lies one level deeper.
        convolutions = [child for child in unit.children() if isinstance(child, nn.Conv2d)]
        layers: list[nn.Module] = []
        for convolution in reversed(convolutions):
            layers += [_transpose(convolution), nn.BatchNorm2d(convolution.in_channels), nn.ReLU(inplace=True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if unit.downsample is not None:
            projection = unit.downsample[0]
            self.shortcut = nn.Sequential(_transpose(projection), nn.BatchNorm2d(projection.in_channels))

    def forward(self, features: Tensor) -> Tensor:
        """From (N, C, h, w) to (N, C', h * stride, w * stride)."""
        return F.relu(self.branch(features) + self.shortcut(features), inplace=True)


def _transpose(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed convolution with the same weight shape; what the stride divided, it multiplies exactly."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    return nn.ConvTranspose2d(
        convolution.out_channels,
        convolution.in_channels,
        kernel,
        stride,
        padding=kernel // 2,
        output_padding=stride - 1,
        bias=False,
    )


def _mirror_stem(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """The output layer: Table 1's 8x8 of stride 2 for the 7x7, and 3x3 of stride 1 for itself.

    A kernel that the stride divides lays as many weights on every pixel: no checkerboard.
    """
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    output = nn.ConvTranspose2d(
        convolution.out_channels, convolution.in_channels, kernel + stride - 1, stride, padding=kernel // 2
    )
    nn.init.normal_(output.weight, std=0.01)
    assert output.bias is not None
    nn.init.zeros_(output.bias)
    return output
