"""Decoding against known colours, and both stores against plain slicing of the pictures that they were given."""

import io
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rayssl.data.images import (
    MAX_PIXELS,
    BadImage,
    CachedPictures,
    ImageList,
    Pictures,
    StreamedPictures,
    build_cache,
    check_size,
    decode_image,
    header_sizes,
    open_pictures,
)
from rayssl.errors import DataError

NO_LIMIT = 1 << 40


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray) -> bytes:
    return encode(Image.fromarray(values), "TIFF")


def decoded(content: bytes) -> np.ndarray:
    return decode_image(content, short_side=None)


def write_pictures(folder: Path, pictures: list[np.ndarray]) -> ImageList:
    paths = [folder / f"{index:03}.png" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return ImageList(paths, np.arange(len(paths)), tuple(f"class {index}" for index in range(len(paths))))


def cached(images: ImageList, folder: Path, *, resize: int = 64, max_bad_fraction: float = 0.5) -> CachedPictures:
    build_cache(images, folder, resize=resize, max_bad_fraction=max_bad_fraction, threads=2)
    return CachedPictures.open(folder)


def plan(*batches: tuple[list[int], list[float]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.array(indices), np.array(positions)) for indices, positions in batches]


def windows(pictures: Pictures, indices: list[int], position: float = 0.5) -> np.ndarray:
    """One batch, channels last: (b, side, side, 3)."""
    (batch,) = pictures.batches(plan((indices, [position] * len(indices))))
    return batch.permute(0, 2, 3, 1).numpy()


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
        (tiff(SIXTEEN_BIT.astype(np.int32)), SIXTEEN_BIT / 257),
        (tiff(GREY.astype(np.int32)), GREY),
        (tiff(SIXTEEN_BIT.astype(np.int32) - 40000), (SIXTEEN_BIT - SIXTEEN_BIT.min()) / np.ptp(SIXTEEN_BIT) * 255),
        (tiff((SIXTEEN_BIT / 65535).astype(np.float32)), SIXTEEN_BIT / 257),
        (tiff(GREY.astype(np.float32)), GREY),
        (tiff(np.full((6, 9), -5, dtype=np.int32)), np.zeros((6, 9))),
        (tiff((SIXTEEN_BIT // 300).astype(np.uint16)), SIXTEEN_BIT // 300 / 257),
    ],
    ids=[
        "I;16 png",
        "I;16 tiff",
        "I",
        "I of bytes",
        "I stretched",
        "F of 0..1",
        "F of bytes",
        "I constant",
        "dark I;16",
    ],
)
def test_deep_pictures_are_scaled_and_not_clipped(content: bytes, expected: np.ndarray) -> None:
    result = decoded(content)
    assert result.dtype == np.uint8
    assert np.abs(result[..., 1] - expected).max() <= 0.5 + 1e-3


def test_deep_pictures_of_big_endian_machines() -> None:
    """A 16-bit PGM stores its high byte first."""
    content = b"P5 9 6 65535\n" + SIXTEEN_BIT.astype(">u2").tobytes()
    assert np.abs(decoded(content)[..., 0] - SIXTEEN_BIT / 257).max() <= 0.5


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
    "nan.tif": (tiff(np.full((6, 9), np.nan, dtype=np.float32)), "not finite"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not a picture"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_files_are_refused_with_their_reason(name: str, tmp_path: Path) -> None:
    content, reason = SPOILED[name]
    path = tmp_path / name
    path.write_bytes(content)
    start = time.perf_counter()
    for source in (path, content):
        with pytest.raises(BadImage) as caught:
            decode_image(source, short_side=32)
        assert reason in caught.value.reason
    assert str(path) in str(BadImage(str(path), reason))
    assert time.perf_counter() - start < 1


def test_pictures_between_pillows_limit_and_ours_decode_without_a_warning() -> None:
    """Pillow warns above 89 million pixels; warnings are errors here."""
    side = 9_600
    assert 89_478_485 < side * side < MAX_PIXELS
    content = encode(Image.new("L", (side, side), 255), "JPEG")
    assert decode_image(content, short_side=16).min() == 255


def test_files_that_vanished_or_are_forbidden_are_bad_images(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="can't be read: No such file"):
        decode_image(tmp_path / "gone.jpg", short_side=None)
    with pytest.raises(BadImage, match="can't be read: Is a directory"):
        decode_image(tmp_path, short_side=None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_any_truncation_is_noticed(kind: str) -> None:
    content = encode(Image.fromarray(noise(20, 30, 3)), kind)
    for length in range(0, len(content) - 24, 97):
        with pytest.raises(BadImage):
            decoded(content[:length])


# ---- lists and headers ----


def test_a_list_needs_a_label_for_each_item() -> None:
    with pytest.raises(ValueError, match="as many as items, 2, got 1"):
        ImageList([Path("a"), Path("b")], np.zeros(1, dtype=np.int64), ("a",))


def test_selecting_keeps_pictures_and_labels_together() -> None:
    array = noise(5, 8, 8, 3)
    paths = [Path(f"{index}.png") for index in range(5)]
    labels = np.array([0, 1, -1, 1, 0])
    chosen = np.array([4, 2])
    of_array = ImageList(array, labels, ("a", "b")).select(chosen)
    of_paths = ImageList(paths, labels, ("a", "b")).select(chosen)
    assert np.array_equal(np.asarray(of_array.items), array[chosen])
    assert of_paths.items == [paths[4], paths[2]]
    assert of_paths.labels.tolist() == of_array.labels.tolist() == [0, -1]
    assert of_paths.has_labels
    assert not of_paths.select(np.array([1])).has_labels


def test_headers_tell_upright_sizes_and_skip_bad_files(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "c.tif", tiffinfo=exif)
    (tmp_path / "d.jpg").write_bytes(b"")
    images = ImageList(sorted(tmp_path.iterdir()), np.full(4, -1), ())
    assert header_sizes(images) == [(20, 30), (30, 20), (30, 20)]
    assert header_sizes(images, sample=1) == [(20, 30)]
    assert header_sizes(ImageList(noise(3, 8, 9, 3), np.full(3, -1), ())) == [(8, 9)] * 3


def test_views_larger_than_most_pictures_are_refused() -> None:
    images = ImageList(noise(3, 40, 32, 3), np.full(3, -1), ())
    check_size(images, image_size=32, allow_upscaling=False)
    check_size(images, image_size=224, allow_upscaling=True)
    with pytest.raises(
        DataError, match=r"data.image_size: 224 .* 3 sampled, median short side 32 px. Set data.image_size=32"
    ):
        check_size(images, image_size=224, allow_upscaling=False)


def test_half_of_the_pictures_may_be_smaller_than_the_view(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(20, 20, 3), noise(40, 40, 3)])
    check_size(images, image_size=40, allow_upscaling=False)


# ---- the cache ----


def test_equal_squares_come_back_untouched_and_in_order(tmp_path: Path) -> None:
    pictures = [noise(16, 16, 3, seed=seed) for seed in range(5)]
    store = cached(write_pictures(tmp_path, pictures), tmp_path / "cache")
    assert store.side == 16
    assert np.array_equal(windows(store, [3, 0, 3]), np.stack([pictures[3], pictures[0], pictures[3]]))


def test_windows_are_slices_along_the_long_side(tmp_path: Path) -> None:
    tall, wide = noise(30, 16, 3), noise(16, 25, 3, seed=1)
    store = cached(write_pictures(tmp_path, [tall, wide]), tmp_path / "cache")
    assert np.array_equal(windows(store, [0, 1], 0.0), np.stack([tall[:16], wide[:, :16]]))
    assert np.array_equal(windows(store, [0, 1], 0.5), np.stack([tall[7:23], wide[:, 4:20]]))
    assert np.array_equal(windows(store, [0, 1], 1.0), np.stack([tall[14:], wide[:, 9:]]))


def test_smaller_pictures_are_enlarged_to_the_largest_short_side(tmp_path: Path) -> None:
    wide, tall, large = noise(10, 15, 3), noise(17, 11, 3, seed=1), noise(20, 20, 3, seed=2)
    store = cached(write_pictures(tmp_path, [wide, tall, large]), tmp_path / "cache")
    enlarged_wide = np.asarray(Image.fromarray(wide).resize((30, 20), Image.Resampling.BICUBIC))
    enlarged_tall = np.asarray(Image.fromarray(tall).resize((20, 31), Image.Resampling.BICUBIC))
    assert store.side == 20
    assert np.array_equal(windows(store, [0, 1, 2], 0.0), np.stack([enlarged_wide[:, :20], enlarged_tall[:20], large]))


def test_arrays_are_reduced_like_files(tmp_path: Path) -> None:
    array = np.stack([noise(40, 60, 3, seed=seed) for seed in range(3)])
    of_array = cached(ImageList(array, np.arange(3), ("a", "b", "c")), tmp_path / "array", resize=20)
    of_files = cached(write_pictures(tmp_path, list(array)), tmp_path / "files", resize=20)
    assert of_array.side == 20
    assert np.array_equal(windows(of_array, [0, 1, 2], 0.3), windows(of_files, [0, 1, 2], 0.3))


def test_grey_arrays_may_be_broadcast_views(tmp_path: Path) -> None:
    grey = noise(4, 8, 8)
    view = np.broadcast_to(grey[..., None], (4, 8, 8, 3))
    store = cached(ImageList(view, np.full(4, -1), ()), tmp_path)
    assert np.array_equal(windows(store, [2])[0], view[2])


def spoil(images: ImageList, *indices: int) -> None:
    for index in indices:
        Path(images.items[index]).write_bytes(b"")


def test_bad_files_are_left_out_with_their_labels_and_listed(tmp_path: Path) -> None:
    pictures = [noise(16, 16, 3, seed=seed) for seed in range(6)]
    images = write_pictures(tmp_path, pictures)
    spoil(images, 1, 4)
    store = cached(images, tmp_path / "cache")
    assert len(store) == 4
    assert store.labels.tolist() == [0, 2, 3, 5]
    assert np.array_equal(windows(store, [0, 1, 2, 3]), np.stack([pictures[label] for label in store.labels]))
    listed = json.loads((tmp_path / "cache" / "cache.json").read_text())["bad_files"]
    assert listed == [{"path": str(images.items[index]), "reason": "empty file"} for index in (1, 4)]
    assert [bad.path for bad in store.bad_files] == [bad["path"] for bad in listed]


def test_too_many_bad_files_stop_with_the_list(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)] * 14)
    spoil(images, *range(12))
    with pytest.raises(DataError) as caught:
        cached(images, tmp_path / "cache", max_bad_fraction=0.1)
    message = str(caught.value)
    assert "data.max_bad_fraction: at most 10.00% of the pictures may be unusable, found 12 of 14 (85.71%)" in message
    assert message.count("empty file") == 10
    assert str(images.items[0]) in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_set_without_a_readable_picture_is_refused_whatever_the_share(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)] * 2)
    spoil(images, 0, 1)
    with pytest.raises(DataError, match="found 2 of 2"):
        cached(images, tmp_path / "cache", max_bad_fraction=1.0)


