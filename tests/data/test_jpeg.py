"""The quick decoder and the reduction of bytes, against Pillow's own."""

import io

import numpy as np
import pytest
from PIL import Image

from rayssl.data import jpeg
from rayssl.data.images import decode_image
from rayssl.data.jpeg import decode_jpeg, resize_bytes
from tests.data.picture_files import encode, noise


def smooth(height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(noise(5, 7, 3)).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("is_old", [False, True], ids=["", "an OpenCV before 4.11"])
@pytest.mark.parametrize("picture", [noise(61, 83, 3), smooth(61, 83), smooth(8, 9)], ids=["noise", "smooth", "small"])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"keep_rgb": True}],
    ids=str,
)
def test_pixels_are_exactly_pillows(
    picture: np.ndarray, options: dict[str, object], is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_old:
        monkeypatch.setattr(jpeg, "_RGB", None)
    content = encode(Image.fromarray(picture), "JPEG", quality=80, **options)
    with Image.open(io.BytesIO(content)) as image:
        pixels = decode_jpeg(image)
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(image))  # Pillow decodes only here, from the same open file
    assert np.array_equal(decode_image(content, short_side=None), pixels)


@pytest.mark.parametrize(
    "content",
    [
        encode(Image.fromarray(noise(20, 30)), "JPEG"),
        encode(Image.fromarray(noise(20, 30, 4), "CMYK"), "JPEG"),
        encode(Image.fromarray(noise(20, 30, 3)), "JPEG")[:-200],
        encode(Image.fromarray(noise(20, 30, 3)), "PNG"),
    ],
    ids=["grey", "inks", "truncated", "png"],
)
def test_what_only_pillow_understands_is_left_to_it(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as image:
        assert decode_jpeg(image) is None


@pytest.mark.parametrize("size", [(30, 20), (83, 20), (20, 61), (120, 90), (1, 1)])
def test_bytes_are_resized_as_by_pillow_to_a_level(size: tuple[int, int]) -> None:
    picture = noise(61, 83, 3)
    expected = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize_bytes(picture, size) - expected).max() <= 1


def test_jpegs_are_reduced_as_by_pillow_to_a_level() -> None:
    content = encode(Image.fromarray(smooth(60, 300)), "JPEG")
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.resize((160, 40), Image.Resampling.BILINEAR, box=(30, 0, 270, 60))).astype(int)
    assert np.abs(decode_image(content, short_side=40) - expected).max() <= 1
