"""From files or arrays to batches of square uint8 windows: decoding, and the stores that hold or stream pictures.

A set whose decoded pictures fit `data.cache_gib` is decoded once into a flat file that all workers of a machine map
(`CachedPictures`); a larger one is decoded by worker processes while training goes on (`StreamedPictures`).
"""

import hashlib
import io
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from rayssl.errors import DataError

MAX_PIXELS = 100_000_000
"""Pictures with more pixels than this are refused from their header, before anything is decoded."""
MIN_SIDE = 4
"""Pictures with a side shorter than this are not photographs (tracking pixels, mostly)."""
MAX_ASPECT = 4
"""Longer pictures lose both ends, so that a panorama can't take a store's memory."""

Plan = Iterable[tuple[np.ndarray, np.ndarray]]
"""Batches to come: indices (b,) and, for each, where along the long side its window lies, (b,) in [0, 1]."""

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
_CACHE_VERSION = 1

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class BadImage(DataError):  # noqa: N818 (it names the picture's state)
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


@dataclass(frozen=True)
class BadFile:
    """A picture that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageList:
    """Pictures that are not decoded yet.

    Attributes:
        items: Paths of files, or uint8 pictures (N, H, W, 3).
        labels: int64 (N,), indices into `classes`; -1 where a picture has none.
        classes: The classes' names; empty if no picture has a label.

    Raises:
        ValueError: If there are not as many labels as items.
    """

    items: Sequence[Path] | np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.labels):
            raise ValueError(f"labels: must be as many as items, {len(self.items)}, got {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        """Whether at least one picture has a label."""
        return bool((self.labels >= 0).any())

    def select(self, indices: np.ndarray) -> "ImageList":
        """The pictures at these indices (K,), in their order."""
        items = self.items[indices] if isinstance(self.items, np.ndarray) else [self.items[i] for i in indices]
        return ImageList(items, self.labels[indices], self.classes)


class Pictures(Protocol):
    """Decoded pictures, whichever way they are kept.

    Attributes:
        side: Side of the square windows, in pixels.
        labels: int64 (N,); -1 where a picture has no label.
        classes: The classes' names.
        bad_files: What could not be used so far.
    """

    side: int
    labels: np.ndarray
    classes: tuple[str, ...]
    bad_files: list[BadFile]

    def __len__(self) -> int: ...

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """Uint8 windows (b, 3, side, side), a batch for each entry of the plan.

        A window is the picture's whole short side and as much of the long one, from the fraction `position` of what
        there is to choose: 0 the left or top end, 0.5 the centre. In memory the channels come last.
        """
        ...


def open_pictures(
    images: ImageList,
    folder: Path,
    *,
    resize: int,
    cache_bytes: int,
    max_bad_fraction: float,
    num_workers: int,
    is_builder: bool,
    barrier: Callable[[], None],
) -> Pictures:
    """Keeps the pictures decoded if they fit `cache_bytes`, else streams them.

    The choice depends on the pictures' headers alone, so all ranks make the same one.

    Args:
        images: What to open; the same list on every rank.
        folder: Where the cache lies; it belongs to this list alone.
        resize: Short side to which pictures are reduced.
        cache_bytes: Most bytes that decoded pictures may take; 0 streams.
        max_bad_fraction: Share of pictures, in [0, 1], that may be unusable.
        num_workers: Decoding processes when streaming; 0 decodes in this process.
        is_builder: Whether this process writes its machine's cache; one process on each machine does.
        barrier: Returns when every rank has called it.

    Raises:
        DataError: If too many pictures can't be used, or the cache can't be written. Every rank raises it.
    """
    if _decoded_bytes(images, resize) > cache_bytes:
        return StreamedPictures(images, resize=resize, max_bad_fraction=max_bad_fraction, num_workers=num_workers)
    error_file = folder / "error.txt"
    failure = None
    if is_builder:
        # The other ranks wait at the barrier, so this one takes all cores, and reaches the barrier whatever happens.
        threads = min(os.cpu_count() or 1, 16)
        try:
            build_cache(images, folder, resize=resize, max_bad_fraction=max_bad_fraction, threads=threads)
        except DataError as error:
            failure = error
            with suppress(OSError):
                error_file.write_text(str(error), encoding="utf-8")
    barrier()
    if failure is not None:
        raise failure
    if error_file.exists():
        raise DataError(error_file.read_text(encoding="utf-8"))
    return CachedPictures.open(folder)


def check_size(images: ImageList, *, image_size: int, allow_upscaling: bool) -> None:
    """Refuses views larger than most of the pictures, unless enlarging them is asked for.

    Raises:
        DataError: If more than half of the sampled pictures have a short side under `image_size`.
    """
    short_sides = [min(size) for size in header_sizes(images)]
    too_small = sum(side < image_size for side in short_sides)
    if not allow_upscaling and 2 * too_small > len(short_sides):
        median = int(np.median(short_sides))
        raise DataError(
            f"data.image_size: {image_size} is larger than the pictures: {len(short_sides)} sampled, "
            f"median short side {median} px. Set data.image_size={median} or data.allow_upscaling=true."
        )


def header_sizes(images: ImageList, sample: int = 200) -> list[tuple[int, int]]:
    """(height, width) in pixels, as the pictures are looked at, of evenly spaced ones; unusable ones are left out."""
    if isinstance(images.items, np.ndarray):
        height, width = images.items.shape[1:3]
        return [(height, width)] * min(sample, len(images))
    sizes: list[tuple[int, int]] = []
    for index in np.linspace(0, len(images) - 1, min(sample, len(images))).astype(int):
        with suppress(BadImage), _opened(images.items[index]) as (image, orientation):
            width, height = image.size
            sizes.append((width, height) if orientation >= 5 else (height, width))
    return sizes


def _decoded_bytes(images: ImageList, resize: int) -> int:
    """Estimates what a cache of these pictures takes: all on the largest short side, as `build_cache` leaves them."""
    sizes = header_sizes(images)
    side = max((min(*size, resize) for size in sizes), default=0)
    aspects = [min(max(height, width) / min(height, width), MAX_ASPECT) for height, width in sizes]
    return round(3 * side * side * float(np.mean(aspects)) * len(images)) if sizes else 0


# ---- one picture ----


def decode_image(source: Path | bytes, *, short_side: int | None) -> np.ndarray:
    """Reads a picture as RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 1-bit pictures become RGB. Transparent ones are laid on white, as browsers do. 16-bit
    pictures are scaled from their whole range. 32-bit integers and floats don't say their range: the smallest of
    255 and 65535 (floats: 1, 255 and 65535) that holds all values is taken for white, and pictures beyond, or with
    negative values, are stretched from their least to their greatest value. Of animations the first frame counts.

    Args:
        source: A file, or its content.
        short_side: Larger pictures are reduced to this short side (antialiased, bilinear); smaller ones stay.

    Returns:
        uint8 (H, W, 3); at most `MAX_ASPECT` times as long as wide, the middle of longer pictures.

    Raises:
        BadImage: If the file is empty, truncated, unreadable, not a picture, under `MIN_SIDE` or over `MAX_PIXELS`.
    """
    with _opened(source) as (image, orientation):
        size = _reduced_size(*image.size, short_side=short_side)
        # A JPEG decodes to 1/2, 1/4 or 1/8 at a fraction of the cost; twice the target leaves the detail to the filter.
        image.draft(None, (2 * size[0], 2 * size[1]))
        image.load()
        picture = _reduce(_to_rgb(image), size)
        if orientation in _TURNS:
            picture = picture.transpose(_TURNS[orientation])
        return np.array(picture)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[Image.Image, int]]:
    """A picture with only its header read, its size checked, and its EXIF orientation; errors become `BadImage`."""
    # Pillow's limit warns at other sizes and again while decoding; the header is held against MAX_PIXELS here.
    # Another library may have asked Pillow to fill truncated files with grey.
    Image.MAX_IMAGE_PIXELS = None
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    place = str(source) if isinstance(source, Path) else "bytes"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            _check_sides(place, *image.size)
            yield image, _orientation(image)
    except UnidentifiedImageError as error:
        is_empty = len(source) == 0 if isinstance(source, bytes) else source.stat().st_size == 0
        raise BadImage(place, "empty file" if is_empty else "not a picture in a known format") from error
    except _PILLOW_ERRORS as error:
        file_error = error.strerror if isinstance(error, OSError) else None
        reason = f"can't be read: {file_error}" if file_error else f"truncated or damaged: {error}"
        raise BadImage(place, reason) from error


def _check_sides(place: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(place, f"too many pixels: {width} x {height} is more than {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE:
        raise BadImage(place, f"too small: {width} x {height}, both sides must have at least {MIN_SIDE} px")


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these itself while it decodes.
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _PILLOW_ERRORS:
        return 1  # A damaged EXIF block says nothing about the pixels.


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bit(image)).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> np.ndarray:
    """A one-channel picture of another depth as uint8 (H, W)."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ValueError("has values that are not finite")
    low, high = float(values.min()), float(values.max())
    whites = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is not None:
        low, high = 0.0, white
    return np.rint((values.astype(np.float64) - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)


def _reduced_size(width: int, height: int, *, short_side: int | None) -> tuple[int, int]:
    """(width, height) after both ends of a long picture went and the short side was reduced."""
    short = min(width, height)
    new_short = short if short_side is None else min(short, short_side)
    new_long = round(min(max(width, height), MAX_ASPECT * short) * new_short / short)
    return (new_long, new_short) if width >= height else (new_short, new_long)


def _reduce(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    width, height = image.size
    across, down = max(0, (width - MAX_ASPECT * height) // 2), max(0, (height - MAX_ASPECT * width) // 2)
    return image.resize(size, Image.Resampling.BILINEAR, box=(across, down, width - across, height - down))


def _enlarge(picture: np.ndarray, *, short_side: int) -> np.ndarray:
    """Brings a smaller picture's short side up to this one (bicubic); others are returned as they are."""
    height, width = picture.shape[:2]
    if min(height, width) >= short_side:
        return picture
    scale = short_side / min(height, width)
    size = (short_side, round(height * scale)) if width <= height else (round(width * scale), short_side)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _window(picture: np.ndarray, position: float, side: int) -> np.ndarray:
    """The (side, side, 3) part at this fraction of the long side; the short side must equal `side`."""
    top, left = (round(float(position) * (length - side)) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def _decode_item(item: Path | np.ndarray, *, short_side: int) -> np.ndarray:
    """`decode_image` for an item of an `ImageList`."""
    if isinstance(item, Path):
        return decode_image(item, short_side=short_side)
    height, width = item.shape[:2]
    _check_sides("array", width, height)
    size = _reduced_size(width, height, short_side=short_side)
    return item if size == (width, height) else np.array(_reduce(Image.fromarray(np.ascontiguousarray(item)), size))


# ---- pictures decoded once ----


class CachedPictures:
    """Pictures in one flat file, mapped read-only, so that all processes of a machine share its pages.

    Args:
        flat: All pixels, uint8, one picture after another.
        sizes: Height and width of each, (N, 2); every short side is the same.
        labels: int64 (N,).
        classes: The classes' names.
        bad_files: What was left out; `labels` knows nothing of them.
    """

    def __init__(
        self,
        flat: np.ndarray,
        sizes: np.ndarray,
        labels: np.ndarray,
        *,
        classes: tuple[str, ...],
        bad_files: list[BadFile],
    ) -> None:
        self.side = int(sizes.min())
        self.labels = labels
        self.classes = classes
        self.bad_files = bad_files
        self._flat = flat
        self._sizes = sizes
        self._offsets = _offsets(sizes)
        all_square = bool((sizes == self.side).all())
        self._squares = flat.reshape(-1, self.side, self.side, 3) if all_square else None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Maps what `build_cache` wrote.

        Raises:
            DataError: If the folder holds no complete cache.
        """
        state = _read_state(folder)
        if state is None:
            raise DataError(f"data.cache_gib: {folder} holds no complete cache. Start the run again to build it.")
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            sizes, labels = index["sizes"], index["labels"]
        flat = np.asarray(np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r"))
        bad_files = [BadFile(**bad) for bad in state["bad_files"]]
        return cls(flat, sizes, labels, classes=tuple(state["classes"]), bad_files=bad_files)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """See `Pictures.batches`."""
        for indices, positions in plan:
            if self._squares is not None:
                windows = self._squares[indices]
            else:
                windows = np.stack(
                    [
                        _window(self._picture(index), position, self.side)
                        for index, position in zip(indices, positions, strict=True)
                    ]
                )
            yield torch.from_numpy(windows).permute(0, 3, 1, 2)

    def _picture(self, index: int) -> np.ndarray:
        return _slice(self._flat, self._sizes, self._offsets, index)


def build_cache(images: ImageList, folder: Path, *, resize: int, max_bad_fraction: float, threads: int) -> None:
    """Decodes all pictures into `folder`, unless it holds them already.

    Pictures are reduced to the short side `resize`. Where their short sides then still differ, the smaller ones are
    enlarged (bicubic) to the largest, so that all windows have one side; equal ones stay as they are. Unusable
    pictures are left out, and listed with their reasons in `cache.json`.

    Args:
        images: What to decode.
        folder: Where to; made if missing.
        resize: Largest short side, in pixels.
        max_bad_fraction: Share of pictures, in [0, 1], that may be unusable.
        threads: How many pictures are decoded at once.

    Raises:
        DataError: If more pictures are unusable, or all of them, or the folder can't be written.
    """
    fingerprint = _fingerprint(images, resize)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
        state = _read_state(folder)
        if state is None or state["fingerprint"] != fingerprint:
            _write_cache(images, folder, fingerprint, resize=resize, max_bad_fraction=max_bad_fraction, threads=threads)
        else:
            _check_share([BadFile(**bad) for bad in state["bad_files"]], len(images), max_bad_fraction=max_bad_fraction)
    except OSError as error:
        raise DataError(
            f"data.cache_gib: the decoded pictures can't be written to {folder}: {error.strerror or error}. "
            "Make room there, or set data.cache_gib=0 to decode them while training."
        ) from error


def _write_cache(
    images: ImageList, folder: Path, fingerprint: str, *, resize: int, max_bad_fraction: float, threads: int
) -> None:
    decoded, index_file, state_file, equal = (folder / f"{name}.{os.getpid()}.tmp" for name in ("a", "b", "c", "d"))
    (folder / "cache.json").unlink(missing_ok=True)
    try:
        sizes, good, bad = _decode_all(images, decoded, resize=resize, threads=threads)
        _check_share(bad, len(images), max_bad_fraction=max_bad_fraction)
        side = int(sizes.min(axis=1).max())
        if (sizes.min(axis=1) < side).any():
            sizes = _enlarge_all(decoded, equal, sizes, side=side, threads=threads)
            equal.replace(decoded)
        with index_file.open("wb") as file:
            np.savez(file, sizes=sizes, labels=images.labels[good])
        state = {"fingerprint": fingerprint, "classes": images.classes, "bad_files": [asdict(each) for each in bad]}
        state_file.write_text(json.dumps(state, indent=1), encoding="utf-8")
        decoded.replace(folder / "pictures.bin")
        index_file.replace(folder / "index.npz")
        # Last, because its presence says that the rest is complete.
        state_file.replace(folder / "cache.json")
    finally:
        for temporary in (decoded, index_file, state_file, equal):
            temporary.unlink(missing_ok=True)


def _decode_all(
    images: ImageList, target: Path, *, resize: int, threads: int
) -> tuple[np.ndarray, np.ndarray, list[BadFile]]:
    """Writes all usable pictures one after another: their sizes (N, 2), their indices (N,) and the others' reasons."""

    def decode(index: int) -> np.ndarray | BadFile:
        try:
            return _decode_item(images.items[index], short_side=resize)
        except BadImage as error:
            return _bad_file(images, index, error.reason)

    sizes, good, bad = [], [], []
    with target.open("wb") as file:
        for index, result in enumerate(_in_order(decode, range(len(images)), threads=threads)):
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                file.write(np.ascontiguousarray(result).data)
                sizes.append(result.shape[:2])
                good.append(index)
    return np.array(sizes, dtype=np.int64).reshape(-1, 2), np.array(good, dtype=np.int64), bad


def _enlarge_all(source: Path, target: Path, sizes: np.ndarray, *, side: int, threads: int) -> np.ndarray:
    """Copies the pictures with all short sides brought up to `side`; returns their new sizes (N, 2)."""
    flat, offsets = np.memmap(source, dtype=np.uint8, mode="r"), _offsets(sizes)
    pictures = (np.asarray(_slice(flat, sizes, offsets, index)) for index in range(len(sizes)))
    new_sizes = []
    with target.open("wb") as file:
        for picture in _in_order(partial(_enlarge, short_side=side), pictures, threads=threads):
            file.write(picture.data)
            new_sizes.append(picture.shape[:2])
    return np.array(new_sizes, dtype=np.int64)


def _in_order(function: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int) -> Iterator[_Result]:
    """Maps in a thread pool, in order, with only a few results waiting (`Executor.map` would hold them all)."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _offsets(sizes: np.ndarray) -> np.ndarray:
    """Where each picture begins in the flat file, (N,) in bytes."""
    return np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))[:-1]])


def _slice(flat: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, index: int) -> np.ndarray:
    """A picture of the flat file, a view (H, W, 3)."""
    height, width = sizes[index]
    return flat[offsets[index] : offsets[index] + 3 * height * width].reshape(height, width, 3)


def _fingerprint(images: ImageList, resize: int) -> str:
    """Changes when the pictures, their labels or the way they are decoded change."""
    digest = hashlib.blake2b(repr((_CACHE_VERSION, resize, len(images), images.classes)).encode(), digest_size=16)
    digest.update(images.labels.tobytes())
    if isinstance(images.items, np.ndarray):
        digest.update(repr(images.items.shape).encode())
        for start in range(0, len(images), 1024):
            digest.update(images.items[start : start + 1024].tobytes())
    else:
        for path in images.items:
            digest.update(f"{path}\0{_size_and_time(path)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _read_state(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "cache.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _bad_file(images: ImageList, index: int, reason: str) -> BadFile:
    return BadFile(f"picture {index}" if isinstance(images.items, np.ndarray) else str(images.items[index]), reason)


def _check_share(bad: Sequence[BadFile], total: int, *, max_bad_fraction: float, spared: int = 0) -> None:
    """Raises DataError if the bad files are more than their share (and more than `spared`), or all there is."""
    if len(bad) <= max(spared, max_bad_fraction * total) and len(bad) < total:
        return
    first = "".join(f"\n  {each.path}: {each.reason}" for each in bad[:10])
    raise DataError(
        f"data.max_bad_fraction: at most {max_bad_fraction:.2%} of the pictures may be unusable, found {len(bad)} of "
        f"{total} ({len(bad) / max(total, 1):.2%}). Mend or remove them, or raise data.max_bad_fraction. "
        f"The first:{first}"
    )


# ---- pictures decoded while training ----


class StreamedPictures:
    """Pictures decoded again each time, by worker processes that stay alive between epochs.

    Every picture gets the short side `resize`, enlarged (bicubic) if it is smaller. In the place of an unusable one
    stands the next usable one in the list with the same label, or the next of all if there is none; the order is the
    plan's, whatever the number of workers.

    Args:
        images: What to decode.
        resize: The windows' side.
        max_bad_fraction: Share of pictures, in [0, 1], that may be unusable; one always may.
        num_workers: Decoding processes; 0 decodes in this process.
    """

    def __init__(self, images: ImageList, *, resize: int, max_bad_fraction: float, num_workers: int) -> None:
        self.side = resize
        self.labels = images.labels
        self.classes = images.classes
        self.bad_files: list[BadFile] = []
        self._images = images
        self._max_bad_fraction = max_bad_fraction
        self._num_workers = num_workers
        self._bad_indices: set[int] = set()
        self._decoder = _WindowDecoder(images, side=resize, max_bad=max(1, int(max_bad_fraction * len(images))))
        self._idle: list[tuple[_Requests, DataLoader]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """See `Pictures.batches`; iterations that overlap get worker processes of their own.

        Raises:
            DataError: If more pictures than `max_bad_fraction` proved to be unusable.
        """
        requests, loader = self._idle.pop() if self._idle else self._new_loader()
        requests.plan = plan
        try:
            for windows, reasons in loader:
                self._note(reasons)
                yield windows.permute(0, 3, 1, 2)
        finally:
            self._idle.append((requests, loader))

    def _new_loader(self) -> tuple["_Requests", DataLoader]:
        requests = _Requests()
        loader: DataLoader = DataLoader(
            self._decoder,
            batch_size=None,
            sampler=requests,
            num_workers=self._num_workers,
            collate_fn=_unchanged,
            persistent_workers=self._num_workers > 0,
            generator=torch.Generator(),  # Else each epoch would draw from the global one and shift a seeded run.
        )
        return requests, loader

    def _note(self, reasons: dict[int, str]) -> None:
        for index, reason in reasons.items():
            if index not in self._bad_indices:
                self._bad_indices.add(index)
                self.bad_files.append(_bad_file(self._images, index, reason))
        if reasons:
            _check_share(self.bad_files, len(self), max_bad_fraction=self._max_bad_fraction, spared=1)


class _Requests:
    """What the loader hands to its workers next: the entries of the plan."""

    plan: Plan = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter(self.plan)


class _WindowDecoder(Dataset):
    """An entry of the plan -> its windows (b, side, side, 3) and the unusable pictures met, index -> reason."""

    def __init__(self, images: ImageList, *, side: int, max_bad: int) -> None:
        self._images = images
        self._side = side
        self._max_bad = max_bad
        self._bad: dict[int, str] = {}

    def __getitem__(self, request: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, dict[int, str]]:
        indices, positions = request
        windows = np.zeros((len(indices), self._side, self._side, 3), dtype=np.uint8)
        met: dict[int, str] = {}
        for row, (index, position) in enumerate(zip(indices, positions, strict=True)):
            picture = self._usable_picture(int(index), met)
            if picture is None:
                return torch.from_numpy(windows), self._bad  # Too many: the parent, which sees them, stops the run.
            windows[row] = _window(picture, position, self._side)
        return torch.from_numpy(windows), met

    def _usable_picture(self, index: int, met: dict[int, str]) -> np.ndarray | None:
        for candidate in self._candidates(index):
            if candidate not in self._bad:
                try:
                    picture = _decode_item(self._images.items[candidate], short_side=self._side)
                    return _enlarge(picture, short_side=self._side)
                except BadImage as error:
                    self._bad[candidate] = error.reason
            met[candidate] = self._bad[candidate]
            if len(self._bad) > self._max_bad:
                break
        return None

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        following = (index + 1 + np.arange(len(self._images) - 1)) % len(self._images)
        same_label = self._images.labels[following] == self._images.labels[index]
        yield from following[same_label].tolist()
        yield from following[~same_label].tolist()


def _unchanged(batch: _Item) -> _Item:
    return batch