def test_a_complete_cache_is_not_built_again(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(16, 20, 3), noise(12, 12, 3)])
    cached(images, tmp_path / "cache")
    before = (tmp_path / "cache" / "pictures.bin").stat()
    cached(images, tmp_path / "cache")
    assert (tmp_path / "cache" / "pictures.bin").stat().st_ino == before.st_ino
    with pytest.raises(DataError, match="data.max_bad_fraction"):
        spoil(images, 0)
        cached(images, tmp_path / "cache", max_bad_fraction=0.1)


def changed_file(images: ImageList) -> ImageList:
    path = Path(images.items[0])
    Image.fromarray(noise(16, 16, 3, seed=9)).save(path)
    os.utime(path, (1, 1))
    return images


@pytest.mark.parametrize(
    "change",
    [
        changed_file,
        lambda images: images.select(np.array([1, 0])),
        lambda images: ImageList(images.items, images.labels[::-1].copy(), images.classes),
    ],
    ids=["file", "order", "labels"],
)
def test_changed_input_builds_the_cache_again(tmp_path: Path, change: Callable[[ImageList], ImageList]) -> None:
    images = write_pictures(tmp_path, [noise(16, 16, 3), noise(16, 16, 3, seed=1)])
    cached(images, tmp_path / "cache")
    images = change(images)
    store = cached(images, tmp_path / "cache")
    expected = np.stack([np.asarray(Image.open(path)) for path in images.items])
    assert np.array_equal(windows(store, [0, 1]), expected)
    assert np.array_equal(store.labels, images.labels)


