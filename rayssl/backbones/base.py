"""What every backbone offers: five blocks, B1..B5, that can be run one after another and no further than needed."""

import torch
from torch import Tensor, fx, nn

NUM_BLOCKS = 5


class Backbone(nn.Module):
    """An image encoder cut into the blocks B1..B5 of PSL (section 3.2).

    A subclass builds its layers under the names that its checkpoints use and then calls
    `set_blocks`; the blocks are views of those layers, so nothing is registered twice.

    Attributes:
        blocks: The modules B1..B5; `blocks[0]` takes the image, each other one the map of the block before.
        block_channels: Channels of each block's feature map.
    """

    blocks: tuple[nn.Module, ...]
    block_channels: tuple[int, ...]

    def set_blocks(self, blocks: tuple[nn.Module, ...], block_channels: tuple[int, ...]) -> None:
        """Name the five blocks; a plain tuple keeps them out of `state_dict()` and `parameters()`."""
        if len(blocks) != NUM_BLOCKS or len(block_channels) != NUM_BLOCKS:
            raise ValueError(f"blocks: must be {NUM_BLOCKS}, got {len(blocks)}")
        self.blocks = blocks
        self.block_channels = block_channels

    def forward(self, images: Tensor, last_block: int = NUM_BLOCKS) -> Tensor:
        """Give the feature map of block `last_block`; nothing above it is run.

        Args:
            images: Normalised pictures, (N, 3, S, S).
            last_block: 1..5.

        Returns:
            The map, (N, C, H, W) with C = `block_channels[last_block - 1]`.

        Raises:
            ValueError: If `last_block` is not one of 1..5.
        """
        if not 1 <= last_block <= NUM_BLOCKS:
            raise ValueError(f"last_block: must be 1..{NUM_BLOCKS}, got {last_block}")
        features = images
        for block in self.blocks[:last_block]:
            features = block(features)
        return features

    def portable(self) -> fx.GraphModule:
        """The whole encoder, (N, 3, S, S) to its last map, made of torch's own layers: it loads where rayssl is not.

        Its weights are this encoder's, not copies. A RevNet becomes its plain form, which stores activations.
        """
        with torch.no_grad():  # the plain form is what runs without gradients
            return fx.symbolic_trace(nn.Sequential(*self.blocks))
