"""Are pictures that a measurement is tested on among those that it learns from?"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayssl.data.pictures import ImageList

_SAMPLE = 500
"""Test pictures whose content is looked for."""
_MOST_COMPARED = 200_000
"""Training pictures whose content is compared; of larger sets an evenly spaced part."""


@dataclass(frozen=True)
class Overlap:
    """What two sets share."""

    same_files: list[str]
    """Test pictures that are files of the training set."""
    same_content: list[str]
    """Of a sample of the others: "TEST is TRAIN" for those with the same bytes."""


def find_overlap(train: ImageList, test: ImageList) -> Overlap:
    """Look for test pictures among the training pictures, by their paths and by their bytes.

    Paths are compared for all pictures; bytes for an evenly spaced sample of 500 test pictures, and only with files of
    the same size.

    Args:
        train: What is learned from.
        test: What is told.

    Returns:
        What they share, named as in `ImageList.name_of`.
    """
    same_files: list[str] = []
    if not isinstance(train.items, np.ndarray) and not isinstance(test.items, np.ndarray):
        ours = {os.path.realpath(path) for path in train.items}
        same_files = [str(path) for path in test.items if os.path.realpath(path) in ours]
    sample = {index: _size(test, index) for index in _spaced(len(test), _SAMPLE)}
    sizes = set(sample.values()) - {0}
    known = {_digest(test, index): index for index, size in sample.items() if size in sizes}
    named = set(same_files)
    same_content = [
        f"{test.name_of(known[digest])} is {train.name_of(index)}"
        for index in _spaced(len(train), _MOST_COMPARED)
        if _size(train, index) in sizes and (digest := _digest(train, index)) in known
        if test.name_of(known[digest]) not in named
    ]
    return Overlap(same_files, same_content)


def _spaced(count: int, most: int) -> Iterator[int]:
    return iter(np.linspace(0, count - 1, min(count, most)).astype(int).tolist())


def _size(images: ImageList, index: int) -> int:
    """Bytes of a picture; 0 if it can't be read."""
    item = images.items[index]
    if isinstance(item, Path):
        try:
            return item.stat().st_size
        except OSError:
            return 0
    return int(item.nbytes)


def _digest(images: ImageList, index: int) -> bytes:
    item = images.items[index]
    try:
        content = item.read_bytes() if isinstance(item, Path) else np.ascontiguousarray(item).tobytes()
    except OSError:
        content = str(item).encode()  # equal to no other; opening the pictures will tell
    return hashlib.blake2b(content, digest_size=16).digest()
