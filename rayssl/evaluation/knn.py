"""Weighted nearest neighbours: an evaluation without anything to train."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_MOST_SIMILARITIES = 2**25
"""Similarities that are held at a time; 128 MiB in float32."""


def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = (20, 200),
    temperature: float = 0.07,
    num_classes: int,
) -> dict[int, float]:
    """Accuracy of a weighted vote among the k most similar training pictures.

    Similarity is the cosine; a neighbour votes for its class with the weight exp(similarity / temperature).

    Args:
        train_features: (N, D), any floating-point type; all is computed in float32 on their device.
        train_labels: (N,) in 0..num_classes - 1; pictures with -1 (no label) don't vote.
        test_features: (M, D).
        test_labels: (M,); pictures with -1 are not counted.
        k: Numbers of neighbours, each at least 1; with more than there are labelled training pictures, all vote.
        temperature: Above 0; small values listen to the nearest alone.
        num_classes: Number of classes.

    Returns:
        For each k the share of test pictures told rightly, in [0, 1]; ties go to the lower class.

    Raises:
        ValueError: If a k or the temperature is out of range, or either side has no labelled picture.

    Source: Wu et al. 2018 (InstDisc), section 3.4.
    """
    if not k or min(k) < 1:
        raise ValueError(f"k: must be numbers of at least 1, got {list(k)}")
    if temperature <= 0:
        raise ValueError(f"temperature: must be above 0, got {temperature}")
    device = train_features.device
    voters, voter_labels = _labelled(train_features, train_labels.to(device), "train_labels")
    queries, query_labels = _labelled(test_features, test_labels.to(test_features.device), "test_labels")
    voters = functional.normalize(voters.float(), dim=1)
    chunk_size = max(1, _MOST_SIMILARITIES // len(voters))
    num_correct = dict.fromkeys(k, 0)
    for chunk, labels in zip(queries.split(chunk_size), query_labels.split(chunk_size), strict=True):
        directions = functional.normalize(chunk.to(device).float(), dim=1)
        similarities, neighbours = (directions @ voters.T).topk(min(max(k), len(voters)), dim=1)
        weights = (similarities / temperature).exp()
        classes = voter_labels[neighbours]
        for count in num_correct:
            votes = torch.zeros(len(chunk), num_classes, device=device)
            votes.scatter_add_(1, classes[:, :count], weights[:, :count])
            num_correct[count] += int((votes.argmax(dim=1) == labels.to(device)).sum())
    return {count: correct / len(queries) for count, correct in num_correct.items()}


def _labelled(features: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The pictures that have a label; nothing is copied if all have one."""
    is_labelled = labels >= 0
    if not is_labelled.any():
        raise ValueError(f"{name}: must name the class of at least one picture")
    if is_labelled.all():
        return features, labels
    return features[is_labelled], labels[is_labelled]
