"""Sets of pictures: a list of what is not decoded yet, and the protocol of the stores that decode it.

A set whose decoded pictures fit `data.cache_gib` is decoded once into a flat file (`rayssl.data.cache`); a larger one
is decoded by worker processes while training goes on (`rayssl.data.stream`). `rayssl.data.opening` chooses.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from rayssl.data.images import BadImageError, read_size
from rayssl.errors import DataError

Plan = Iterable[tuple[np.ndarray, np.ndarray | None]]
"""Batches to come: indices (b,) and, for each, where along the long side its window lies, (b,) in [0, 1]; None: the
whole picture, squeezed to a square."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Which classes each picture shows, for sets whose pictures show several.

    Attributes:
        classes: The classes' names.
        values: int8 (N, C): 1 where the class is shown, 0 where only objects of it are that are marked as difficult, -1
            where it is not.
    """

    classes: tuple[str, ...]
    values: np.ndarray

    def select(self, indices: np.ndarray) -> "Targets":
        """Those of the pictures at these indices (K,)."""
        return Targets(self.classes, self.values[indices])


@dataclass(frozen=True, eq=False)
class ImageList:
    """Pictures that are not decoded yet.

    Attributes:
        items: Paths of files, or uint8 pictures (N, H, W, 3).
        labels: int64 (N,), indices into `classes`; -1 where a picture has none.
        classes: The classes' names; empty if no picture has a label.
        targets: What pictures of several classes show; None if no picture has more than one. Such pictures have no
            labels.

    Raises:
        ValueError: If there are not as many labels, or targets, as items.
    """

    items: Sequence[Path] | np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    targets: Targets | None = None

    def __post_init__(self) -> None:
        if len(self.items) != len(self.labels):
            raise ValueError(f"labels: must be as many as items, {len(self.items)}, got {len(self.labels)}")
        if self.targets is not None and len(self.targets.values) != len(self.labels):
            raise ValueError(f"targets: must be as many as items, {len(self.items)}, got {len(self.targets.values)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        """Whether at least one picture has a label."""
        return bool((self.labels >= 0).any())

    def name_of(self, index: int) -> str:
        """What to call a picture in a message: its path, or its number."""
        return f"picture {index}" if isinstance(self.items, np.ndarray) else str(self.items[index])

    def select(self, indices: np.ndarray) -> "ImageList":
        """The pictures at these indices (K,), in their order."""
        items = self.items[indices] if isinstance(self.items, np.ndarray) else [self.items[i] for i in indices]
        targets = None if self.targets is None else self.targets.select(indices)
        return ImageList(items, self.labels[indices], self.classes, targets)


@dataclass(frozen=True)
class BadFile:
    """A picture that was left out, and why."""

    path: str
    reason: str


class Pictures(Protocol):
    """Decoded pictures, whichever way they are kept.

    Attributes:
        side: Side of the square windows, in pixels.
        labels: int64 (N,); -1 where a picture has no label.
        classes: The classes' names.
        targets: What pictures of several classes show; None if no picture has more than one.
        numbers: Each picture's number in the list that was opened, int64 (N,).
        bad_files: What could not be used so far.
    """

    side: int
    labels: np.ndarray
    classes: tuple[str, ...]
    targets: Targets | None
    numbers: np.ndarray
    bad_files: list[BadFile]

    @property
    def fingerprint(self) -> str:
        """Hex digits that change with the pictures that were listed and the way they are decoded."""

    def __len__(self) -> int: ...

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """Uint8 windows (b, 3, side, side), a batch for each entry of the plan.

        A window is the picture's whole short side and as much of the long one, from the fraction `position` of what
        there is to choose: 0 the left or top end, 0.5 the centre. Without positions it is the whole picture, its aspect
        distorted. In memory the channels come last.
        """
        ...


def fingerprint(images: ImageList, *settings: object) -> str:
    """32 hex digits that change when the pictures, their labels or these settings change.

    Pictures in memory count by their pixels, files by path, size and time of the last change.
    """
    digest = hashlib.blake2b(repr((*settings, len(images), images.classes)).encode(), digest_size=16)
    digest.update(images.labels.tobytes())
    if images.targets is not None:
        digest.update(repr(images.targets.classes).encode() + images.targets.values.tobytes())
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
        with suppress(BadImageError):
            sizes.append(read_size(images.items[index]))
    return sizes


def check_bad_share(bad: Sequence[BadFile], total: int, *, max_bad_fraction: float, spared: int = 0) -> None:
    """Stops a run that has too many unusable pictures.

    Args:
        bad: The unusable pictures found so far.
        total: Number of all pictures.
        max_bad_fraction: Share of them, in [0, 1], that may be unusable.
        spared: As many may be unusable in any case.

    Raises:
        DataError: If the bad ones are more than both, or all there is.
    """
    if len(bad) <= max(spared, max_bad_fraction * total) and len(bad) < total:
        return
    first = "".join(f"\n  {each.path}: {each.reason}" for each in bad[:10])
    raise DataError(
        f"data.max_bad_fraction: at most {max_bad_fraction:.2%} of the pictures may be unusable, found {len(bad)} of "
        f"{total} ({len(bad) / max(total, 1):.2%}). Mend or remove them, or raise data.max_bad_fraction. "
        f"The first:{first}"
    )
