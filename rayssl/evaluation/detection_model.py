"""Faster R-CNN with a C4 body, from torchvision's parts around the blocks of an encoder."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayssl.backbones import Backbone

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

BODY_BLOCKS = 4
_ASPECTS = (0.5, 1.0, 2.0)
_REGION_SIDE = 14


@dataclass(frozen=True)
class DetectorSettings:
    """What a detector is built by."""

    num_classes: int
    """Without the background."""
    frozen_blocks: int
    """B1 up to this one keep their weights, 0..4."""
    sides: tuple[int, ...]
    """Short sides of training pictures in pixels, one of which is drawn for each."""
    max_side: int
    """Longest side of a picture, in pixels."""
    anchor_sizes: tuple[int, ...]
    """Square roots of the anchors' areas, in pixels; each comes in the shapes 2:1, 1:1 and 1:2."""
    proposals_before: tuple[int, int]
    """Best proposals of a picture that enter the suppression of overlapping ones, in training and in the test."""
    proposals: tuple[int, int]
    """Best proposals of a picture that leave it, in training and in the test."""
    regions: int
    """Proposals of a picture that the head learns from, at most a quarter of them objects."""


def build_detector(encoder: Backbone, settings: DetectorSettings) -> "FasterRCNN":
    """Put B1..B4 of a copy of the encoder under a region proposal network, and B5 into the head.

    Regions are pooled to 14 x 14 cells (RoIAlign with as many samples a cell as it covers), pass B5, whose stride
    leaves 7 x 7, and are averaged. Every BatchNorm is torchvision's `FrozenBatchNorm2d`: statistics, scale and shift
    are constants, whatever the mode. New layers are drawn from torch's global generator, N(0, .01), and N(0, .001) for
    the boxes.

    Args:
        encoder: Stays as it is.
        settings: Sizes and numbers.

    Returns:
        torchvision's model, in train mode; labels 1..num_classes, 0 is the background. Frozen weights need no gradient.

    Source: Ren et al. 2015; the layout and numbers of detectron2's R50-C4, which both papers' code follow.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    blocks = copy.deepcopy(encoder).requires_grad_(True).blocks
    head = _Head(freeze_batchnorm(blocks[BODY_BLOCKS]))
    body = _Body([freeze_batchnorm(block) for block in blocks[:BODY_BLOCKS]], settings.frozen_blocks)
    body.out_channels = encoder.block_channels[BODY_BLOCKS - 1]
    predictor = FastRCNNPredictor(encoder.block_channels[BODY_BLOCKS], settings.num_classes + 1)
    for linear, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(linear.weight, std=deviation)
        nn.init.zeros_(linear.bias)
    return FasterRCNN(
        body,
        min_size=settings.sides,
        max_size=settings.max_side,
        rpn_anchor_generator=AnchorGenerator((settings.anchor_sizes,), (_ASPECTS,)),
        rpn_pre_nms_top_n_train=settings.proposals_before[0],
        rpn_pre_nms_top_n_test=settings.proposals_before[1],
        rpn_post_nms_top_n_train=settings.proposals[0],
        rpn_post_nms_top_n_test=settings.proposals[1],
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=_REGION_SIDE, sampling_ratio=0),
        box_head=head,
        box_predictor=predictor,
        box_batch_size_per_image=settings.regions,
    ).train()


def set_short_sides(detector: "FasterRCNN", sides: Sequence[int]) -> None:
    """Choose the short side, in pixels, that pictures are resized to; in eval mode the last one is taken."""
    detector.transform.min_size = tuple(sides)


def freeze_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm below a module by one whose numbers are all constants; the module itself is given."""
    from torchvision.ops import FrozenBatchNorm2d

    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            freeze_batchnorm(child)
            continue
        frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
        constants = {key: tensor for key, tensor in child.state_dict().items() if key != "num_batches_tracked"}
        frozen.load_state_dict(constants)
        setattr(module, name, frozen.to(child.weight.device))
    return module


class _Body(nn.Module):
    """B1..B4, the first ones without gradients."""

    out_channels: int

    def __init__(self, blocks: Sequence[nn.Module], num_frozen: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.num_frozen = num_frozen
        self.blocks[:num_frozen].requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The map of B4, (N, C, H / 16, W / 16) after the stem for large pictures."""
        features = images
        with torch.no_grad():
            for block in self.blocks[: self.num_frozen]:
                features = block(features)
        for block in self.blocks[self.num_frozen :]:
            features = block(features)
        return features


class _Head(nn.Module):
    """B5 and the average over its map."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C) from pooled regions (R, C', 14, 14)."""
        features: Tensor = self.block(regions)
        return features.mean((2, 3))
