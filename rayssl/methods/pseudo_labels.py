"""Pseudo labels of MGTA: features on the workers that compute them, k-means, labels, and what is told about them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, distributed

from rayssl.backbones import NUM_BLOCKS, Backbone
from rayssl.clustering import choose_num_clusters, kmeans, normalized_mutual_information, whiten
from rayssl.data import Pictures
from rayssl.data.loaders import plain_views
from rayssl.errors import TrainingError
from rayssl.evaluation.features import extract_features
from rayssl.runtime import Runtime

Whitening = int | Literal[True] | None
"""Principal directions to keep before k-means; True: all in which the features vary; None: features as they are."""

_VIEWS_AT_ONCE = 250
_MOST_OF_A_CLUSTER = 0.5


@dataclass(frozen=True, eq=False)
class Labelling:
    """Clusters of some pictures, by one network; the same on every worker."""

    labels: np.ndarray
    """Each picture's cluster, int64 (n,), in the order of the pictures asked for; numbered by `renumber`."""
    num_clusters: int
    """As many as were asked for, or were chosen."""
    facts: dict[str, float]
    """clusters/...: what is recorded of them."""
    warnings: tuple[str, ...]
    """What the person who waits should know."""


def label_pictures(
    encoder: Backbone,
    pictures: Pictures,
    indices: np.ndarray,
    *,
    clusters: int | Sequence[int],
    whitening: Whitening,
    image_size: int,
    eval_resize: int,
    seed: int,
    runtime: Runtime,
) -> Labelling:
    """Cluster pictures by a network's embeddings; called by all workers together.

    Each worker computes and keeps the embeddings of its share; only sums of k-means and the labels travel.

    Args:
        encoder: The network that labels, on the runtime's device; left as it is.
        pictures: The whole set.
        indices: Which of its pictures, int64 (n,).
        clusters: How many, or the numbers among which the Calinski-Harabasz score chooses.
        whitening: Done before k-means.
        image_size: Side of the views, in pixels.
        eval_resize: Short side from which the views take the centre.
        seed: Of k-means.
        runtime: The worker group.

    Raises:
        TrainingError: If the embeddings can't be whitened or clustered, because they don't vary or are not finite.

    Source: MGTA, section 3.2.
    """
    group = distributed.group.WORLD if runtime.world_size > 1 else None
    embeddings = extract_embeddings(
        encoder, pictures, indices, image_size=image_size, eval_resize=eval_resize, runtime=runtime
    )
    facts: dict[str, float] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            if whitening is not None:
                embeddings = whiten(embeddings, num_components=None if whitening is True else whitening, group=group)
            if isinstance(clusters, int):
                result = kmeans(embeddings, clusters, seed=seed, group=group)
            else:
                choice = choose_num_clusters(embeddings, clusters, seed=seed, group=group)
                result = choice.result
                facts = {f"clusters/ch_k{number}": score for number, score in choice.scores.items()}
        except ValueError as error:
            raise TrainingError(
                f"no pseudo labels can be made of the embeddings ({error}). "
                "Lower the learning rate or method.rounds.lambda, or leave out method.whiten."
            ) from error
    labels = renumber(np.concatenate([share.numpy() for share in runtime.gather(result.labels.cpu())]))
    facts |= {
        "clusters/calinski_harabasz": result.calinski_harabasz,
        "clusters/inertia": result.inertia,
        **describe_sizes(labels),
    }
    told = tuple(str(each.message) for each in caught) + size_warnings(labels)
    return Labelling(labels, len(result.centers), facts, told)


def extract_embeddings(
    encoder: Backbone,
    pictures: Pictures,
    indices: np.ndarray,
    *,
    image_size: int,
    eval_resize: int,
    runtime: Runtime,
) -> Tensor:
    """The averages of B5's maps of this worker's share of the pictures, (n_r, C), in eval mode, without augmentation.

    The shares are contiguous and equal within one, in rank order.
    """
    mine = np.array_split(indices, runtime.world_size)[runtime.rank]
    views = plain_views(
        pictures,
        mine,
        image_size=image_size,
        eval_resize=eval_resize,
        batch_size=_VIEWS_AT_ONCE,
        device=runtime.device,
    )
    features = extract_features(
        encoder, views, blocks=[NUM_BLOCKS], pool=_average, device=runtime.device, num_images=len(mine)
    )
    return features[NUM_BLOCKS].to(runtime.device)


def renumber(labels: np.ndarray) -> np.ndarray:
    """Number clusters in the order of their first pictures, int64 (n,): 0, 1, ...

    Two starts of k-means may end in the same clusters, and rounding, which depends on the number of workers, choose
    between their names. Batches are drawn by the names.
    """
    _, first, clusters = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[clusters]


def describe_sizes(labels: np.ndarray) -> dict[str, float]:
    """Numbers about the clusters that have a picture, labels being integers (n,) from 0."""
    sizes = _sizes(labels)
    return {
        "clusters/num": float(len(sizes)),
        "clusters/smallest": float(sizes.min()),
        "clusters/median": float(np.median(sizes)),
        "clusters/largest": float(sizes.max()),
        "clusters/singletons": float((sizes == 1).sum()),
    }


def size_warnings(labels: np.ndarray) -> tuple[str, ...]:
    """A sentence if one cluster holds more than half of the pictures."""
    share = _sizes(labels).max() / len(labels)
    if share <= _MOST_OF_A_CLUSTER:
        return ()
    return (
        f"one cluster holds {share:.0%} of the pictures: the labels tell little apart, which is how a collapse begins",
    )


def agreement(labels: np.ndarray, others: np.ndarray) -> float | None:
    """Normalised mutual information of two labellings of a set, over the pictures that both label.

    Args:
        labels: int64 (N,), -1 where a picture has no label.
        others: The same of the other labelling.

    Returns:
        From 0 (independent) to 1 (the same but for names); None if no picture has both labels.
    """
    both = (labels >= 0) & (others >= 0)
    if not both.any():
        return None
    return normalized_mutual_information(torch.from_numpy(labels[both]), torch.from_numpy(others[both]))


def write_histogram(labels: np.ndarray, path: Path) -> Path:
    """Write how many clusters have how many pictures, in steps of powers of two, as text; gives the path."""
    sizes = _sizes(labels)
    exponents = np.floor(np.log2(sizes)).astype(int)
    counts = np.bincount(exponents)
    scale = max(1.0, counts.max() / 60)
    lines = [f"{len(labels)} pictures in {len(sizes)} clusters of {sizes.min()} to {sizes.max()}", ""]
    lines += [f"{'pictures':>15} {'clusters':>9}"]
    for exponent, count in enumerate(counts):
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        span = str(low) if low == high else f"{low} - {high}"
        lines.append(f"{span:>15} {count:>9} {'#' * round(count / scale)}".rstrip())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def _sizes(labels: np.ndarray) -> np.ndarray:
    sizes = np.bincount(labels)
    return sizes[sizes > 0]


def _average(feature_map: Tensor, block: int) -> Tensor:
    return feature_map.mean((2, 3))
