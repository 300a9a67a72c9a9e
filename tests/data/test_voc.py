"""VOC's targets from class lists and from annotations, and folders that are not as they should be."""

from pathlib import Path

import numpy as np
import pytest

from rayssl.data import Voc0712Config, Voc2007Config, Voc2012Config, open_pictures
from rayssl.data.voc import VOC_CLASSES, read_voc_targets
from rayssl.errors import DataError
from tests.data.picture_files import make_folder

ROOT = Path(__file__).parent.parent.parent
CAT, DOG = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")


def write_annotation(folder: Path, name: str, *objects: tuple[str, int]) -> None:
    """Objects are (class, difficult)."""
    parts = "".join(f"<object><name>{each}</name><difficult>{hard}</difficult></object>" for each, hard in objects)
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{parts}</annotation>")


def write_voc(root: Path, year: str = "2007", **sets: list[str]) -> Path:
    """The folder of a year, with pictures and the lists of its sets."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for listed, names in sets.items():
        make_folder(folder / "JPEGImages", *(f"{name}.jpg" for name in names))
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{listed}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def test_annotations_tell_shown_difficult_and_absent_classes(tmp_path: Path) -> None:
    """A class with one easy object is shown, however many difficult ones there are beside it."""
    write_annotation(tmp_path, "a", ("cat", 1), ("cat", 0), ("dog", 1))
    write_annotation(tmp_path, "b")
    targets = read_voc_targets(tmp_path, "trainval", ["a", "b"])
    assert targets is not None
    assert targets.classes == VOC_CLASSES
    assert targets.values.dtype == np.int8
    assert (targets.values[0, CAT], targets.values[0, DOG]) == (1, 0)
    assert (targets.values == -1).sum() == 18 + 20


def test_class_lists_are_read_where_all_are_there(tmp_path: Path) -> None:
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name in VOC_CLASSES:
        (main / f"{name}_test.txt").write_text(f"x  {1 if name == 'cat' else -1}\ny  {0 if name == 'dog' else -1}\n")
    write_annotation(tmp_path, "x", ("dog", 0))
    targets = read_voc_targets(tmp_path, "test", ["y", "x"])
    assert targets is not None
    assert targets.values[:, CAT].tolist() == [-1, 1]
    assert targets.values[:, DOG].tolist() == [0, -1]
    (main / "cat_test.txt").write_text("x  1\n")
    with pytest.raises(DataError, match=r"cat_test\.txt does not say 1, 0 or -1 for 1 of 2 pictures: y\."):
        read_voc_targets(tmp_path, "test", ["y", "x"])


def test_missing_annotations_are_counted_and_named(tmp_path: Path) -> None:
    write_annotation(tmp_path, "a", ("cat", 0))
    with pytest.raises(DataError, match=r"2 of 3 pictures of .* trainval have no annotation: .*b\.xml, .*c\.xml\."):
        read_voc_targets(tmp_path, "trainval", ["a", "b", "c"])


def test_unknown_classes_and_damaged_annotations_are_named(tmp_path: Path) -> None:
    write_annotation(tmp_path, "a", ("zebra", 0))
    with pytest.raises(DataError, match=r"a\.xml has an object of the unknown class 'zebra'\. VOC's classes are: aero"):
        read_voc_targets(tmp_path, "trainval", ["a"])
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"a\.xml can't be read: .* Restore the annotation"):
        read_voc_targets(tmp_path, "trainval", ["a"])


def test_neither_lists_nor_annotations_leave_pictures_without_targets(tmp_path: Path) -> None:
    assert read_voc_targets(tmp_path, "trainval", ["a"]) is None


@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["streamed", "cached"])
def test_targets_stay_with_their_pictures_and_bad_ones_are_left_out(tmp_path: Path, cache_bytes: int) -> None:
    folder = write_voc(tmp_path, trainval=["a", "b", "c"], test=["d"])
    for name, shown in (("a", "cat"), ("b", "dog"), ("c", "cat"), ("d", "dog")):
        write_annotation(folder, name, (shown, 0))
    (folder / "JPEGImages" / "b.jpg").write_bytes(b"no picture")
    splits = Voc2007Config(root=tmp_path, validation_fraction=0.0, download=False).build(seed=0)
    assert not splits.train.has_labels
    pictures = open_pictures(
        splits.train,
        tmp_path / "cache",
        resize=8,
        cache_bytes=cache_bytes,
        max_bad_fraction=0.5,
        num_workers=0,
        is_builder=True,
        barrier=lambda: None,
    )
    list(pictures.batches([(np.arange(len(pictures)), None)]))
    assert pictures.targets is not None
    assert len(pictures.bad_files) == 1
    expected = [1, 1] if cache_bytes else [1, -1, 1]
    assert pictures.targets.values[:, CAT].tolist() == expected
    assert pictures.numbers.tolist() == ([0, 2] if cache_bytes else [0, 1, 2])


def test_voc_2012_is_tested_on_val_and_0712_joins_both_years(tmp_path: Path) -> None:
    old = write_voc(tmp_path, "2007", trainval=["a"], test=["t"])
    new = write_voc(tmp_path, "2012", trainval=["b", "c"], train=["b"], val=["c"])
    for folder, name in ((old, "a"), (old, "t"), (new, "b"), (new, "c")):
        write_annotation(folder, name, ("cat" if name != "b" else "dog", 0))
    options = {"root": tmp_path, "validation_fraction": 0.0, "download": False}
    both = Voc0712Config(**options).build(seed=0)
    later = Voc2012Config(**options).build(seed=0)
    assert both.test is not None
    assert later.test is not None
    assert [Path(item).stem for item in both.train.items] == ["a", "b", "c"]
    assert both.train.targets is not None
    assert both.train.targets.values[:, DOG].tolist() == [-1, 1, -1]
    assert [Path(item).stem for item in both.test.items] == ["t"]
    assert [Path(item).stem for item in (*later.train.items, *later.test.items)] == ["b", "c"]


def test_lists_and_annotations_of_the_subset_agree(tmp_path: Path) -> None:
    """Of 200 pictures of the re-encoded VOC2007 subset; skipped where it is not unpacked."""
    folder = next(
        (each for each in (ROOT.parent / "data", ROOT.parent / "shared/data") if (each / "VOCdevkit").is_dir()), None
    )
    if folder is None:
        pytest.skip("the VOC2007 subset is not unpacked beside the checkout")
    voc = folder / "VOCdevkit" / "VOC2007"
    names = (voc / "ImageSets/Main/test.txt").read_text().split()[:200]
    by_lists = read_voc_targets(voc, "test", names)
    (tmp_path / "Annotations").symlink_to(voc / "Annotations")
    by_annotations = read_voc_targets(tmp_path, "test", names)
    assert by_lists is not None
    assert by_annotations is not None
    assert np.array_equal(by_lists.values, by_annotations.values)
