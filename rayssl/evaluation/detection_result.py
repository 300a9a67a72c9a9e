"""From boxes to numbers: average precisions by class and their means, what chance reaches, and counts in words."""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan

import numpy as np

from rayssl.evaluation.base import Sanity
from rayssl.evaluation.box_average_precision import Detections, box_average_precisions
from rayssl.evaluation.detection_pictures import DetectionPictures

OVERLAPS = tuple((50 + 5 * step) / 100 for step in range(10))
"""Thresholds of overlap, .5 to .95, over which AP is the mean."""
_REPORTED = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
_MOST_NAMED = 5
_DRAWS = 10
_DEVIATIONS = 5
_PRIOR_PICTURES = 3
"""Pictures whose objects stand in for the detections of one, in the estimate of chance."""


def told_classes(learned: DetectionPictures, told: DetectionPictures, num_classes: int) -> np.ndarray:
    """Which classes have an object to learn from and one to tell that is not difficult, bool (num_classes,)."""
    easy, hard = learned.counts(num_classes)
    return (easy + hard > 0) & (told.counts(num_classes)[0] > 0)


def summarize(
    found: Mapping[int, Detections],
    told: DetectionPictures,
    is_told: np.ndarray,
    classes: Sequence[str],
    *,
    area: str,
    eleven_point: bool,
    reference: float | None,
) -> Iterator[tuple[str, float]]:
    """Yield AREA/ap, AREA/ap50 and AREA/ap75, each followed by those of the classes: AREA/ap50/ap/cat.

    Args:
        found: Row -> detections; pictures without a row here don't count.
        told: The test pictures.
        is_told: Classes that count, bool (C,).
        classes: Names.
        area: First part of the names.
        eleven_point: See `voc_average_precision`.
        reference: AP75 to subtract for AREA/delta_ap75; None: there is no such number.
    """
    precisions = box_average_precisions(
        list(found.values()),
        [told.objects[row] for row in found],
        num_classes=len(classes),
        overlaps=OVERLAPS,
        eleven_point=eleven_point,
    )
    precisions[~is_told] = np.nan
    for name, columns in _REPORTED.items():
        by_class = precisions[:, columns].mean(1)
        mean = float(np.nanmean(by_class)) if not np.isnan(by_class).all() else 0.0
        yield f"{area}/{name}", mean
        for label, value in zip(classes, by_class.tolist(), strict=True):
            if not isnan(value):
                yield f"{area}/{name}/ap/{label}", value
        if name == "ap75" and reference is not None:
            yield f"{area}/delta_ap75", mean - reference


def chance(
    metric: str,
    learned: DetectionPictures,
    told: DetectionPictures,
    is_told: np.ndarray,
    *,
    eleven_point: bool,
    seed: int,
) -> Sanity:
    """What AP50 must not exceed where boxes and pictures don't belong together.

    Chance is to tell of each picture the objects of three random training pictures, with random scores. The bound is
    five standard deviations above, and by the 11-point rule no less than 1/11: what a class gets whose surest detection
    alone hits.

    Args:
        metric: The name of AP50.
        learned: The training pictures.
        told: The test pictures.
        is_told: Classes that count, bool (C,).
        eleven_point: See `voc_average_precision`.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    means = []
    for _ in range(_DRAWS):
        guesses = [_guess(learned, random) for _ in range(len(told))]
        precisions = box_average_precisions(
            guesses, told.objects, num_classes=len(is_told), overlaps=OVERLAPS[:1], eleven_point=eleven_point
        )
        means.append(np.nanmean(precisions[is_told]))
    bound = float(np.mean(means) + _DEVIATIONS * np.std(means))
    return Sanity(metric, float(np.mean(means)), max(bound, 1 / 11) if eleven_point else bound)


def describe_pictures(
    learned: DetectionPictures, told: DetectionPictures, is_told: np.ndarray, classes: Sequence[str]
) -> str:
    """How many pictures and objects there are, and which classes are left out."""
    (easy, hard), (told_easy, told_hard) = (each.counts(len(classes)) for each in (learned, told))
    num_empty = len(learned) - len(learned.with_objects())
    empty = f" ({num_empty:,} more have no objects and are left out)" if num_empty else ""
    missing = [name for name, counts in zip(classes, is_told, strict=True) if not counts]
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    left_out = f" without {', '.join(missing[:_MOST_NAMED])}{more} (no objects on one side)" if missing else ""
    return (
        f"detection: learned from {len(learned) - num_empty:,} pictures{empty} with {easy.sum() + hard.sum():,} "
        f"objects, {hard.sum():,} of them difficult; told {len(told):,} pictures with {told_easy.sum():,} objects, and "
        f"{told_hard.sum():,} difficult ones that don't count; means over {int(is_told.sum())} classes{left_out}."
    )


def _guess(learned: DetectionPictures, random: np.random.Generator) -> Detections:
    drawn = [learned.objects[row] for row in random.integers(0, len(learned), _PRIOR_PICTURES)]
    labels = np.concatenate([each.labels for each in drawn])
    return Detections(np.concatenate([each.boxes for each in drawn]), random.random(len(labels)), labels)
