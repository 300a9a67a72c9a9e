"""Test pictures with the boxes that were found and the true ones, some of the best and some of the worst."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rayssl.data.voc_objects import Objects
from rayssl.evaluation.box_average_precision import Detections, pairwise_overlap
from rayssl.evaluation.detection_pictures import DetectionPictures

SHOWN_SCORE = 0.3
"""Detections below this are not drawn."""
_OVERLAP = 0.5
_MOST_BOXES = 10
_SIDE = 480
"""Long side of drawn pictures, in pixels."""
_TRUE, _FOUND = "lime", "orange"


def draw_examples(
    pictures: DetectionPictures, found: Mapping[int, Detections], *, classes: Sequence[str], count: int, folder: Path
) -> list[Path]:
    """Draw test pictures with objects: those found best, at most half, and those found worst.

    Args:
        pictures: Those that were tested on.
        found: Row -> detections; other rows are not drawn.
        classes: Names.
        count: Most pictures.
        folder: Where well-1.png, badly-1.png, ... go, each with a caption in a .txt of the same name.

    Returns:
        The pictures' files.

    Source: the form of MGTA's Figure 2.
    """
    with_objects = [row for row in found if not pictures.objects[row].difficult.all()]
    quality = {row: _quality(_shown(found[row]), pictures.objects[row]) for row in with_objects}
    ranked = sorted(with_objects, key=lambda row: (-quality[row], -len(pictures.objects[row]), row))
    num_best = min(-(-count // 2), -(-len(ranked) // 2), sum(value > 0 for value in quality.values()))
    num_worst = min(count - num_best, len(ranked) - num_best)
    chosen = {f"well-{number}": row for number, row in enumerate(ranked[:num_best], start=1)}
    worst = ranked[len(ranked) - num_worst :][::-1]
    chosen |= {f"badly-{number}": row for number, row in enumerate(worst, start=1)}
    files = []
    for name, row in chosen.items():
        decoded = pictures.decode(row)
        if decoded is None:
            continue
        picture, cut = decoded
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _draw(picture, np.tile(cut, 2), _shown(found[row]), pictures.objects[row], classes)
        Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
        caption = _caption(pictures.files[row].name, _shown(found[row]), pictures.objects[row], classes)
        (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
        files.append(folder / f"{name}.png")
    return files


def _shown(found: Detections) -> Detections:
    """The surest ones."""
    order = np.argsort(-found.scores, kind="stable")[:_MOST_BOXES]
    order = order[found.scores[order] >= SHOWN_SCORE]
    return Detections(found.boxes[order], found.scores[order], found.labels[order])


def _quality(found: Detections, true: Objects) -> float:
    """Twice the objects that are found, over all objects and detections together; difficult objects are left out."""
    true = true.select(~true.difficult)
    overlaps = pairwise_overlap(found.boxes, true.boxes) * (found.labels[:, None] == true.labels)
    num_found = int((overlaps > _OVERLAP).any(0).sum()) if len(found) else 0
    return 2 * num_found / (len(found) + len(true))


def _draw(picture: Tensor, cut: np.ndarray, found: Detections, true: Objects, classes: Sequence[str]) -> Tensor:
    from torchvision.utils import draw_bounding_boxes

    height, width = picture.shape[1:]
    scale = _SIDE / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    drawn = torch.nn.functional.interpolate(
        picture[None].float(), size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    drawn = drawn.round().clamp(0, 255).to(torch.uint8)
    labels = [f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
    limits = [size[1] - 1, size[0] - 1, size[1] - 1, size[0] - 1]
    for boxes, names, colour in ((true.boxes, None, _TRUE), (found.boxes, labels, _FOUND)):
        if len(boxes):
            corners = ((boxes - cut) * scale).clip(0, limits)
            drawn = draw_bounding_boxes(drawn, torch.from_numpy(corners), names, colors=colour, width=2)
    return drawn


def _caption(name: str, found: Detections, true: Objects, classes: Sequence[str]) -> str:
    told = [f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
    there = [
        f"{classes[label]}{' (difficult)' if is_difficult else ''}"
        for label, is_difficult in zip(true.labels, true.difficult, strict=True)
    ]
    return (
        f"{name}. Found (orange, with score): {', '.join(told) or f'nothing with a score of {SHOWN_SCORE} or more'}. "
        f"True (green): {', '.join(there)}."
    )
