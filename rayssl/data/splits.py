"""Training, validation and test pictures: seeded subsets in which classes keep their shares."""

from dataclasses import dataclass

import numpy as np

from rayssl.data.pictures import ImageList

# Independent random streams of one seed.
_LIMIT_STREAM, _HOLD_OUT_STREAM = 1, 2
TEST_STREAM = 3
"""The random stream of sets that have no test pictures of their own; see `hold_out`."""


@dataclass(frozen=True)
class Splits:
    """The pictures of a run.

    Attributes:
        train: What pre-training sees.
        validation: Held out of the training pictures, for probes; None if nothing is.
        test: The set's own test pictures; None if it has none.
    """

    train: ImageList
    validation: ImageList | None
    test: ImageList | None


def stratified_subset(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """A random subset in which classes have their shares, and at least one picture each while `size` allows it.

    Smaller subsets of a seed lie inside larger ones. Pictures without a label count as one more class.

    Args:
        labels: (N,) integers.
        size: Pictures to take, at most N.
        seed: Decides which.

    Returns:
        Indices, int64 (size,), ascending.
    """
    generator = np.random.default_rng([seed, _LIMIT_STREAM])
    groups = _shuffled_classes(labels, generator)
    order = np.concatenate(groups)
    # A class's pictures are spread evenly over (0, 1], its first one before all; the smallest are taken.
    places = np.concatenate([np.arange(len(group)) / len(group) for group in groups])
    taken = np.lexsort((generator.random(len(order)), places))[:size]
    return np.sort(order[taken])


def hold_out(
    images: ImageList, fraction: float, *, seed: int, stream: int = _HOLD_OUT_STREAM
) -> tuple[ImageList, ImageList | None]:
    """Splits off a random share of each class: at least one picture of it, but never its last.

    If some pictures have labels, only those are held out, since the rest can't tell anything about a probe.

    Args:
        images: What to split.
        fraction: Share to hold out, in [0, 1).
        seed: Decides which.
        stream: Keeps apart the draws of one seed, as `TEST_STREAM` does.

    Returns:
        The pictures that stay, in their order, and those held out; None if those are none.
    """
    if fraction == 0:
        return images, None
    groups = _shuffled_classes(images.labels, np.random.default_rng([seed, stream]))
    if images.has_labels:
        groups = [group for group in groups if images.labels[group[0]] >= 0]
    shares = [group[: min(max(1, round(fraction * len(group))), len(group) - 1)] for group in groups]
    held_out = np.sort(np.concatenate(shares)) if shares else np.array([], dtype=np.int64)
    if len(held_out) == 0:
        return images, None
    staying = np.setdiff1d(np.arange(len(images)), held_out, assume_unique=True)
    return images.select(staying), images.select(held_out)


def _shuffled_classes(labels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """The indices of each class, in random order; classes ascend."""
    shuffled = generator.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.split(grouped, np.flatnonzero(np.diff(labels[grouped])) + 1) if len(labels) else []
