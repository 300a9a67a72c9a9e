"""A stage of MGTA as a module: an auto-encoder, its reconstruction loss and its batch-hard triplet loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, distributed, nn

from rayssl.backbones import NUM_BLOCKS
from rayssl.backbones.autoencoder import AutoEncoder
from rayssl.collectives import gather_rows, is_distributed
from rayssl.data.augment import IMAGENET_MEAN, IMAGENET_STD
from rayssl.data.buffers import Buffers
from rayssl.data.loaders import Batch
from rayssl.losses import (
    Margin,
    Reduction,
    active_triplet_share,
    batch_hard_triplets,
    reconstruction_loss,
    triplet_loss,
)
from rayssl.tasks.augmented_views import AugmentationLevel, augmented_view
from rayssl.tasks.base import TaskLoss, Views
from rayssl.training.stage import TrainedStage

_STUCK = 0.01
"""Share of its value at collapse by which a triplet loss may differ from it and still count as stuck."""
_ALL = 0.999


@dataclass(frozen=True)
class TripletTerm:
    """The triplet loss in a stage's loss."""

    weight: float
    """Lambda of the paper, at least 0."""
    margin: Margin
    """Alpha of the paper, or "soft"."""


class AutoEncoderTask:
    """What a stage of MGTA sees: one augmented view of each picture, which is also what it has to give back."""

    chance = None
    examples_per_image = 1

    def __init__(self, level: AugmentationLevel, *, image_size: int) -> None:
        self._level = level
        self._image_size = image_size
        self._buffers = Buffers()

    def make_views(self, batch: Batch) -> Views:
        """Views (N, 3, S, S); targets int64 (N, 2): the picture's pseudo label and its number in the set."""
        inputs = augmented_view(
            batch.images, batch.draws, self._level, image_size=self._image_size, buffers=self._buffers
        )
        targets = torch.stack([batch.labels, batch.indices], dim=1)
        return Views(inputs, targets.to(inputs.device, non_blocking=True))


class AutoEncoderStage(TrainedStage):
    """A stage that trains a whole auto-encoder (MGTA, equation 8): reconstruction + lambda x batch-hard triplet.

    Distances are measured over the batch of all workers, so mining is the same for any number of them.

    Args:
        network: What is trained; shared, not copied.
        task: Makes the views.
        triplet: The triplet loss; None: reconstruction alone, as the baseline's.
        reduction: "mean" over pixels and over anchors; "sum" is equations 6 and 7 to the letter.
    """

    last_block = NUM_BLOCKS

    def __init__(
        self, network: AutoEncoder, task: AutoEncoderTask, *, triplet: TripletTerm | None, reduction: Reduction
    ) -> None:
        super().__init__()
        self.task: AutoEncoderTask = task
        self.head = nn.Identity()  # the network has all there is
        self.network = network
        self._triplet = triplet
        self._reduction = reduction

    def forward(self, inputs: Tensor, targets: Tensor) -> TaskLoss:
        """Compare what comes out with `inputs` (N, 3, S, S), and the embeddings by `targets` (N, 2).

        Returns:
            The loss, and as metrics the means, whatever the reduction: reconstruction (squared error of an element),
            triplet (of an anchor) and active_triplets (share of the anchors, in [0, 1]).
        """
        embeddings, reconstruction = self.network.embed_and_reconstruct(inputs)
        error = reconstruction_loss(reconstruction, inputs)
        # Gradients are averaged over the workers, so a sum over all of them counts world_size times.
        num_elements = inputs.numel() * (distributed.get_world_size() if is_distributed() else 1)
        loss = error * num_elements if self._reduction == "sum" else error
        metrics = {"reconstruction": error.detach()}
        if self._triplet is None:
            return TaskLoss(loss, metrics)
        labels, pictures = gather_rows(targets).unbind(1)
        triplets = batch_hard_triplets(gather_rows(embeddings.float()), labels, image_ids=pictures)
        margin = self._triplet.margin
        loss = loss + self._triplet.weight * triplet_loss(*triplets, margin=margin, reduction=self._reduction)
        metrics["triplet"] = triplet_loss(*(each.detach() for each in triplets), margin=margin)
        metrics["active_triplets"] = active_triplet_share(*triplets, margin=margin)
        return TaskLoss(loss, metrics)


def collapse_warnings(row: Mapping[str, float], margin: Margin) -> list[str]:
    """What an epoch's triplet loss says about the embeddings.

    Where all of them are one point, every distance is 0 and every triplet costs the margin (softplus: log 2).

    Args:
        row: The epoch's numbers; `triplet` and `active_triplets` are looked at if they are there.
        margin: Of the triplet loss.

    Returns:
        A sentence if the loss lies within 1 % of that and, with a hinge, every triplet is active; else nothing.
    """
    if "triplet" not in row:
        return []
    collapsed = math.log(2) if margin == "soft" else float(margin)
    is_stuck = abs(row["triplet"] - collapsed) <= _STUCK * collapsed
    if not is_stuck or (margin != "soft" and row["active_triplets"] < _ALL):
        return []
    return [
        f"collapse: the triplet loss is stuck at {row['triplet']:.4f}, what it is where all embeddings are one point. "
        "Lower method.rounds.lambda or the learning rate, or train the baseline longer."
    ]


def draw_reconstructions(network: AutoEncoder, views: Tensor, path: Path) -> Path:
    """Draw pictures above what the network makes of them; gives the path.

    Args:
        network: In any mode, which is kept.
        views: Normalised pictures, (N, 3, S, S), on its device.
        path: A PNG file; its folder is made.
    """
    from torchvision.utils import make_grid

    was_training = network.training
    network.eval()
    with torch.no_grad():
        rows = torch.cat([views, network(views)]).float().cpu()
    network.train(was_training)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    grid = make_grid((rows * deviation + mean).clamp(0, 1), nrow=len(views), padding=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((grid * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return path
