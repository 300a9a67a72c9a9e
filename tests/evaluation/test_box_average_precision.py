"""Average precision of boxes against a slow reference and cases worked out by hand."""

from collections.abc import Sequence
from math import isnan

import numpy as np
import pytest

from rayssl.data.voc_objects import Objects
from rayssl.evaluation.box_average_precision import (
    Detections,
    box_average_precisions,
    pairwise_overlap,
    voc_average_precision,
)

SQUARE = (0, 0, 10, 10)
FAR = (50, 50, 60, 60)


def objects(*boxes: tuple[float, ...], labels: Sequence[int] = (), difficult: Sequence[bool] = ()) -> Objects:
    return Objects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels or [0] * len(boxes), dtype=np.int64),
        np.array(difficult or [False] * len(boxes), dtype=bool),
    )


def detections(*found: tuple[tuple[float, ...], float]) -> Detections:
    """Boxes with scores, all of class 0."""
    boxes = np.array([box for box, _ in found], dtype=np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in found], dtype=np.float32)
    return Detections(boxes, scores, np.zeros(len(found), dtype=np.int64))


def average_precision(
    found: list[Detections], true: list[Objects], *, overlap: float = 0.5, eleven_point: bool = False
) -> float:
    result = box_average_precisions(found, true, num_classes=1, overlaps=[overlap], eleven_point=eleven_point)
    return float(result[0, 0])


def slow_average_precision(
    found: list[Detections], true: list[Objects], label: int, overlap: float, *, eleven_point: bool
) -> float:
    """The development kit's procedure, a detection at a time, in plain Python."""
    listed = [
        (float(score), picture, [float(edge) for edge in box])
        for picture, each in enumerate(found)
        for box, score, of in zip(each.boxes, each.scores, each.labels, strict=True)
        if of == label
    ]
    listed.sort(key=lambda entry: -entry[0])
    num_objects = sum(int(((each.labels == label) & ~each.difficult).sum()) for each in true)
    if num_objects == 0:
        return float("nan")
    taken: set[tuple[int, int]] = set()
    hits = false_alarms = 0
    curve = []
    for _, picture, (left, top, right, bottom) in listed:
        best, which = 0.0, -1
        for number, (of, box) in enumerate(zip(true[picture].labels, true[picture].boxes.tolist(), strict=True)):
            width = min(right, box[2]) - max(left, box[0])
            height = min(bottom, box[3]) - max(top, box[1])
            if of == label and width > 0 and height > 0:
                union = (right - left) * (bottom - top) + (box[2] - box[0]) * (box[3] - box[1]) - width * height
                if width * height / union > best:
                    best, which = width * height / union, number
        if best <= overlap:
            false_alarms += 1
        elif true[picture].difficult[which]:
            continue
        elif (picture, which) in taken:
            false_alarms += 1
        else:
            taken.add((picture, which))
            hits += 1
        curve.append((hits / num_objects, hits / (hits + false_alarms)))
    if eleven_point:
        return sum(max((p for r, p in curve if r >= point / 10), default=0.0) for point in range(11)) / 11
    area = previous = 0.0
    for recall, _ in curve:
        area += (recall - previous) * max(p for r, p in curve if r >= recall)
        previous = recall
    return area


