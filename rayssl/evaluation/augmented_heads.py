"""Linear heads on a frozen encoder that sees new random crops in each epoch: the papers' full form of linear probes."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rayssl.backbones import Backbone
from rayssl.data import Pictures
from rayssl.data.augment import draw_resized_crop, flip, normalize, resized_crop
from rayssl.data.loaders import TrainLoader
from rayssl.errors import RaysslError
from rayssl.evaluation.linear_heads import BatchNorm, LinearHeads

Pool = Callable[[Tensor, int], Tensor]


def fit_augmented_heads(
    encoder: Backbone,
    pictures: Pictures,
    rows: np.ndarray,
    *,
    blocks: Sequence[int],
    pool: Pool,
    image_size: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    milestones: Sequence[float],
    batchnorm: BatchNorm,
    seed: int,
    device: torch.device,
) -> LinearHeads:
    """Train a linear head on each block, all in one pass over the encoder; nothing is cached.

    Args:
        encoder: Frozen; left in eval mode.
        pictures: With labels.
        rows: Indices of the labelled pictures to train on, (N,), at least two.
        blocks: Which blocks, of 1..5; nothing above the highest is run.
        pool: Turns a block's map (N, C, H, W) and the block's number into features (N, F).
        image_size: Side of the views, in pixels.
        epochs: See `fit_linear_heads`, as for the other settings; one to `batch_size` - 1 pictures of a random order
            are left out in an epoch where the batches don't come out even.
        learning_rate: As there.
        batch_size: As there.
        momentum: As there.
        nesterov: As there.
        weight_decay: As there.
        milestones: As there.
        batchnorm: As there.
        seed: Decides initial weights, order and crops.
        device: Where the encoder is.

    Returns:
        The heads, in train mode.

    Raises:
        RaysslError: If the loss is not finite.
    """
    encoder.eval()
    blank = torch.zeros(1, 3, image_size, image_size, device=device)
    dims = {block: features.shape[1] for block, features in _pooled(encoder, blank, blocks, pool).items()}
    channels = {block: encoder.block_channels[block - 1] for block in blocks}
    heads = LinearHeads(dims, len(pictures.classes), channels=channels, batchnorm=batchnorm, seed=seed).to(device)
    optimizer = torch.optim.SGD(
        heads.parameters(),
        learning_rate,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
    )
    num_steps = steps_an_epoch(len(rows), batch_size)
    drops = [round(share * epochs * num_steps) for share in milestones]
    for epoch in range(epochs):
        batches = augmented_batches(
            pictures, rows, epoch=epoch, batch_size=batch_size, image_size=image_size, seed=seed, device=device
        )
        for step, (views, targets) in enumerate(batches, start=epoch * num_steps):
            optimizer.param_groups[0]["lr"] = learning_rate * 0.1 ** bisect_right(drops, step)
            logits = heads(_pooled(encoder, views, blocks, pool))
            losses = torch.stack([functional.cross_entropy(each, targets) for each in logits.values()])
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        if not losses.isfinite().all():
            bad = ", ".join(f"B{block}" for block, loss in zip(logits, losses, strict=True) if not loss.isfinite())
            raise RaysslError(
                f"linear probe: the loss of {bad} is not finite in epoch {epoch + 1} at learning rate "
                f"{learning_rate:g}. Either the encoder's features are not finite, or the learning rate is too high."
            )
    return heads


def augmented_batches(
    pictures: Pictures,
    rows: np.ndarray,
    *,
    epoch: int,
    batch_size: int,
    image_size: int,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random resized crops (8 % to 100 % of the area) and flips of an epoch, in batches of one size.

    Yields:
        Normalised views (n, 3, image_size, image_size) and their labels (n,), on the device.
    """
    num_steps = steps_an_epoch(len(rows), batch_size)
    images_per_step = len(rows) // num_steps

    def order(number: int) -> np.ndarray:
        shuffled = np.random.default_rng([seed, number]).permutation(rows)
        return shuffled[: num_steps * images_per_step].reshape(num_steps, images_per_step)

    loader = TrainLoader(pictures, images_per_step=images_per_step, seed=seed, order=order)
    with closing(loader.epoch(epoch, device=device)) as batches:
        for batch in batches:
            boxes = draw_resized_crop(batch.draws, *batch.images.shape[-2:])
            views = flip(resized_crop(batch.images, boxes, image_size), batch.draws.chance(0.5))
            views = normalize(views).contiguous(memory_format=torch.channels_last)
            yield views, batch.labels.to(device, non_blocking=True)


def steps_an_epoch(num_images: int, batch_size: int) -> int:
    """Steps of at most `batch_size` pictures, as equal as possible."""
    return ceil(num_images / batch_size)


@torch.no_grad()
def streamed_top1(
    encoder: Backbone,
    heads: LinearHeads,
    batches: Iterable[Tensor],
    labels: Tensor,
    *,
    blocks: Sequence[int],
    pool: Pool,
) -> dict[int, float]:
    """Accuracy of each head, batch by batch; nothing is cached, and both are left in eval mode.

    Args:
        encoder: As for training.
        heads: Trained.
        batches: Normalised views, in order, on the encoder's device.
        labels: (N,), at least one, none -1.
        blocks: Those of the heads.
        pool: As for training.

    Returns:
        Block -> share of pictures told rightly, in [0, 1].
    """
    encoder.eval()
    heads.eval()
    num_correct = dict.fromkeys(blocks, 0)
    start = 0
    for views in batches:
        targets = labels[start : start + len(views)].to(views.device)
        start += len(views)
        for block, logits in heads(_pooled(encoder, views, blocks, pool)).items():
            num_correct[block] += int((logits.argmax(dim=1) == targets).sum())
    return {block: correct / len(labels) for block, correct in num_correct.items()}


@torch.no_grad()
def _pooled(encoder: Backbone, views: Tensor, blocks: Sequence[int], pool: Pool) -> dict[int, Tensor]:
    """Features of the blocks; a map is dropped as soon as the next one is there."""
    features, pooled = views, {}
    for number, block in enumerate(encoder.blocks[: max(blocks)], start=1):
        features = block(features)
        if number in blocks:
            pooled[number] = pool(features, number).float()
    return pooled
