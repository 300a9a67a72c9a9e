"""Linear classifiers on cached features, one for each block, trained in one pass."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayssl.errors import RaysslError
from rayssl.evaluation.base import derive_seed

REFERENCE_BATCH = 256
MILESTONES = (8 / 28, 16 / 28, 24 / 28)
BatchNorm = Literal["plain", "affine", "none"]
"""How a block's features are normalised before the classifier: without or with learned scale and shift, or not."""


def fit_linear_heads(
    train: Mapping[int, Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    channels: Mapping[int, int] | None = None,
    epochs: int = 28,
    learning_rate: float = 0.01,
    batch_size: int = REFERENCE_BATCH,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
    milestones: Sequence[float] = MILESTONES,
    batchnorm: BatchNorm = "plain",
    rows: Tensor | None = None,
    seed: int,
    device: torch.device | str,
) -> "LinearHeads":
    """Train a linear head on each block's cached features, all in one pass.

    The losses are added up; as no parameter is shared, every head is trained as if alone. For one seed, device and
    number of threads the result is the same. An epoch is cut into batches of nearly equal size, none above
    `batch_size`, so no picture is dropped and none is alone.

    Args:
        train: Block -> (N, F), any floating-point type (converted batch by batch) and any device; what a GPU has room
            for is best there already.
        labels: (N,) in 0..num_classes - 1 for all rows that are used.
        num_classes: Number of classes.
        channels: Block -> channels of its map, for the normalisation; see `LinearHeads`.
        epochs: Passes over the pictures.
        learning_rate: Of SGD, as it stands: not scaled by the batch size.
        batch_size: Most pictures a step, at least 2.
        momentum: Of SGD, in [0, 1).
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: On weights and biases.
        milestones: Shares of all steps, in (0, 1), after which the learning rate falls to a tenth.
        batchnorm: See `LinearHeads`.
        rows: Indices of the pictures to train on, (M,); None: all.
        seed: Decides initial weights and order.
        device: Where the heads are trained and stay.

    Returns:
        The heads, in train mode.

    Raises:
        ValueError: If there are fewer than two pictures, a label is out of range, or numbers of rows differ.
        RaysslError: If the loss is not finite.
    """
    rows = torch.arange(len(labels)) if rows is None else rows.cpu()
    _check_training_data(train, labels, rows, num_classes)
    labels = labels.to(device)
    dims = {block: features.shape[1] for block, features in train.items()}
    heads = LinearHeads(dims, num_classes, channels=channels, batchnorm=batchnorm, seed=seed)
    heads.to(device)
    optimizer = torch.optim.SGD(
        heads.parameters(),
        learning_rate,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
    )
    num_batches = ceil(len(rows) / batch_size)
    drops = [round(share * epochs * num_batches) for share in milestones]
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        told = labels[order.to(labels.device)].tensor_split(num_batches)
        for batch, (chosen, targets) in enumerate(zip(order.tensor_split(num_batches), told, strict=True)):
            step = epoch * num_batches + batch
            optimizer.param_groups[0]["lr"] = learning_rate * 0.1 ** bisect_right(drops, step)
            logits = heads(_select(train, chosen, device))
            losses = torch.stack([functional.cross_entropy(block_logits, targets) for block_logits in logits.values()])
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        # A value that is not finite never leaves the weights, so one look an epoch finds it.
        if not losses.isfinite().all():
            bad = ", ".join(f"B{block}" for block, loss in zip(logits, losses, strict=True) if not loss.isfinite())
            raise RaysslError(
                f"linear probe: the loss of {bad} is not finite in epoch {epoch + 1} at learning rate "
                f"{learning_rate:g}. Either the encoder's features are not finite, or the learning rate is too high."
            )
    return heads


def top1(
    heads: "LinearHeads", features: Mapping[int, Tensor], labels: Tensor, *, batch_size: int = 1024
) -> dict[int, float]:
    """Accuracy of each head, tested in batches; the heads' mode is restored.

    Args:
        heads: Trained heads of at least these blocks.
        features: Block -> (N, F).
        labels: (N,); pictures with -1 are left out.
        batch_size: Pictures at a time.

    Returns:
        Block -> share of pictures told rightly, in [0, 1].

    Raises:
        ValueError: If no picture has a label.
    """
    device = next(heads.parameters()).device
    labels = labels.cpu()
    rows = (labels >= 0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("labels: must name the class of at least one picture")
    num_correct = {block: torch.zeros((), dtype=torch.int64, device=device) for block in features}
    training = heads.training
    heads.eval()
    with torch.inference_mode():
        for chosen in rows.split(batch_size):
            targets = labels[chosen].to(device, non_blocking=True)
            for block, logits in heads(_select(features, chosen, device)).items():
                num_correct[block] += (logits.argmax(dim=1) == targets).sum()
    heads.train(training)
    return {block: int(correct) / len(rows) for block, correct in num_correct.items()}


class LinearHeads(nn.Module):
    """A normalisation and a linear classifier for each block (Goyal et al. 2019, who learn no scale and shift).

    The cells of a channel share a mean and a deviation, as in Goyal et al.'s SpatialBN. In eval mode these are
    averages over all training batches, each counting the same: the features of a frozen encoder don't drift, so
    nothing speaks for forgetting the early ones.

    Args:
        feature_dims: Block -> number of features, channels x cells.
        num_classes: Number of classes.
        channels: Block -> number of channels; None: each feature is normalised by itself.
        batchnorm: Whether features are normalised, and whether with learned scale and shift.
        seed: Decides the weights, N(0, 0.01), each block's by itself; biases are 0. torch's global generator is not
            touched.
    """

    def __init__(
        self,
        feature_dims: Mapping[int, int],
        num_classes: int,
        *,
        channels: Mapping[int, int] | None = None,
        batchnorm: BatchNorm = "plain",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        for block, dim in feature_dims.items():
            linear = nn.utils.skip_init(nn.Linear, dim, num_classes)
            nn.init.normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(derive_seed(seed, block)))
            nn.init.zeros_(linear.bias)
            groups = channels[block] if channels is not None else dim
            norm: nn.Module = nn.BatchNorm1d(groups, affine=batchnorm == "affine", momentum=None)
            self.heads[f"b{block}"] = nn.Sequential(
                OrderedDict(
                    cells=nn.Unflatten(1, (groups, dim // groups)),
                    norm=nn.Identity() if batchnorm == "none" else norm,
                    flat=nn.Flatten(),
                    linear=linear,
                )
            )

    def forward(self, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Logits (N, num_classes) of the blocks whose features (N, F) are given."""
        return {block: self.heads[f"b{block}"](block_features) for block, block_features in features.items()}


def _select(features: Mapping[int, Tensor], chosen: Tensor, device: torch.device | str) -> dict[int, Tensor]:
    """Rows of each block's features, (M, F), as float32 on the heads' device; `chosen` (M,) lies on the CPU."""
    selected = {}
    for block, whole in features.items():
        batch = whole[chosen.to(whole.device, non_blocking=True)]
        if torch.device(device).type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # or the copy would wait for what is queued
        selected[block] = batch.to(device, non_blocking=True).float()
    return selected


def _check_training_data(train: Mapping[int, Tensor], labels: Tensor, rows: Tensor, num_classes: int) -> None:
    if len(rows) < 2:
        raise ValueError(f"labels: must be those of at least two pictures, got {len(rows)}")
    for block, features in train.items():
        if len(features) != len(labels):
            raise ValueError(f"train: block {block} has {len(features)} rows for {len(labels)} labels")
    used = labels.cpu()[rows]
    if used.min() < 0 or used.max() >= num_classes:
        raise ValueError(f"labels: must be 0..{num_classes - 1}, got {int(used.min())}..{int(used.max())}")
