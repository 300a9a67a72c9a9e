"""Whole pictures with their objects, as a detector is trained and tested on them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rayssl.data.images import MAX_ASPECT, BadImageError, decode_image, read_size
from rayssl.data.pictures import BadFile, ImageList
from rayssl.data.voc_objects import Objects, read_voc_objects
from rayssl.errors import DataError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ORDER, _FLIPS, _SHUFFLED = 0, 1, 2
"""Keep the draws of a seed apart."""


@dataclass(frozen=True, eq=False)
class Example:
    """A picture to learn from."""

    picture: Tensor
    """uint8 (3, H, W)."""
    boxes: Tensor
    """float32 (K, 4), left, top, right, bottom in pixels, inside the picture."""
    labels: Tensor
    """int64 (K,), from 0."""


class DetectionPictures:
    """Files and their objects; pictures are decoded when they are asked for.

    Args:
        files: The pictures.
        objects: Of each.

    Attributes:
        bad: Pictures that proved to be unreadable, row -> what is wrong.
    """

    def __init__(self, files: Sequence[Path], objects: Sequence[Objects]) -> None:
        self.files = tuple(files)
        self.objects = tuple(objects)
        self.bad: dict[int, BadFile] = {}

    @classmethod
    def read(cls, images: ImageList, *, shuffle_seed: int | None = None) -> "DetectionPictures":
        """The pictures of a list in VOC's layout with what their annotations say.

        Args:
            images: With targets; their classes are the labels.
            shuffle_seed: Gives each picture the objects of another one, in an order that the seed decides.

        Raises:
            DataError: See `read_voc_objects`; or if the pictures are not files.
        """
        if isinstance(images.items, np.ndarray) or images.targets is None:
            raise DataError("data.name: must be a set of files with annotated boxes, such as voc2007, for detection")
        objects = read_voc_objects(images.items, classes=images.targets.classes)
        if shuffle_seed is not None:
            order = np.random.default_rng([shuffle_seed, _SHUFFLED, len(objects)]).permutation(len(objects))
            objects = [objects[number] for number in order]
        return cls(images.items, objects)

    def __len__(self) -> int:
        return len(self.files)

    def counts(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each class the number of objects that are not difficult, and of those that are, (num_classes,) each."""
        labels = np.concatenate([np.empty(0, np.int64), *(each.labels for each in self.objects)])
        difficult = np.concatenate([np.empty(0, bool), *(each.difficult for each in self.objects)])
        easy, hard = (np.bincount(labels[which], minlength=num_classes) for which in (~difficult, difficult))
        return easy, hard

    def without_difficult(self) -> "DetectionPictures":
        """The same pictures with their other objects alone."""
        return DetectionPictures(self.files, [each.select(~each.difficult) for each in self.objects])

    def with_objects(self) -> "DetectionPictures":
        """The pictures that have an object."""
        rows = [row for row, objects in enumerate(self.objects) if len(objects)]
        return self.select(rows)

    def select(self, rows: Sequence[int]) -> "DetectionPictures":
        """The pictures at these rows."""
        return DetectionPictures([self.files[row] for row in rows], [self.objects[row] for row in rows])

    def decode(self, row: int) -> tuple[Tensor, np.ndarray] | None:
        """A picture, uint8 (3, H, W), and how many pixels its left and top edge lie inside the file's, (2,).

        Very long pictures lose both ends. None for a picture that can't be read, which is noted in `bad`.
        """
        file = self.files[row]
        try:
            pixels = decode_image(file, short_side=None)
            sides = np.array(pixels.shape[1::-1])  # (width, height)
            cut = np.zeros(2, dtype=np.int64)
            if max(sides) >= MAX_ASPECT * min(sides):
                height, width = read_size(file)
                cut = (np.array([width, height]) - sides) // 2
        except BadImageError as error:
            self.bad[row] = BadFile(str(file), error.reason)
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), cut

    def example(self, row: int, *, is_flipped: bool) -> Example:
        """A picture to learn from, perhaps as its mirror image; in place of an unusable one the next usable one.

        Raises:
            DataError: If there is none.
        """
        for candidate in chain(range(row, len(self)), range(row)):
            decoded = None if candidate in self.bad else self.decode(candidate)
            if decoded is None:
                continue
            picture, cut = decoded
            height, width = picture.shape[1:]
            objects = self.objects[candidate]
            boxes = (objects.boxes - np.tile(cut, 2)).clip(0, [width, height, width, height]).astype(np.float32)
            if is_flipped:
                picture = picture.flip(2)
                boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
            if kept.any():
                return Example(picture, torch.from_numpy(boxes[kept]), torch.from_numpy(objects.labels[kept]))
            self.bad[candidate] = BadFile(str(self.files[candidate]), "no box lies inside the picture")
        raise DataError(f"data: none of {len(self):,} training pictures with objects can be used.")


def training_batches(
    pictures: DetectionPictures,
    *,
    batch_size: int,
    iterations: int,
    seed: int,
    rank: int,
    world_size: int,
    num_threads: int,
) -> Iterator[list[Example]]:
    """This worker's share of each batch: epochs in random order one after another, half of the pictures mirrored.

    Batches and mirrors are the same for any number of workers.

    Args:
        pictures: Each with an object.
        batch_size: Of all workers together.
        iterations: Number of batches.
        seed: Decides order and mirrors.
        rank: Of this worker.
        world_size: Number of workers, which divides `batch_size`.
        num_threads: Pictures that are decoded at once.
    """
    orders = (np.random.default_rng([seed, _ORDER, epoch]).permutation(len(pictures)) for epoch in count())
    rows = chain.from_iterable(order.tolist() for order in orders)

    def shares() -> Iterator[list[tuple[int, bool]]]:
        for iteration in range(iterations):
            flips = np.random.default_rng([seed, _FLIPS, iteration]).random(batch_size) < 0.5
            yield list(zip(islice(rows, batch_size), flips.tolist(), strict=True))[rank::world_size]

    def load(share: list[tuple[int, bool]]) -> list[Example]:
        return [pictures.example(row, is_flipped=is_flipped) for row, is_flipped in share]

    return _ahead(load, shares(), num_threads=num_threads)


def told_pictures(
    pictures: DetectionPictures, rows: Sequence[int], *, num_threads: int
) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """The readable ones of these pictures in order: row, picture and cut as `DetectionPictures.decode` gives them."""
    for row, decoded in zip(rows, _ahead(pictures.decode, rows, num_threads=num_threads), strict=True):
        if decoded is not None:
            yield row, *decoded


def _ahead(function: Callable[[_Item], _Result], items: Iterable[_Item], *, num_threads: int) -> Iterator[_Result]:
    """Apply a function in threads, a few items ahead of what is taken, in order."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
