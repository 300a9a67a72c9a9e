"""One picture: from a file to upright RGB pixels of a bounded size."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from rayssl.data.jpeg import decode_jpeg, resize_bytes
from rayssl.errors import DataError

MAX_PIXELS = 100_000_000
"""Pictures with more pixels than this are refused from their header, before anything is decoded."""
MIN_SIDE = 4
"""Pictures with a side shorter than this are not photographs (tracking pixels, mostly)."""
MAX_ASPECT = 4
"""Longer pictures lose both ends, so that a panorama can't take a store's memory."""

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
# UserWarning: what Pillow has to say about damaged metadata, where a caller turns warnings into errors.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, UserWarning)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(DataError):
    """One picture that can't be used.

    Args:
        place: The file's path, or "bytes".
        reason: What is wrong with it, as a phrase.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def decode_image(source: Path | bytes, *, short_side: int | None) -> np.ndarray:
    """Reads a picture as RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 1-bit pictures become RGB. Transparent ones are laid on white, as browsers do. 16-bit
    pictures are scaled from their whole range; 32-bit integers and floats, which don't say their range, are refused.
    Of animations the first frame counts.

    Args:
        source: A file, or its content.
        short_side: Larger pictures are reduced to this short side (antialiased, bilinear); smaller ones stay.

    Returns:
        uint8 (H, W, 3); at most `MAX_ASPECT` times as long as wide, the middle of longer pictures.

    Raises:
        BadImageError: If the file is empty, truncated, unreadable, not a picture, under `MIN_SIDE`, over `MAX_PIXELS`
            or of 32-bit values.
    """
    with _opened(source) as (image, orientation):
        size = _reduced_size(*image.size, short_side=short_side)
        whole = image.size
        # A JPEG decodes to 1/2, 1/4 or 1/8 at a fraction of the cost; twice the target leaves the detail to the filter.
        image.draft(None, (2 * size[0], 2 * size[1]))
        pixels = decode_jpeg(image) if image.size == whole else None
        if pixels is not None:
            pixels = _reduce_bytes(pixels, size)
            return _turned(Image.fromarray(pixels), orientation) if orientation in _TURNS else pixels
        image.load()
        return _turned(_reduce(_to_rgb(image), size), orientation)


def decode_item(item: Path | np.ndarray, *, short_side: int) -> np.ndarray:
    """`decode_image` for an item of an `ImageList`: a file, or a picture uint8 (H, W, 3), which is reduced alike.

    Raises:
        BadImageError: As `decode_image`.
    """
    if isinstance(item, Path):
        return decode_image(item, short_side=short_side)
    height, width = item.shape[:2]
    _check_sides("array", width, height)
    size = _reduced_size(width, height, short_side=short_side)
    return item if size == (width, height) else np.array(_reduce(Image.fromarray(np.ascontiguousarray(item)), size))


def read_size(source: Path | bytes) -> tuple[int, int]:
    """(height, width) in pixels of a picture as it is looked at, from its header alone.

    Raises:
        BadImageError: As `decode_image`, as far as the header tells.
    """
    with _opened(source) as (image, orientation):
        width, height = image.size
        return (width, height) if orientation >= 5 else (height, width)


def enlarge(picture: np.ndarray, *, short_side: int) -> np.ndarray:
    """Brings a smaller picture's short side up to this one (bicubic); others are returned as they are."""
    height, width = picture.shape[:2]
    if min(height, width) >= short_side:
        return picture
    scale = short_side / min(height, width)
    size = (short_side, round(height * scale)) if width <= height else (round(width * scale), short_side)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def cut_window(picture: np.ndarray, position: float, side: int) -> np.ndarray:
    """The (side, side, 3) part at this fraction of the long side; the short side must equal `side`."""
    top, left = (round(float(position) * (length - side)) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def squeeze(picture: np.ndarray, side: int) -> np.ndarray:
    """The whole picture as a square (side, side, 3), its aspect distorted (antialiased, bilinear)."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[Image.Image, int]]:
    """A picture with only its header read and checked, and its EXIF orientation; errors become `BadImageError`."""
    # Pillow's limit warns at other sizes and again while decoding; the header is held against MAX_PIXELS here.
    # Another library may have asked Pillow to fill truncated files with grey.
    Image.MAX_IMAGE_PIXELS = None
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    place = str(source) if isinstance(source, Path) else "bytes"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            _check_sides(place, *image.size)
            _check_depth(place, image)
            yield image, _orientation(image)
    except UnidentifiedImageError as error:
        is_empty = len(source) == 0 if isinstance(source, bytes) else source.stat().st_size == 0
        raise BadImageError(place, "empty file" if is_empty else "not a picture in a known format") from error
    except _PILLOW_ERRORS as error:
        file_error = error.strerror if isinstance(error, OSError) else None
        reason = f"can't be read: {file_error}" if file_error else f"truncated or damaged: {error}"
        raise BadImageError(place, reason) from error


def _check_sides(place: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(place, f"too many pixels: {width} x {height} is more than {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE:
        raise BadImageError(place, f"too small: {width} x {height}, both sides must have at least {MIN_SIDE} px")


def _check_depth(place: str, image: Image.Image) -> None:
    is_sixteen_bit_pgm = image.mode == "I" and image.format == "PPM"  # Pillow widens these, scaled to 65535.
    if image.mode in ("I", "F") and not is_sixteen_bit_pgm:
        raise BadImageError(place, "has 32-bit values, whose range is unknown. Save it with 8 or 16 bits")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself while it decodes.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _PILLOW_ERRORS:
        return 1  # A damaged EXIF block says nothing about the pixels.


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reduced_size(width: int, height: int, *, short_side: int | None) -> tuple[int, int]:
    """(width, height) after both ends of a long picture went and the short side was reduced."""
    short = min(width, height)
    new_short = short if short_side is None else min(short, short_side)
    new_long = round(min(max(width, height), MAX_ASPECT * short) * new_short / short)
    return (new_long, new_short) if width >= height else (new_short, new_long)


def _reduce(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box=_middle(*image.size))


def _reduce_bytes(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = _middle(pixels.shape[1], pixels.shape[0])
    part = pixels[top:bottom, left:right]
    return part if part.shape[1::-1] == size else resize_bytes(part, size)


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the part of a long picture that stays."""
    across, down = max(0, (width - MAX_ASPECT * height) // 2), max(0, (height - MAX_ASPECT * width) // 2)
    return across, down, width - across, height - down


def _turned(image: Image.Image, orientation: int) -> np.ndarray:
    return np.array(image.transpose(_TURNS[orientation]) if orientation in _TURNS else image)
