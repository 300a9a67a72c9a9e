"""The choice of a store for a set of pictures: in a cache if they fit, else streamed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from rayssl.data.cache import CachedPictures, build_cache
from rayssl.data.images import MAX_ASPECT
from rayssl.data.pictures import ImageList, Pictures, header_sizes
from rayssl.data.stream import StreamedPictures
from rayssl.errors import DataError


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


def _decoded_bytes(images: ImageList, resize: int) -> int:
    """Estimates what a cache of these pictures takes: all on the largest short side, as `build_cache` leaves them."""
    sizes = header_sizes(images)
    side = max((min(*size, resize) for size in sizes), default=0)
    aspects = [min(max(height, width) / min(height, width), MAX_ASPECT) for height, width in sizes]
    return round(3 * side * side * float(np.mean(aspects)) * len(images)) if sizes else 0
