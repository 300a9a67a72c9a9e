"""The choice between cache and stream, and that all ranks make it together."""

import threading
from pathlib import Path

import numpy as np

from rayssl.data import CachedPictures, ImageList, Pictures, StreamedPictures, open_pictures
from rayssl.errors import DataError
from tests.data.picture_files import noise, spoil, windows, write_pictures

NO_LIMIT = 1 << 40


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
