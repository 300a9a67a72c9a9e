"""What a plan has to know of the pictures: how many there are, and what decoding them costs."""

import os
import time
from dataclasses import dataclass

import numpy as np

from rayssl.config import ExperimentConfig
from rayssl.data import DataConfig, ImageList, StreamedPictures, check_size, header_sizes
from rayssl.errors import DataError

_TIMED = 32
_WARM_UP = 4
_MOST_THREADS = 16
"""Threads that fill a cache, see `rayssl.data.open_pictures`."""
_UNKNOWN_CLASSES = 1000
_USUAL_ASPECT = 4 / 3


@dataclass(frozen=True)
class Material:
    """The pictures of a run."""

    num_train: int
    """Pictures to train on."""
    num_held_out: int
    """Pictures held out of them for probes."""
    num_all: int
    """Both, and the test pictures."""
    classes: tuple[str, ...]
    side: int
    """Side of decoded windows, in pixels."""
    is_streamed: bool
    """Whether pictures are decoded while training, not once before."""
    decode_seconds: float | None
    """Of one picture in one process; None: there were none to decode."""
    notes: tuple[str, ...]
    """What was assumed."""

    @property
    def start_seconds(self) -> float:
        """Time before the first step in which a cache is filled."""
        if self.is_streamed or self.decode_seconds is None:
            return 0.0
        return self.num_all * self.decode_seconds / min(os.cpu_count() or 1, _MOST_THREADS)


def look_at_pictures(config: ExperimentConfig, num_pictures: int | None) -> Material:
    """List the pictures and decode a few of them; nothing is downloaded.

    Args:
        config: The resolved recipe.
        num_pictures: Training pictures of the set, before `data.limit` and the hold-out; None: those that are there.

    Raises:
        DataError: If they are to be listed and are missing, or are smaller than the recipe's views.
    """
    data = config.data
    if num_pictures is not None:
        return _imagined(data, num_pictures)
    if getattr(data, "download", False):
        data = data.model_copy(update={"download": False})
    try:
        splits = data.build(seed=config.seed)
    except DataError as error:
        raise DataError(f"{error} To plan without the pictures, give their number: --pictures N.") from error
    check_size(splits.train, image_size=data.image_size, allow_upscaling=data.allow_upscaling)
    sizes = header_sizes(splits.train)
    if not sizes:
        raise DataError("data: none of the pictures to train on can be read. To plan without them: --pictures N.")
    aspect = float(np.mean([max(size) / min(size) for size in sizes]))
    largest = min(data.decode_size, max(min(size) for size in sizes))
    is_streamed = _is_streamed(data, len(splits.train), side=largest, aspect=aspect)
    num_held_out = len(splits.validation) if splits.validation is not None else 0
    num_test = len(splits.test) if splits.test is not None else 0
    seconds = _decode_seconds(splits.train, data)
    when = "once, before the first step"
    if is_streamed:
        by = f"{data.loader_workers} processes for each worker, which are taken to have cores of their own"
        when = f"while training, by {by if data.loader_workers else 'the worker itself'}"
    return Material(
        len(splits.train),
        num_held_out,
        len(splits.train) + num_held_out + num_test,
        splits.train.classes,
        data.decode_size if is_streamed else largest,
        is_streamed,
        seconds,
        (f"Decoding: {1e3 * seconds:.2f} ms a picture, measured on {min(_TIMED, len(splits.train))}; {when}.",),
    )


def _imagined(data: DataConfig, num_pictures: int) -> Material:
    limited = min(num_pictures, data.limit or num_pictures)
    num_held_out = round(limited * data.validation_fraction)
    num_train = limited - num_held_out
    is_streamed = _is_streamed(data, num_train, side=data.decode_size, aspect=_USUAL_ASPECT)
    notes = (
        f"Pictures: {num_pictures:,} were given, so none were looked at. What decoding takes is left out, and labels "
        f"are as if there were {_UNKNOWN_CLASSES:,} classes; the hold-out is a share of all, not of each class.",
    )
    classes = tuple(str(number) for number in range(_UNKNOWN_CLASSES))
    return Material(num_train, num_held_out, limited, classes, data.decode_size, is_streamed, None, notes)


def _is_streamed(data: DataConfig, count: int, *, side: int, aspect: float) -> bool:
    return 3 * side * side * aspect * count > data.cache_gib * 2**30


def _decode_seconds(images: ImageList, data: DataConfig) -> float:
    """Of one picture, in this process; the first few warm up."""
    rows = np.linspace(0, len(images) - 1, min(_TIMED + _WARM_UP, len(images))).astype(int)
    pictures = StreamedPictures(
        images.select(rows), resize=data.decode_size, max_bad_fraction=data.max_bad_fraction, num_workers=0
    )
    numbers = np.arange(len(rows))
    timed = numbers[_WARM_UP:] if len(rows) > _WARM_UP else numbers
    for _ in pictures.batches([(numbers[:_WARM_UP], None)]):
        pass
    start = time.perf_counter()
    for _ in pictures.batches([(timed, np.full(len(timed), 0.5))]):
        pass
    return (time.perf_counter() - start) / len(timed)
