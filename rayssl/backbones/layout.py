"""How the weights of convolutions lie in memory: a matter of speed alone."""

import torch
from torch import Tensor, nn

from rayssl.backbones.base import Backbone

_TINY, _WIDE = 4, 256
"""Maps of at most so many pixels a side, and at least so many channels, are quicker channels first on CPUs: a 3x3
convolution of 512 channels on 2x2 maps takes a third of the time, a step of ResNet-18 on 64 px 15 % less
(benchmarks/pretrain_loop.py). With 128 channels it is the other way round."""


def lay_out(encoder: Backbone, image_size: int) -> None:
    """Put an encoder's weights channels last, but for blocks with tiny and deep maps on a CPU; once an encoder.

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


def _channels_first(block: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (features,) = inputs
    return (features.contiguous(),)


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
