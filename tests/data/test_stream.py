"""Streamed pictures against the cache and against plain slicing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rayssl.data import ImageList, StreamedPictures
from rayssl.errors import DataError
from tests.data.picture_files import cached, noise, plan, spoil, windows, write_pictures


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
