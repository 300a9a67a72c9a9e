"""A few of a run's pictures, read again for its report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rayssl.config import ExperimentConfig
from rayssl.data import ImageList, Pictures, open_pictures

_SHOWN = 8
_MOST_TOLD = 1000
_ALL_OF_THEM = 2**40


@dataclass(frozen=True)
class RunPictures:
    """A few of a run's pictures, decoded."""

    shown: Pictures
    """Training pictures, evenly spaced in the set."""
    told: Pictures
    """Pictures that the encoder was not trained on, if there are any."""
    where: str
    """What the latter are."""


@contextmanager
def open_few(config: ExperimentConfig) -> Iterator[RunPictures]:
    """Find a run's pictures where they were and decode some of them; nothing is downloaded.

    Raises:
        DataError: If they are gone or can't be read.
    """
    data = config.data
    if "download" in type(data).model_fields:
        data = data.model_copy(update={"download": False})
    splits = data.build(seed=config.seed)
    held_out = splits.validation if splits.validation is not None and len(splits.validation) else None
    told = splits.test or held_out or splits.train
    where = "the data set's test pictures" if splits.test else "held-out pictures" if held_out else "training pictures"
    with TemporaryDirectory(prefix="rayssl-report-") as folder:
        yield RunPictures(
            _decode(_evenly(splits.train, _SHOWN), Path(folder) / "shown", config),
            _decode(_evenly(told, _MOST_TOLD), Path(folder) / "told", config),
            where,
        )


def _evenly(images: ImageList, count: int) -> ImageList:
    return images.select(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))


def _decode(images: ImageList, folder: Path, config: ExperimentConfig) -> Pictures:
    return open_pictures(
        images,
        folder,
        resize=config.data.decode_size,
        cache_bytes=_ALL_OF_THEM,
        max_bad_fraction=1.0,
        num_workers=0,
        is_builder=True,
        barrier=lambda: None,
    )
