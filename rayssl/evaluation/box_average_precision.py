"""How well boxes are found: average precision at thresholds of overlap, by the rules of PASCAL VOC."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from rayssl.data.voc_objects import Objects

_POINTS = 11


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one picture.

    Attributes:
        boxes: float32 (D, 4), left, top, right, bottom in pixels.
        scores: float32 (D,), higher is surer.
        labels: int64 (D,), indices into the classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def box_average_precisions(
    found: Sequence[Detections],
    true: Sequence[Objects],
    *,
    num_classes: int,
    overlaps: Sequence[float],
    eleven_point: bool,
) -> np.ndarray:
    """Average precision of each class at each threshold of overlap.

    A detection is held against the object of its class and picture that it overlaps most (intersection over union). If
    the overlap exceeds the threshold, it is a hit, unless a surer detection has hit that object already, which makes it
    a false alarm; if the object is difficult, the detection is left out. Any other detection is a false alarm.
    Detections with the same score count together, so that their order decides nothing but which of them hits.

    Args:
        found: Of each picture.
        true: Of each picture, in the same order.
        num_classes: Number of classes.
        overlaps: Thresholds, in [0, 1).
        eleven_point: See `voc_average_precision`.

    Returns:
        float64 (num_classes, number of thresholds); nan for a class without objects that are not difficult.

    Raises:
        ValueError: If there are not as many pictures found as true ones, or a score is nan.

    Source: Everingham et al. 2010 (the PASCAL VOC challenge), section 4.2.2, and the development kit of 2007; no other
    object is tried where the most overlapping one is taken.
    """
    if len(found) != len(true):
        raise ValueError(f"found: must be as many pictures as true, {len(true)}, got {len(found)}")
    result = np.full((num_classes, len(overlaps)), nan)
    for label in range(num_classes):
        scores, best, target, difficult = _candidates(found, true, label)
        if np.isnan(scores).any():
            raise ValueError("found: scores must be numbers, got nan")
        num_objects = int((~difficult).sum())
        if num_objects == 0:
            continue
        for column, overlap in enumerate(overlaps):
            recall, precision = _curve(scores, best, target, difficult, num_objects, overlap=overlap)
            result[label, column] = voc_average_precision(recall, precision, eleven_point=eleven_point)
    return result


def voc_average_precision(recall: np.ndarray, precision: np.ndarray, *, eleven_point: bool) -> float:
    """Average precision from a curve.

    Args:
        recall: (N,), not falling, in [0, 1].
        precision: (N,), in [0, 1].
        eleven_point: The rule of VOC until 2009: the mean over the recalls 0, .1, ..., 1 of the highest precision at
            that recall or a higher one. Otherwise the area under the curve of these highest precisions.

    Returns:
        A value in [0, 1]; 0 for an empty curve.

    Raises:
        ValueError: If the shapes differ or are not (N,).
    """
    recall, precision = np.asarray(recall, dtype=np.float64), np.asarray(precision, dtype=np.float64)
    if recall.ndim != 1 or recall.shape != precision.shape:
        raise ValueError(
            f"recall and precision: must be of one shape (N,), got {tuple(recall.shape)} and {tuple(precision.shape)}"
        )
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if not eleven_point:
        return float((np.diff(recall, prepend=0.0) * envelope).sum())
    # Tenths are divided, not summed up: 3 of 10 objects are recall .3, and .1 + .1 + .1 is a little more.
    points = np.arange(_POINTS) / (_POINTS - 1)
    first = np.searchsorted(recall, points)  # the first place whose recall reaches the point
    return float(np.append(envelope, 0.0)[first].mean())


def pairwise_overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of each box of `one` (N, 4) with each of `other` (M, 4), both with area: (N, M)."""
    one, other = one[:, None].astype(np.float64), other[None].astype(np.float64)
    shared = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    intersection = shared.clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1) for boxes in (one, other)]
    return intersection / np.maximum(areas[0] + areas[1] - intersection, np.finfo(np.float64).tiny)


def _candidates(
    found: Sequence[Detections], true: Sequence[Objects], label: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hold a class's detections against its objects.

    Returns:
        Of the detections, surest first, the scores (D,), the highest overlap (D,) and the number of the object that it
        is with (D,), -1 for none; and whether each object of the class is difficult, (K,).
    """
    scores, best, target, difficult = [np.empty(0)], [np.empty(0)], [np.empty(0, dtype=np.int64)], [np.empty(0, bool)]
    num_objects = 0
    for detections, objects in zip(found, true, strict=True):
        mine, theirs = detections.labels == label, objects.labels == label
        difficult.append(objects.difficult[theirs])
        if mine.any():
            scores.append(detections.scores[mine])
            overlap = pairwise_overlap(detections.boxes[mine], objects.boxes[theirs])
            if theirs.any():
                best.append(overlap.max(1))
                target.append(overlap.argmax(1) + num_objects)
            else:
                best.append(np.zeros(len(overlap)))
                target.append(np.full(len(overlap), -1))
        num_objects += int(theirs.sum())
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    return joined[order], np.concatenate(best)[order], np.concatenate(target)[order], np.concatenate(difficult)


def _curve(
    scores: np.ndarray,
    best: np.ndarray,
    target: np.ndarray,
    difficult: np.ndarray,
    num_objects: int,
    *,
    overlap: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each group of detections with one score, surest first."""
    reaches = (target >= 0) & (best > overlap)
    hits = np.zeros(len(scores), dtype=bool)
    places = np.flatnonzero(reaches)
    hits[places[np.unique(target[places], return_index=True)[1]]] = True  # the surest of those that reach an object
    counts = np.ones(len(scores), dtype=bool)
    counts[reaches] = ~difficult[target[reaches]]
    hits &= counts
    last_of_score = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    num_hits, num_counted = hits.cumsum()[last_of_score], counts.cumsum()[last_of_score]
    return num_hits / num_objects, num_hits / np.maximum(num_counted, 1)
