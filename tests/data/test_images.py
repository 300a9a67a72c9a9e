"""Decoding against known colours and Pillow's own results, and files that can't be decoded."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rayssl.data.images import MAX_PIXELS, BadImageError, decode_image
from tests.data.picture_files import encode, noise


def tiff(values: np.ndarray) -> bytes:
    return encode(Image.fromarray(values), "TIFF")


def decoded(content: bytes) -> np.ndarray:
    return decode_image(content, short_side=None)


# ---- modes ----


GREY = noise(6, 9)


COLOUR = noise(6, 9, 3)


ALPHA = noise(6, 9, seed=1)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return colour * weight + 255 * (1 - weight)


def test_colours_come_back_as_they_were() -> None:
    assert np.array_equal(decoded(encode(Image.fromarray(COLOUR))), COLOUR)


def test_grey_fills_all_three_channels() -> None:
    assert np.array_equal(decoded(encode(Image.fromarray(GREY))), np.stack([GREY] * 3, axis=-1))


def test_one_bit_becomes_black_and_white() -> None:
    bits = GREY > 127
    assert np.array_equal(decoded(encode(Image.fromarray(bits)))[..., 0], bits * 255)


@pytest.mark.parametrize("colour", [GREY, COLOUR], ids=["LA", "RGBA"])
def test_transparency_is_laid_on_white(colour: np.ndarray) -> None:
    channels = np.dstack([colour, ALPHA])
    result = decoded(encode(Image.fromarray(channels)))
    expected = on_white(colour.reshape(6, 9, -1), ALPHA)
    assert np.abs(result - expected).max() <= 1


def test_a_palette_gives_its_colours() -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(decoded(encode(image)), np.array(image.getpalette()).reshape(-1, 3)[np.asarray(image)])


def test_transparent_palette_entries_become_white() -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    transparent = np.asarray(image) == 3
    one_entry = decoded(encode(image, transparency=3))
    many = decoded(encode(image, transparency=bytes([255, 255, 255, 0])))
    assert transparent.any()
    assert (one_entry[transparent] == 255).all()
    assert np.array_equal(one_entry, many)
    assert np.array_equal(one_entry[~transparent], decoded(encode(image))[~transparent])


def test_cmyk_in_a_tiff_subtracts_the_inks() -> None:
    inks = noise(6, 9, 4)
    result = decoded(encode(Image.fromarray(inks, "CMYK"), "TIFF"))
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(result - expected).max() <= 1


def test_adobe_cmyk_jpegs_are_not_negatives() -> None:
    """Adobe writes inks inverted, and so does Pillow; red must stay red."""
    red = Image.new("RGB", (16, 16), (220, 10, 10)).convert("CMYK")
    content = encode(red, "JPEG", quality=95)
    assert b"Adobe" in content
    assert np.abs(decoded(content).mean(axis=(0, 1)) - [220, 10, 10]).max() < 4


def test_ycbcr_pictures_become_rgb() -> None:
    image = Image.fromarray(COLOUR).convert("YCbCr")
    assert np.abs(decoded(encode(image, "TIFF")).astype(int) - COLOUR).max() <= 3


SIXTEEN_BIT = np.random.default_rng(2).integers(0, 65536, (6, 9))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(Image.fromarray(SIXTEEN_BIT.astype(np.uint16))), SIXTEEN_BIT / 257),
        (tiff(SIXTEEN_BIT.astype(np.uint16)), SIXTEEN_BIT / 257),
        (b"P5 9 6 65535\n" + SIXTEEN_BIT.astype(">u2").tobytes(), SIXTEEN_BIT / 257),
        (tiff((SIXTEEN_BIT // 300).astype(np.uint16)), SIXTEEN_BIT // 300 / 257),
    ],
    ids=["png", "tiff", "pgm", "dark tiff"],
)
def test_sixteen_bits_are_scaled_and_not_clipped(content: bytes, expected: np.ndarray) -> None:
    result = decoded(content)
    assert result.dtype == np.uint8
    assert np.abs(result[..., 1] - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_undone(kind: str, orientation: int) -> None:
    """Two bands of colour, so that lossy files can be told too; Pillow's own transposition is the reference."""
    picture = np.repeat(np.repeat(noise(3, 4, 3), 16, axis=0), 16, axis=1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(picture), kind, **({"exif": exif} if kind != "TIFF" else {"tiffinfo": exif}))
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    result = decoded(content)
    assert result.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    assert np.array_equal(result, expected)


