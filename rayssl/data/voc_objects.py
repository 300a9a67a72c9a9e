"""The objects that VOC's annotations draw boxes around."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from rayssl.data.voc import VOC_CLASSES
from rayssl.errors import DataError

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_MOST_NAMED = 5


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one picture.

    Attributes:
        boxes: float32 (K, 4), left, top, right and bottom edge in pixels from the picture's corner: a box around the
            first pixel alone is (0, 0, 1, 1).
        labels: int64 (K,), indices into the classes.
        difficult: bool (K,), objects that count neither as found nor as missed.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, which: np.ndarray) -> "Objects":
        """Those at these indices, or of this mask."""
        return Objects(self.boxes[which], self.labels[which], self.difficult[which])


def read_voc_objects(pictures: Sequence[Path], *, classes: Sequence[str] = VOC_CLASSES) -> list[Objects]:
    """What the annotations of pictures in VOC's layout, FOLDER/JPEGImages/NAME.jpg, say of their objects.

    Args:
        pictures: The pictures' files.
        classes: The classes' names.

    Returns:
        The objects of each; of a picture with none, none. VOC counts pixels from 1 and includes the last one; one is
        taken off the left and top edges, so that widths are differences.

    Raises:
        DataError: If a picture has no annotation or a damaged one, an unknown class or a box without area.
    """
    files = [picture.parent.parent / "Annotations" / f"{picture.stem}.xml" for picture in pictures]
    if missing := [str(file) for file in files if not file.is_file()]:
        more = f" and {len(missing) - _MOST_NAMED:,} more" if len(missing) > _MOST_NAMED else ""
        raise DataError(
            f"data.root: {len(missing):,} of {len(files):,} pictures have no annotation with boxes: "
            f"{', '.join(missing[:_MOST_NAMED])}{more}. Restore the files, or take the names out of ImageSets/Main."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return [_read_annotation(file, numbers) for file in files]


def _read_annotation(file: Path, numbers: dict[str, int]) -> Objects:
    try:
        found = ElementTree.parse(file).getroot().findall("object")
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"data.root: {file} can't be read: {error}. Restore the annotation.") from error
    boxes, labels, difficult = [], [], []
    for each in found:
        name = (each.findtext("name") or "").strip()
        if name not in numbers:
            raise DataError(
                f"data.root: {file} has an object of the unknown class '{name}'. The classes are: {', '.join(numbers)}."
            )
        labels.append(numbers[name])
        difficult.append((each.findtext("difficult") or "0").strip() == "1")
        boxes.append(_read_box(each, f"data.root: {file}, {name}"))
    return Objects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64), np.array(difficult, bool)
    )


def _read_box(element: ElementTree.Element, place: str) -> tuple[float, float, float, float]:
    texts = [element.findtext(f"bndbox/{edge}") for edge in _EDGES]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError:
        raise DataError(f"{place}: bndbox must have the numbers {', '.join(_EDGES)}, got {texts}.") from None
    left, top = left - 1, top - 1
    if not (left < right and top < bottom):
        raise DataError(f"{place}: the box must have an area, got {', '.join(map(str, texts))}. Mend the annotation.")
    return left, top, right, bottom
