"""How the ranks of a run share the work of getting at their pictures."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rayssl.data import DigitsConfig, ImageList
from rayssl.errors import DataError
from rayssl.open_data import OpenPictures, drop_node_cache, open_data
from tests.conftest import SmallRun


def open_on_two_ranks(small_run: SmallRun, folder: Path) -> tuple[list[OpenPictures], list[str]]:
    """Opens the demo's pictures in two threads, named by their ranks; returns what they got and what they raised."""
    barrier = threading.Barrier(2, timeout=10)
    opened: list[OpenPictures] = []
    messages: list[str] = []

    def wait() -> None:
        barrier.wait()

    def run(rank: int) -> None:
        try:
            opened.append(open_data(small_run.config(), folder, rank=rank, barrier=wait))
        except DataError as error:
            messages.append(str(error))

    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return opened, messages


def test_the_first_rank_lists_and_downloads_before_the_others(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    list_images = DigitsConfig.list_images

    def recorded(config: DigitsConfig, *, seed: int) -> tuple[ImageList, ImageList | None]:
        rank = threading.current_thread().name
        events.append(f"{rank} begins")
        time.sleep(0.05)
        events.append(f"{rank} ends")
        return list_images(config, seed=seed)

    monkeypatch.setattr(DigitsConfig, "list_images", recorded)
    opened, messages = open_on_two_ranks(small_run, tmp_path)
    assert messages == []
    assert events == ["0 begins", "0 ends", "1 begins", "1 ends"]
    assert np.array_equal(opened[0].train.labels, opened[1].train.labels)


def test_each_machine_keeps_its_own_copy_where_it_is_told_to(small_run: SmallRun, tmp_path: Path) -> None:
    """Two leaders, as on two machines, and a worker that leads none; the run's folder stays without a cache."""
    folder = tmp_path / "run"
    folder.mkdir()
    opened = []
    for machine in ("a", "b"):
        config = small_run.config(f"data.cache_path={tmp_path / machine}")
        opened.append(open_data(config, folder, rank=1))
        opened.append(open_data(config, folder, rank=2, leads_node=False))
        (own,) = (tmp_path / machine).iterdir()
        assert (own / "train" / "pictures.bin").is_file()
        drop_node_cache(config, folder)
        assert not own.exists()
    assert not (folder / "cache").exists()
    assert all(np.array_equal(each.train.labels, opened[0].train.labels) for each in opened)


def test_every_rank_raises_where_the_pictures_are_missing_and_none_hangs(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(config: DigitsConfig, *, seed: int) -> tuple[ImageList, ImageList | None]:
        raise DataError("data.root: is empty")

    monkeypatch.setattr(DigitsConfig, "list_images", missing)
    opened, messages = open_on_two_ranks(small_run, tmp_path)
    assert opened == []
    assert messages == ["data.root: is empty"] * 2