def test_changed_pixels_of_an_array_and_another_size_build_again(tmp_path: Path) -> None:
    array = noise(3, 16, 16, 3)
    images = ImageList(array, np.full(3, -1), ())
    cached(images, tmp_path)
    array[1, 2, 3] ^= 1
    assert np.array_equal(windows(cached(images, tmp_path), [0, 1, 2]), array)
    assert cached(images, tmp_path, resize=8).side == 8


def test_an_open_cache_survives_a_rebuild(tmp_path: Path) -> None:
    first, second = noise(3, 8, 8, 3), noise(3, 8, 8, 3, seed=1)
    store = cached(ImageList(first, np.full(3, -1), ()), tmp_path)
    cached(ImageList(second, np.full(3, -1), ()), tmp_path)
    assert np.array_equal(windows(store, [0, 1, 2]), first)


def test_two_openings_map_the_same_file(tmp_path: Path) -> None:
    """Both see a byte changed in the file afterwards, so neither holds a copy of its own."""
    store = cached(ImageList(noise(3, 8, 8, 3), np.full(3, -1), ()), tmp_path)
    other = CachedPictures.open(tmp_path)
    changed = np.memmap(tmp_path / "pictures.bin", dtype=np.uint8, mode="r+")
    changed[0] ^= 255
    changed.flush()
    assert windows(store, [0])[0, 0, 0, 0] == windows(other, [0])[0, 0, 0, 0] == changed[0]