@pytest.mark.parametrize("eleven_point", [True, False])
def test_random_boxes_get_what_the_slow_reference_gives(eleven_point: bool) -> None:
    """Objects found well, badly, twice and not at all, difficult ones, of three classes; no two scores are equal."""
    random = np.random.default_rng(0)
    true, found = [], []
    for _ in range(40):
        count = random.integers(0, 5)
        corners = random.integers(0, 60, (count, 2))
        boxes = np.concatenate([corners, corners + random.integers(10, 40, (count, 2))], axis=1).astype(np.float32)
        true.append(Objects(boxes, random.integers(0, 3, count), random.random(count) < 0.2))
        source = random.integers(0, count, random.integers(0, 9)) if count else np.empty(0, dtype=np.int64)
        noise = random.normal(0, 2, (len(source), 4)) * random.random((len(source), 1))
        labels = np.where(random.random(len(source)) < 0.8, true[-1].labels[source], random.integers(0, 3, len(source)))
        found.append(Detections((boxes[source] + noise).astype(np.float32), random.random(len(source)), labels))
    overlaps = (0.5, 0.75, 0.9)
    ours = box_average_precisions(found, true, num_classes=3, overlaps=overlaps, eleven_point=eleven_point)
    expected = [
        [slow_average_precision(found, true, label, overlap, eleven_point=eleven_point) for overlap in overlaps]
        for label in range(3)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert 0.2 < ours.mean() < 0.9


def test_an_object_found_twice_is_a_hit_and_a_false_alarm() -> None:
    """Ranks: hit, duplicate, hit of the second object: precisions 1 and 2/3 at recalls 1/2 and 1."""
    found = [detections((SQUARE, 0.9), (SQUARE, 0.8)), detections((SQUARE, 0.7))]
    assert average_precision(found, [objects(SQUARE)] * 2) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_difficult_objects_are_neither_found_nor_missed_nor_false_alarms() -> None:
    true = [objects(SQUARE, FAR, difficult=[True, False])]
    assert average_precision([detections((SQUARE, 0.9), (SQUARE, 0.8), (FAR, 0.7))], true) == 1
    assert average_precision([detections((FAR, 0.7))], true) == 1


def test_a_class_without_objects_that_count_has_no_number() -> None:
    found = [detections((SQUARE, 0.9))]
    assert isnan(average_precision(found, [objects()]))
    assert isnan(average_precision(found, [objects(SQUARE, difficult=[True])]))


def test_finding_nothing_or_only_background_is_zero() -> None:
    assert average_precision([detections()], [objects(SQUARE)]) == 0
    assert average_precision([detections((FAR, 0.9))], [objects(SQUARE)], eleven_point=True) == 0


def test_detections_in_pictures_without_objects_are_false_alarms() -> None:
    found = [detections((SQUARE, 0.9)), detections((SQUARE, 0.8))]
    assert average_precision(found, [objects(), objects(SQUARE)]) == 0.5


def test_equal_scores_count_together_whatever_their_order() -> None:
    """One hit and one false alarm with the same score: precision 1/2 where recall becomes 1, either way round."""
    one, other = [detections((SQUARE, 0.5), (FAR, 0.5))], [detections((FAR, 0.5), (SQUARE, 0.5))]
    assert average_precision(one, [objects(SQUARE)]) == average_precision(other, [objects(SQUARE)]) == 0.5


def test_an_overlap_of_exactly_the_threshold_is_too_little() -> None:
    half = (0, 0, 10, 5)
    assert pairwise_overlap(np.array([half]), np.array([SQUARE])).item() == 0.5
    assert average_precision([detections((half, 0.9))], [objects(SQUARE)]) == 0
    assert average_precision([detections((half, 0.9))], [objects(SQUARE)], overlap=0.49) == 1


def test_the_most_overlapping_object_is_taken_even_if_it_is_taken_already() -> None:
    """The second detection also exceeds the threshold with the shifted object, but overlaps the first one more."""
    shifted = (3, 0, 13, 10)
    found = [detections((SQUARE, 0.9), ((1, 0, 11, 10), 0.8))]
    assert average_precision(found, [objects(SQUARE, shifted)]) == 0.5


@pytest.mark.parametrize(
    ("recall", "precision", "eleven", "area"),
    [
        ([0.5, 1.0], [1.0, 0.5], (6 * 1 + 5 * 0.5) / 11, 0.75),
        ([0.3], [1.0], 4 / 11, 0.3),
        ([0.0, 0.5], [0.0, 0.5], 6 * 0.5 / 11, 0.25),
        ([], [], 0.0, 0.0),
    ],
)
def test_both_rules_by_hand(recall: list[float], precision: list[float], eleven: float, area: float) -> None:
    """A recall of exactly .3 reaches the points 0, .1, .2 and .3."""
    curve = np.array(recall), np.array(precision)
    assert voc_average_precision(*curve, eleven_point=True) == pytest.approx(eleven)
    assert voc_average_precision(*curve, eleven_point=False) == pytest.approx(area)


def test_wrong_shapes_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="as many pictures as true, 2, got 1"):
        average_precision([detections()], [objects(), objects()])
    with pytest.raises(ValueError, match="must be numbers, got nan"):
        average_precision([detections((SQUARE, float("nan")))], [objects(SQUARE)])
    with pytest.raises(ValueError, match=r"one shape \(N,\)"):
        voc_average_precision(np.zeros(2), np.zeros(3), eleven_point=True)
