"""What the tasks and methods minimise, as pure functions of tensors.

All of them compute in float32 whatever the inputs are, also under autocast (float64 stays float64): half precision
can't tell similarities near one apart, and squares of distances overflow it.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Margin = float | Literal["soft"]
"""A distance of at least 0, or "soft" for softplus in place of the hinge."""
Reduction = Literal["mean", "sum"]
"""The default of the losses, or the papers' equations to the letter where those have sums."""

_EPSILON = 1e-12
"""Under the root of a squared distance, whose gradient at zero would else be NaN; as in Hermans et al.'s program."""


def nt_xent_loss(view_a: Tensor, view_b: Tensor, *, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy between two views of a batch.

    Every embedding must pick its other view among the 2N - 1 others. Negatives of other workers count once the caller
    has gathered them, with their gradient.

    Args:
        view_a: Projections, (N, D); normalised here.
        view_b: Projections of the other view, (N, D), in the same order.
        temperature: Divides the cosine similarities; above 0.

    Returns:
        Scalar, the mean over 2N anchors, in nats.

    Raises:
        ValueError: If the shapes differ or the temperature is not positive.

    Source: Chen et al. 2020 (SimCLR), equation 1. Their program adds the means of the two views, twice this value.
    """
    return functional.cross_entropy(*nt_xent_logits(view_a, view_b, temperature=temperature))


def nt_xent_logits(view_a: Tensor, view_b: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The choice that `nt_xent_loss` is the cross entropy of.

    Args:
        view_a: Projections, (N, D); normalised here.
        view_b: Projections of the other view, (N, D), in the same order.
        temperature: Divides the cosine similarities; above 0.

    Returns:
        Logits (2N, 2N), a row an anchor, view_a's before view_b's, with -inf on the diagonal: an anchor is not its own
        candidate. Targets (2N,), the column of each anchor's other view.

    Raises:
        ValueError: If the shapes differ or the temperature is not positive.
    """
    _check_rows("view_a", view_a)
    _check_shape("view_b", view_b, view_a.shape, "view_a's")
    _check_temperature(temperature)
    embeddings = functional.normalize(_in_full_precision(torch.cat([view_a, view_b])), dim=1)
    with torch.autocast(embeddings.device.type, enabled=False):
        logits = (embeddings / temperature) @ embeddings.T
    logits.fill_diagonal_(-math.inf)
    targets = torch.arange(len(embeddings), device=embeddings.device).roll(len(view_a))
    return logits, targets


def info_nce_loss(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of finding each query's key among that key and the queue.

    Args:
        query: Projections, (N, D); normalised here.
        key: The key encoder's projections of the other views, (N, D), in the same order; normalised here. No gradient
            flows into them.
        queue: Keys of earlier batches, (K, D), whose rows have length one already: normalising 65,536 of them in every
            step is work for nothing, so their owner does it when they enter.
        temperature: Divides the cosine similarities; above 0.

    Returns:
        Scalar, the mean over N queries, in nats.

    Raises:
        ValueError: If the shapes don't fit or the temperature is not positive.

    Source: He et al. 2020 (MoCo), equation 1 and algorithm 1.
    """
    logits = info_nce_logits(query, key, queue, temperature=temperature)
    return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def info_nce_logits(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """The choice that `info_nce_loss` is the cross entropy of; the arguments are the same.

    Args:
        query: Projections, (N, D); normalised here.
        key: Projections of the other views, (N, D); normalised here, without gradient.
        queue: Keys of earlier batches, (K, D), normalised already. It is copied, so its owner may write into it before
            the backward pass.
        temperature: Divides the cosine similarities; above 0.

    Returns:
        Logits (N, 1 + K). Class 0, the query's own key, is right; where all are equal an argmax takes it too.

    Raises:
        ValueError: If the shapes don't fit or the temperature is not positive.
    """
    _check_rows("query", query)
    _check_shape("key", key, query.shape, "query's")
    _check_rows("queue", queue)
    _check_shape("queue", queue, (len(queue), query.shape[1]), "query's width")
    _check_temperature(temperature)
    query = functional.normalize(_in_full_precision(query), dim=1) / temperature
    key = functional.normalize(key.detach().to(query.dtype), dim=1)
    negatives = queue.detach().to(query.dtype, copy=True)
    with torch.autocast(query.device.type, enabled=False):
        return torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], dim=1)


def batch_hard_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: Margin,
    image_ids: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Triplet loss of every anchor with its farthest positive and its nearest negative in the batch.

    Callers that also want the share of active triplets call the three functions below instead.

    Args:
        embeddings: (N, D), not normalised.
        labels: Cluster of each row, (N,).
        margin: By how much the negative must be farther than the positive, at least 0; "soft" replaces the hinge by
            softplus, which never lets go.
        image_ids: Picture of each row, (N,): rows of the same picture are no positives of each other.
        reduction: "mean" over the anchors that have a triplet; "sum" is MGTA's equation 6 to the letter.

    Returns:
        Scalar; zero, with a gradient of zero, if no anchor has both a positive and a negative.

    Raises:
        ValueError: If the shapes don't fit, or the margin or the reduction is none of these.

    Source: Hermans et al. 2017, equation 5 ("batch hard") and their soft margin; MGTA, equations 3 and 6.
    """
    positives, negatives, exist = batch_hard_triplets(embeddings, labels, image_ids=image_ids)
    return triplet_loss(positives, negatives, exist, margin=margin, reduction=reduction)


def batch_hard_triplets(
    embeddings: Tensor, labels: Tensor, *, image_ids: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances to each anchor's hardest positive and hardest negative.

    Rows without a triplet are marked and not left out: for their number a host would have to wait for its GPU.

    Args:
        embeddings: (N, D); the distances are plain Euclidean ones, neither squared nor of normalised vectors.
        labels: Cluster of each row, (N,); every value is a cluster.
        image_ids: Picture of each row, (N,). None: all are different.

    Returns:
        For each row the distance to the farthest row of the same label and another picture, (N,), the distance to the
        nearest row of another label, (N,), and whether there are both, bool (N,); without, its distances mean nothing.

    Raises:
        ValueError: If the shapes don't fit.
    """
    _check_rows("embeddings", embeddings)
    _check_shape("labels", labels, embeddings.shape[:1], "one for each embedding")
    if image_ids is not None:
        _check_shape("image_ids", image_ids, embeddings.shape[:1], "one for each embedding")
    embeddings = _in_full_precision(embeddings)
    # Autograd sees the 2N distances that are used, not all N x N.
    positives, negatives, exist = _mine(embeddings.detach(), labels, image_ids)
    anchors = embeddings.view_as(embeddings)  # what comes back from both distances is added up before the rest
    # Not by indexing, whose gradients a CPU with several threads adds up in any order.
    positive_distances = _distances(anchors, embeddings.index_select(0, positives))
    negative_distances = _distances(anchors, embeddings.index_select(0, negatives))
    return positive_distances, negative_distances, exist


def triplet_loss(
    positive_distances: Tensor,
    negative_distances: Tensor,
    exist: Tensor,
    *,
    margin: Margin,
    reduction: Reduction = "mean",
) -> Tensor:
    """Hinge or softplus of the triplets' violations; see `batch_hard_triplet_loss`.

    Args:
        positive_distances: From each anchor to its positive, (N,).
        negative_distances: From each anchor to its negative, (N,).
        exist: Which anchors have both, bool (N,); the others count for nothing.
        margin: At least 0, or "soft".
        reduction: "mean" or "sum" over the anchors.

    Returns:
        Scalar; zero, with a gradient of zero, if no anchor has both.

    Raises:
        ValueError: If the shapes differ, or the margin or the reduction is none of these.
    """
    _check_reduction(reduction)
    violations = _violations(positive_distances, negative_distances, exist, margin)
    terms = functional.softplus(violations) if margin == "soft" else violations.relu()
    total = torch.where(exist, terms, 0).sum()
    return total / exist.sum().clamp(min=1) if reduction == "mean" else total


def active_triplet_share(
    positive_distances: Tensor, negative_distances: Tensor, exist: Tensor, *, margin: Margin
) -> Tensor:
    """The share of anchors whose triplet is active: positive distance - negative distance + margin is above zero.

    Args:
        positive_distances: From each anchor to its positive, (N,).
        negative_distances: From each anchor to its negative, (N,).
        exist: Which anchors have both, bool (N,); the others count for nothing.
        margin: At least 0, or "soft", which counts as 0 here: its every triplet has a gradient, so what is told is
            how many are in the wrong order.

    Returns:
        Scalar in [0, 1], without gradient; 0 if no anchor has both.

    Raises:
        ValueError: If the shapes differ or the margin is none of these.
    """
    violations = _violations(positive_distances.detach(), negative_distances.detach(), exist, margin)
    return ((violations > 0) & exist).sum() / exist.sum().clamp(min=1)


def reconstruction_loss(reconstruction: Tensor, target: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error of an auto-encoder's output.

    Args:
        reconstruction: (N, C, H, W), or any other shape.
        target: What it should be, in the same shape.
        reduction: "mean" over all elements (MGTA, section 4.2: "Mean Square Error"); "sum" over the pixels and the
            images (equation 7 to the letter), 150,528 terms for an image of 224 px, beside which a triplet loss drowns.

    Returns:
        Scalar.

    Raises:
        ValueError: If the shapes differ, the tensors are empty or the reduction is neither.

    Source: MGTA, section 3.3.2.
    """
    _check_reduction(reduction)
    _check_shape("reconstruction", reconstruction, target.shape, "the target's")
    if not target.numel():
        raise ValueError(f"target: must hold at least one image, got shape {tuple(target.shape)}")
    return functional.mse_loss(_in_full_precision(reconstruction), _in_full_precision(target), reduction=reduction)


def _mine(embeddings: Tensor, labels: Tensor, image_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of each anchor's hardest positive and hardest negative, and whether it has both, each (N,)."""
    # By matrix product it would be faster, but close points far from zero would lose the digits of their distance.
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")  # (N, N)
    pictures = torch.arange(len(labels), device=labels.device) if image_ids is None else image_ids
    is_same_label = labels[:, None] == labels
    is_positive = is_same_label & (pictures[:, None] != pictures)
    positives = distances.masked_fill(~is_positive, -math.inf).argmax(1)
    negatives = distances.masked_fill(is_same_label, math.inf).argmin(1)
    return positives, negatives, is_positive.any(1) & ~is_same_label.all(1)


def _distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distance of each row to the row beside it, (N,)."""
    return ((left - right).square().sum(1) + _EPSILON).sqrt()


def _violations(positive_distances: Tensor, negative_distances: Tensor, exist: Tensor, margin: Margin) -> Tensor:
    """By how much each triplet breaks its margin; "soft" is no margin."""
    if positive_distances.ndim != 1:
        raise ValueError(f"positive_distances: must be a vector, got shape {tuple(positive_distances.shape)}")
    _check_shape("negative_distances", negative_distances, positive_distances.shape, "positive_distances'")
    _check_shape("exist", exist, positive_distances.shape, "positive_distances'")
    if margin == "soft":
        return positive_distances - negative_distances
    if isinstance(margin, str) or not 0 <= margin < math.inf:
        raise ValueError(f"margin: must be a number of at least 0 or 'soft', got {margin!r}")
    return positive_distances - negative_distances + margin


def _in_full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_rows(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name}: must be a matrix of at least one row and column, got shape {tuple(tensor.shape)}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], whose: str) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: must have the shape {tuple(shape)}, {whose}, got {tuple(tensor.shape)}")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: must be above 0, got {temperature}")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: must be 'mean' or 'sum', got {reduction!r}")
