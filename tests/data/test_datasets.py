"""Sizes and rules that all data sets share, the digits, and arrays in .npz files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from sklearn.datasets import load_digits

import rayssl.data
from rayssl.data import AnyData, DataConfig, DigitsConfig, FolderConfig, NpzConfig
from rayssl.errors import DataError


@pytest.mark.parametrize(
    ("image_size", "decode_size", "eval_resize"), [(224, 317, 256), (96, 136, 110), (32, 46, 32), (64, 91, 64)]
)
def test_sizes_follow_from_the_view(image_size: int, decode_size: int, eval_resize: int) -> None:
    config = DigitsConfig(image_size=image_size)
    assert (config.decode_size, config.eval_resize) == (decode_size, eval_resize)


def test_a_given_resize_is_taken_but_must_cover_the_view() -> None:
    assert DigitsConfig(image_size=32, resize=40).decode_size == 40
    with pytest.raises(ValidationError, match="resize: must be at least image_size, 32, got 31"):
        DigitsConfig(image_size=32, resize=31)


@pytest.mark.parametrize(
    "values", [{"validation_fraction": 1.0}, {"limit": 0}, {"max_bad_fraction": -0.1}, {"image_size": 4}, {"rot": "x"}]
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DigitsConfig(**values)


def test_the_tag_chooses_the_class() -> None:
    adapter: TypeAdapter[DataConfig] = TypeAdapter(AnyData)
    config = adapter.validate_python({"name": "folder", "root": "x", "image_size": 64})
    assert isinstance(config, FolderConfig)
    assert config.root == Path("x")


def test_every_field_is_documented() -> None:
    configs = [value for name, value in vars(rayssl.data).items() if name.endswith("Config")]
    missing = [
        f"{config.__name__}.{name}"
        for config in configs
        for name, field in config.model_fields.items()
        if not field.description
    ]
    assert len(configs) >= 12
    assert missing == []


def test_the_public_names_are_sorted_and_exist() -> None:
    assert rayssl.data.__all__ == sorted(rayssl.data.__all__)
    assert all(hasattr(rayssl.data, name) for name in rayssl.data.__all__)


def test_a_seed_decides_the_splits() -> None:
    def digests(seed: int) -> list[bytes]:
        splits = DigitsConfig(limit=300).build(seed=seed)
        assert splits.validation is not None and splits.test is not None
        return [np.asarray(each.items).tobytes() for each in (splits.train, splits.validation, splits.test)]

    assert digests(0) == digests(0)
    assert all(one != other for one, other in zip(digests(0), digests(1), strict=True))


def test_the_limit_comes_before_the_hold_out() -> None:
    splits = DigitsConfig(limit=100, validation_fraction=0.2).build(seed=0)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (80, 20)
    assert set(splits.train.labels) == set(splits.validation.labels) == set(range(10))


# ---- digits ----


def test_digits_are_the_pictures_of_scikit_learn() -> None:
    """Averaged back over 4 x 4 squares, an enlarged digit is close to the original, and its label follows it."""
    splits = DigitsConfig(validation_fraction=0.0).build(seed=0)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert splits.train.classes == tuple("0123456789")
    originals, targets = load_digits(return_X_y=True)
    shrunk = np.asarray(splits.test.items)[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(-1, 64) / 255 * 16
    nearest = ((shrunk[:, None] - originals) ** 2).mean(axis=-1)
    assert nearest.min(axis=1).max() < 2
    assert np.array_equal(targets[nearest.argmin(axis=1)], splits.test.labels)
    assert len(set(nearest.argmin(axis=1))) == 359


# ---- npz ----


def npz(folder: Path, **arrays: Any) -> NpzConfig:
    np.savez(folder / "set.npz", **arrays)
    return NpzConfig(file=folder / "set.npz", image_size=8, validation_fraction=0.0)


COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)


LABELS = np.array([7, 3, -1, 7, 3, 12])


def test_npz_arrays_become_pictures_with_numbered_classes(tmp_path: Path) -> None:
    config = npz(tmp_path, images=COLOUR, labels=LABELS, test_images=COLOUR[:2], test_labels=LABELS[[5, 1]])
    splits = config.build(seed=0)
    assert splits.test is not None
    assert np.array_equal(np.asarray(splits.train.items), COLOUR)
    assert splits.train.classes == splits.test.classes == ("3", "7", "12")
    assert splits.train.labels.tolist() == [1, 0, -1, 1, 0, 2]
    assert splits.test.labels.tolist() == [2, 0]


@pytest.mark.parametrize("grey", [COLOUR[..., 0], COLOUR[..., :1]], ids=["N H W", "N H W 1"])
def test_grey_npz_pictures_fill_three_channels(tmp_path: Path, grey: np.ndarray) -> None:
    images = npz(tmp_path, images=grey).build(seed=0).train
    assert np.array_equal(np.asarray(images.items), np.repeat(COLOUR[..., :1], 3, axis=-1))
    assert images.classes == ()
    assert (images.labels == -1).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": COLOUR}, r"needs `images`, .* got \['pictures'\]"),
        ({"images": COLOUR, "label": LABELS}, "may hold .* got"),
        ({"images": COLOUR / 255}, "images must be uint8, .* got float64"),
        ({"images": COLOUR.transpose(0, 3, 1, 2)}, r"images must have the shape .* got \(6, 3, 9, 8\)"),
        ({"images": COLOUR[0, 0]}, r"images must have the shape .* got \(8, 3\)"),
        ({"images": COLOUR[:0]}, "images must be at least one"),
        ({"images": COLOUR[:, :3]}, "images must be at least one of 4 x 4 px"),
        ({"images": COLOUR, "labels": LABELS[:5]}, r"labels must be integers of the shape \(6,\), got int64 \(5,\)"),
        ({"images": COLOUR, "labels": LABELS / 2}, "labels must be integers .* got float64"),
        ({"images": COLOUR, "labels": LABELS - 5}, r"labels must be -1 \(none\) or more, got -6"),
        ({"images": COLOUR, "test_labels": LABELS}, "test_labels without test_images"),
        (
            {"images": COLOUR, "labels": LABELS, "test_images": COLOUR, "test_labels": LABELS + 1},
            r"test_labels must occur among the training labels, got \[0, 4, 8, 13\]",
        ),
        ({"images": COLOUR, "labels": np.array([{}] * 6)}, "is damaged or holds more than plain arrays"),
    ],
)
def test_npz_arrays_that_break_a_rule_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=f"^data.file: .*{message}"):
        npz(tmp_path, **arrays).build(seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        (b"", "must be an .npz file"),
        (b"text", "must be an .npz file"),
        (b"PK\3\4", "must be an .npz file"),
    ],
)
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=f"^data.file: .*{message}"):
        NpzConfig(file=tmp_path / "set.npz", image_size=8).build(seed=0)


def test_damaged_npz_arrays_are_refused(tmp_path: Path) -> None:
    config = npz(tmp_path, images=COLOUR)
    content = bytearray(config.file.read_bytes())
    content[600] ^= 1
    config.file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged or holds more than plain arrays: .*CRC"):
        config.build(seed=0)


def test_a_single_array_is_not_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", COLOUR)
    with pytest.raises(DataError, match="must be an .npz file"):
        NpzConfig(file=tmp_path / "set.npy", image_size=8).build(seed=0)
