"""VOC's boxes as they are read, and annotations that are not as they should be."""

from pathlib import Path

import numpy as np
import pytest

from rayssl.data.voc import VOC_CLASSES
from rayssl.data.voc_objects import read_voc_objects
from rayssl.errors import DataError

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10.5</xmax><ymax>20</ymax></bndbox>"


def write(root: Path, name: str, content: str) -> Path:
    """An annotation with this content; gives the picture's path, where no file needs to be."""
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{content}</annotation>")
    return root / "JPEGImages" / f"{name}.jpg"


def test_boxes_begin_at_the_pictures_corner_and_keep_their_flags(tmp_path: Path) -> None:
    """VOC counts from 1 and includes the last pixel; a part's box is not the object's."""
    part = f"<part><name>head</name>{BOX.replace('10.5', '3')}</part>"
    first = write(
        tmp_path,
        "a",
        f"<object><name>cat</name>{part}{BOX}</object><object><name>dog</name><difficult>1</difficult>{BOX}</object>",
    )
    one, none = read_voc_objects([first, write(tmp_path, "b", "")])
    assert one.boxes.tolist() == [[0, 1, 10.5, 20]] * 2
    assert [VOC_CLASSES[label] for label in one.labels] == ["cat", "dog"]
    assert one.difficult.tolist() == [False, True]
    assert one.select(~one.difficult).labels.tolist() == [VOC_CLASSES.index("cat")]
    assert (len(none), none.boxes.shape, none.boxes.dtype) == (0, (0, 4), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"<object><name>zebra</name>{BOX}</object>", r"a\.xml has an object of the unknown class 'zebra'\."),
        ("<object><name>cat</name></object>", r"a\.xml, cat: bndbox must have the numbers xmin, ymin, xmax, ymax"),
        (f"<object><name>cat</name>{BOX.replace('10.5', 'x')}</object>", "bndbox must have the numbers"),
        (f"<object><name>cat</name>{BOX.replace('10.5', '0')}</object>", r"must have an area, got 1, 2, 0, 20\."),
        ("<object>", r"a\.xml can't be read: .* Restore the annotation\."),
    ],
)
def test_a_damaged_annotation_is_named(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_voc_objects([write(tmp_path, "a", content)])


def test_missing_annotations_are_counted_and_named(tmp_path: Path) -> None:
    pictures = [write(tmp_path, "a", ""), *(tmp_path / "JPEGImages" / f"{number}.jpg" for number in range(7))]
    with pytest.raises(DataError, match=r"7 of 8 pictures have no annotation with boxes: .*0\.xml, .* and 2 more\."):
        read_voc_objects(pictures)
