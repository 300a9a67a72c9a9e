"""How an encoder is made ready for its device: how weights lie in memory, and what torch can't do there."""

import torch
from torch import Tensor, nn

from rayssl.backbones.base import Backbone
from rayssl.errors import ConfigError

_TINY, _WIDE = 4, 256
"""Maps of at most so many pixels a side, and at least so many channels, are quicker channels first on CPUs: a 3x3
convolution of 512 channels on 2x2 maps takes a third of the time, a step of ResNet-18 on 64 px 15 % less
(benchmarks/pretrain_loop.py). With 128 channels it is the other way round."""


def lay_out(encoder: Backbone, image_size: int) -> None:
    """Put an encoder's weights channels last, but for blocks with tiny and deep maps on a CPU; once an encoder.

    There its blocks refuse to be trained where torch would spoil their weights, too.

    Args:
        encoder: On the device where it is to run.
        image_size: Side of the views, in pixels.
    """
    encoder.to(memory_format=torch.channels_last)
    if next(encoder.parameters()).device.type != "cpu":
        return
    for block, channels, side in zip(
        encoder.blocks, encoder.block_channels, _map_sides(encoder, image_size), strict=True
    ):
        if side <= _TINY and channels >= _WIDE:
            block.to(memory_format=torch.contiguous_format)
            # Convolutions take the layout of their input, or of their weights, if either is channels last.
            block.register_forward_pre_hook(_channels_first)
        block.register_forward_pre_hook(_refuse_one_pixel)


def _channels_first(block: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (features,) = inputs
    return (features.contiguous(),)


def _refuse_one_pixel(block: nn.Module, inputs: tuple[Tensor]) -> None:
    """Refuse what would leave weights of no meaning behind.

    On CPUs torch 2.15 does not write the bfloat16 gradient of those weights of a strided convolution that only ever
    meet the border, as on a map of one pixel: whatever was in memory is taken for it.

    Raises:
        ConfigError: If the block would do that.
    """
    if inputs[0].shape[-2:] != (1, 1) or not torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
        return
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1 and layer.kernel_size[0] > 1:
            raise ConfigError(
                "training.precision: must be fp32 on CPUs where a block that halves its map is given one of a single "
                "pixel, as here, got bf16. Or take larger views (data.image_size, fewer tiles), or backbone.stem=small."
            )


def _map_sides(encoder: Backbone, image_size: int) -> list[int]:
    """Side of each block's map, in pixels."""
    was_training = encoder.training
    encoder.eval()  # so that no statistics move
    sides = []
    with torch.no_grad():
        features = torch.zeros(1, 3, image_size, image_size, device=next(encoder.parameters()).device)
        for block in encoder.blocks:
            features = block(features)
            sides.append(features.shape[-1])
    encoder.train(was_training)
    return sides