def test_damaged_exif_leaves_the_picture_as_it_lies() -> None:
    content = encode(Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(decoded(content), COLOUR)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(content) == [255, 0, 0]).all()


# ---- sizes ----


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 60), (400, 300)])
def test_the_short_side_is_reduced_exactly(size: tuple[int, int]) -> None:
    width, height = size
    result = decode_image(encode(Image.new("RGB", size, "green")), short_side=40)
    assert result.shape[:2] == (round(height * 40 / min(size)), round(width * 40 / min(size)))


def test_smaller_pictures_are_not_enlarged() -> None:
    assert np.array_equal(decode_image(encode(Image.fromarray(COLOUR)), short_side=50), COLOUR)


def test_reduction_is_pillows_antialiased_filter() -> None:
    picture = noise(64, 96, 3)
    expected = Image.fromarray(picture).resize((30, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(decode_image(encode(Image.fromarray(picture)), short_side=20), np.asarray(expected))


def test_large_jpegs_are_decoded_at_a_fraction_with_the_same_result() -> None:
    waves = np.sin(np.linspace(0, 20, 800))[:, None] * np.cos(np.linspace(0, 30, 1200))
    picture = np.repeat(np.rint(127 + 120 * waves).astype(np.uint8)[..., None], 3, axis=-1)
    content = encode(Image.fromarray(picture), "JPEG", quality=95)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.resize((60, 40), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode_image(content, short_side=40) - expected).max() <= 3


def test_long_pictures_keep_their_middle() -> None:
    picture = noise(6, 50, 3)
    assert np.array_equal(decoded(encode(Image.fromarray(picture))), picture[:, 13:37])
    assert decode_image(encode(Image.fromarray(noise(900, 20, 3))), short_side=10).shape == (40, 10, 3)


# ---- pictures that can't be used ----


def huge_png(side: int) -> bytes:
    """A valid 1-bit PNG of side x side zeros; deflate makes it tiny."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" * (side // 8 + 2)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 64)) + chunk(b"IEND", b"")


JPEG = encode(Image.fromarray(noise(40, 60, 3)), "JPEG")


SPOILED = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"This is no picture.", "not a picture"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated.png": (encode(Image.fromarray(noise(40, 60, 3)))[:2000], "truncated"),
    "truncated.tif": (tiff(noise(40, 60, 3))[:-500], "truncated"),
    "header.jpg": (JPEG[:40], "truncated"),
    "one.png": (encode(Image.new("RGB", (1, 1))), "too small: 1 x 1"),
    "line.png": (encode(Image.new("RGB", (300, 3))), "too small: 300 x 3"),
    "huge.png": (huge_png(30_000), "too many pixels: 30000 x 30000"),
    "large.png": (huge_png(10_001), "too many pixels"),
    "float.tif": (tiff(np.full((6, 9), 0.5, dtype=np.float32)), "32-bit values"),
    "integer.tif": (tiff(np.full((6, 9), 9, dtype=np.int32)), "32-bit values"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not a picture"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_files_are_refused_with_their_reason(name: str, tmp_path: Path) -> None:
    content, reason = SPOILED[name]
    path = tmp_path / name
    path.write_bytes(content)
    start = time.perf_counter()
    for source in (path, content):
        with pytest.raises(BadImageError) as caught:
            decode_image(source, short_side=32)
        assert reason in caught.value.reason
    assert str(path) in str(BadImageError(str(path), reason))
    assert time.perf_counter() - start < 1


def test_pictures_between_pillows_limit_and_ours_decode_without_a_warning() -> None:
    """Pillow warns above 89 million pixels; warnings are errors here."""
    side = 9_600
    assert 89_478_485 < side * side < MAX_PIXELS
    content = encode(Image.new("L", (side, side), 255), "JPEG")
    assert decode_image(content, short_side=16).min() == 255


def test_files_that_vanished_or_are_forbidden_are_bad_images(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="can't be read: No such file"):
        decode_image(tmp_path / "gone.jpg", short_side=None)
    with pytest.raises(BadImageError, match="can't be read: Is a directory"):
        decode_image(tmp_path, short_side=None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_any_truncation_is_noticed(kind: str) -> None:
    content = encode(Image.fromarray(noise(20, 30, 3)), kind)
    for length in range(0, len(content) - 24, 97):
        with pytest.raises(BadImageError):
            decoded(content[:length])