def test_a_folder_without_a_cache_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no complete cache"):
        CachedPictures.open(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.cache_gib: .* set data.cache_gib=0"):
        cached(ImageList(noise(3, 8, 8, 3), np.full(3, -1), ()), tmp_path / "file" / "cache")


# ---- streaming ----


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_windows_equal_cached_ones(tmp_path: Path, num_workers: int) -> None:
    pictures = [noise(40, 60, 3), noise(50, 40, 3, seed=1), noise(20, 33, 3, seed=2), noise(20, 20, 3, seed=3)]
    images = write_pictures(tmp_path, pictures)
    store = cached(images, tmp_path / "cache", resize=20)
    stream = StreamedPictures(images, resize=20, max_bad_fraction=0.0, num_workers=num_workers)
    batches = plan(
        ([0, 1, 2], [0.0, 1.0, 0.4]), ([3, 2], [0.5, 0.7]), ([1], [0.2]), ([2, 1, 0, 3], [0.1, 0.3, 0.6, 0.9])
    )
    for _ in range(2):
        both = zip(store.batches(batches), stream.batches(batches), strict=True)
        assert all(torch.equal(of_store, of_stream) for of_store, of_stream in both)


def test_streaming_enlarges_smaller_pictures(tmp_path: Path) -> None:
    picture = noise(10, 15, 3)
    stream = StreamedPictures(write_pictures(tmp_path, [picture]), resize=20, max_bad_fraction=0.0, num_workers=0)
    enlarged = np.asarray(Image.fromarray(picture).resize((30, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(windows(stream, [0], 1.0)[0], enlarged[:, 10:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_is_replaced_within_its_class_and_recorded_once(tmp_path: Path, num_workers: int) -> None:
    pictures = [noise(8, 8, 3, seed=seed) for seed in range(6)]
    paths = write_pictures(tmp_path, pictures).items
    images = ImageList(paths, np.array([0, 1, 0, 1, 0, 1]), ("a", "b"))
    spoil(images, 1)
    stream = StreamedPictures(images, resize=8, max_bad_fraction=0.0, num_workers=num_workers)
    batches = plan(([0, 1], [0.5, 0.5]), ([1, 2], [0.5, 0.5]), ([3, 1], [0.5, 0.5]))
    result = [batch.permute(0, 2, 3, 1).numpy() for batch in stream.batches(batches)]
    expected = [[0, 3], [3, 2], [3, 3]]
    assert np.array_equal(np.stack(result), np.stack([[pictures[index] for index in batch] for batch in expected]))
    assert [bad.path for bad in stream.bad_files] == [str(paths[1])]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_files_stop_a_stream_in_the_parent(tmp_path: Path, num_workers: int) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)] * 10)
    spoil(images, 2, 5, 7)
    stream = StreamedPictures(images, resize=8, max_bad_fraction=0.2, num_workers=num_workers)
    with pytest.raises(DataError, match=r"^data.max_bad_fraction: at most 20.00% .* found 3 of 10"):
        list(stream.batches(plan(*(([index], [0.5]) for index in range(10)))))
    assert len(stream.bad_files) == 3


def test_a_stream_of_bad_files_alone_ends_instead_of_searching_for_ever(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)])
    spoil(images, 0)
    with pytest.raises(DataError, match="found 1 of 1"):
        windows(StreamedPictures(images, resize=8, max_bad_fraction=1.0, num_workers=0), [0])


def test_iterations_may_overlap_and_be_abandoned(tmp_path: Path) -> None:
    pictures = [noise(8, 8, 3, seed=seed) for seed in range(6)]
    stream = StreamedPictures(write_pictures(tmp_path, pictures), resize=8, max_bad_fraction=0.0, num_workers=1)
    abandoned = stream.batches(plan(*(([index], [0.5]) for index in range(6))))
    assert np.array_equal(next(abandoned)[0].permute(1, 2, 0).numpy(), pictures[0])
    assert np.array_equal(windows(stream, [4])[0], pictures[4])
    assert np.array_equal(next(abandoned)[0].permute(1, 2, 0).numpy(), pictures[1])
    del abandoned
    assert np.array_equal(windows(stream, [5])[0], pictures[5])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streaming_draws_nothing_from_the_global_generator(tmp_path: Path, num_workers: int) -> None:
    stream = StreamedPictures(
        write_pictures(tmp_path, [noise(8, 8, 3)]), resize=8, max_bad_fraction=0.0, num_workers=num_workers
    )
    before = torch.get_rng_state()
    windows(stream, [0])
    windows(stream, [0])
    assert torch.equal(torch.get_rng_state(), before)


# ---- the choice between them ----


def opened(images: ImageList, folder: Path, **changes: object) -> Pictures:
    options: dict = {"resize": 16, "cache_bytes": NO_LIMIT, "max_bad_fraction": 0.0, "num_workers": 0}
    options |= {"is_builder": True, "barrier": lambda: None} | changes
    return open_pictures(images, folder, **options)


def test_sets_beyond_the_limit_are_streamed(tmp_path: Path) -> None:
    """Three pictures of 16 x 24 after reduction: 3 * 3 * 16 * 24 bytes."""
    images = write_pictures(tmp_path, [noise(32, 48, 3)] * 3)
    size = 3 * 3 * 16 * 24
    assert isinstance(opened(images, tmp_path / "cache", cache_bytes=size), CachedPictures)
    assert (tmp_path / "cache" / "pictures.bin").stat().st_size == size
    assert isinstance(opened(images, tmp_path / "other", cache_bytes=size - 1), StreamedPictures)
    assert not (tmp_path / "other").exists()


def test_the_other_ranks_wait_for_the_builder(tmp_path: Path) -> None:
    images = ImageList(noise(5, 16, 16, 3), np.full(5, -1), ())
    barrier = threading.Barrier(2, timeout=10)
    opened_by: dict[bool, Pictures] = {}

    def rank(is_builder: bool) -> None:
        opened_by[is_builder] = opened(images, tmp_path, is_builder=is_builder, barrier=barrier.wait)

    threads = [threading.Thread(target=rank, args=(is_builder,)) for is_builder in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(windows(opened_by[True], [1, 4]), windows(opened_by[False], [1, 4]))


def test_every_rank_raises_the_builders_error_and_none_hangs(tmp_path: Path) -> None:
    images = write_pictures(tmp_path, [noise(8, 8, 3)] * 2)
    good = Path(images.items[0]).read_bytes()
    spoil(images, 0)
    barrier = threading.Barrier(2, timeout=10)
    messages: dict[bool, str] = {}

    def rank(is_builder: bool) -> None:
        try:
            opened(images, tmp_path / "cache", is_builder=is_builder, barrier=barrier.wait)
        except DataError as error:
            messages[is_builder] = str(error)

    threads = [threading.Thread(target=rank, args=(is_builder,)) for is_builder in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages[True] == messages[False]
    assert "found 1 of 2" in messages[True]
    Path(images.items[0]).write_bytes(good)
    assert len(opened(images, tmp_path / "cache")) == 2
