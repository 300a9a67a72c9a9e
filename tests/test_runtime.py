"""The local runtime: its checkpoints, and its collectives over two real processes."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rayssl.errors import ClusterError
from rayssl.runtime import LocalRuntime, NullTracker


def test_a_lone_worker_talks_to_itself(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path)
    module, value = nn.Linear(2, 2), torch.tensor([1.0, 2.0])
    assert (runtime.rank, runtime.world_size, runtime.folder) == (0, 1, tmp_path)
    assert runtime.wrap(module) is module
    assert runtime.sum(value).tolist() == [1.0, 2.0]
    assert runtime.gather("mine") == ["mine"]
    assert runtime.map(lambda item: item * item, [3, 1, 2]) == [9, 1, 4]
    assert runtime.map(str, []) == []
    runtime.barrier()


def save_text(text: str, folders: list[Path]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "text").write_text(text)
        folders.append(folder)

    return save


def test_two_checkpoints_are_kept_and_the_newest_is_restored(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path)
    assert runtime.checkpoints() == []
    written: list[Path] = []
    for number in range(12):
        runtime.report({}, save_text(str(number), written))
        texts = [(folder / "text").read_text() for folder in runtime.checkpoints()]
        assert texts == [str(number), str(number - 1)][: number + 1]
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [(path / "text").read_text() for path in kept] == ["10", "11"]
    assert len(set(written)) == 12


def test_a_report_without_a_checkpoint_leaves_the_old_ones(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path)
    runtime.report({"loss": 1.0})
    assert runtime.checkpoints() == []
    runtime.report({}, save_text("a", []))
    before = runtime.checkpoints()
    runtime.report({"loss": 1.0})
    assert runtime.checkpoints() == before


def test_a_restarted_run_goes_on_counting(tmp_path: Path) -> None:
    """Numbers never come twice: a reader of the old folder must not find another checkpoint under its name."""
    written: list[Path] = []
    for text in "abcd":
        LocalRuntime(tmp_path).report({}, save_text(text, written))
    assert [path.name for path in written] == sorted({path.name for path in written})
    assert [(folder / "text").read_text() for folder in LocalRuntime(tmp_path).checkpoints()] == ["d", "c"]


def test_what_a_crash_left_half_written_is_neither_restored_nor_counted(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path)
    runtime.report({}, save_text("whole", []))
    (tmp_path / "checkpoints" / "000002.partial").mkdir()
    (tmp_path / "checkpoints" / "000003.outdated").mkdir()
    assert [(folder / "text").read_text() for folder in runtime.checkpoints()] == ["whole"]
    runtime.report({}, save_text("next", []))
    kept = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert sorted((path / "text").read_text() for path in kept) == ["next", "whole"]


def test_a_save_that_fails_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path)
    for text in "ab":
        runtime.report({}, save_text(text, []))

    def fail(_: Path) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        runtime.report({}, fail)
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [(path / "text").read_text() for path in kept] == ["a", "b"]


def test_what_there_is_to_show_is_passed_on(tmp_path: Path) -> None:
    shown: list[object] = []
    LocalRuntime(tmp_path, show=shown.append).show("a line")
    LocalRuntime(tmp_path).show("nobody looks")
    assert shown == ["a line"]


def test_threads_are_set_or_left(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        LocalRuntime(tmp_path, num_threads=1)
        assert torch.get_num_threads() == 1
        LocalRuntime(tmp_path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_nothing_is_recorded_by_the_null_tracker(tmp_path: Path) -> None:
    tracker = NullTracker()
    tracker.log_params({"a": 1})
    tracker.log_metrics({"loss": 1.0}, step=3)
    tracker.log_artifact(tmp_path)
    assert tracker.child("stage-1") is tracker
    tracker.finish()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cluster\.gpus_per_worker: must be 0 here"):
        LocalRuntime(tmp_path, use_gpu=True)


def work_as_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    shown: list[object] = []
    runtime = LocalRuntime(Path(folder), show=shown.append)
    runtime.show("once")
    runtime.report({}, save_text(f"rank {rank}", []))
    runtime.barrier()

    torch.manual_seed(0)
    module = nn.Linear(2, 1, bias=False)
    wrapped = runtime.wrap(module)
    wrapped(torch.tensor([[1.0 + rank, 10.0]])).sum().backward()
    restored = runtime.checkpoints()[0]
    results = {
        "place": [runtime.rank, runtime.world_size],
        "odd": runtime.map(lambda item: (item * item, os.getpid()), [0, 1, 2, 3, 4]),
        "few": runtime.map(lambda item: -item, [7]),
        "none": runtime.map(lambda item: -item, []),
        "sum": runtime.sum(torch.tensor([1.0 + rank, 10.0])).tolist(),
        "gather": runtime.gather({"rank": rank, "text": "x" * (rank + 1)}),
        "wrapped": isinstance(wrapped, DistributedDataParallel),
        "gradient": module.weight.grad.tolist() if module.weight.grad is not None else None,
        "restored": (restored / "text").read_text(),
        "shown": shown,
    }
    torch.save(results, f"{folder}/rank{rank}.pt")
    distributed.barrier()  # none leaves while another one still talks to it
    del wrapped  # its threads must not outlive the group, or the process now and then ends by an abort
    distributed.destroy_process_group()


def test_two_workers_share_items_sums_values_and_gradients(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work_as_one_of_two, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [result["place"] for result in results] == [[0, 2], [1, 2]]
    for result in results:
        squares, workers = zip(*result["odd"], strict=True)
        assert squares == (0, 1, 4, 9, 16)
        assert workers[0] == workers[2] == workers[4] != workers[1] == workers[3]
        assert (result["few"], result["none"]) == ([-7], [])
        assert result["sum"] == [3.0, 20.0]
        assert result["gather"] == [{"rank": 0, "text": "x"}, {"rank": 1, "text": "xx"}]
        assert result["wrapped"] and result["gradient"] == [[1.5, 10.0]]
        assert result["restored"] == "rank 0"
    assert [result["shown"] for result in results] == [["once"], []]


def work_for_longer_than_others_wait(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=1),
    )
    runtime = LocalRuntime(Path(folder))

    def measure(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    found = runtime.map(measure, [2.5, 0.0], patiently=True)
    if rank == 1:
        time.sleep(2.5)
    runtime.barrier()
    torch.save(found, f"{folder}/rank{rank}.pt")
    distributed.destroy_process_group()


def test_a_worker_that_measures_is_waited_for_beyond_the_time_in_which_training_would_hang(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work_for_longer_than_others_wait, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) == [2.5, 0.0]


def test_no_more_threads_are_used_than_there_are_cores(tmp_path: Path) -> None:
    """Torch's backward pass crashed with 10 threads on 2 cores."""
    before = torch.get_num_threads()
    try:
        LocalRuntime(tmp_path, num_threads=1000)
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
        LocalRuntime(tmp_path, num_threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_in_the_background_is_there_once_it_is_waited_for(tmp_path: Path) -> None:
    runtime, may_write = LocalRuntime(tmp_path), threading.Event()
    written: list[Path] = []

    def save(folder: Path) -> None:
        may_write.wait()
        save_text("slow", written)(folder)

    runtime.report({}, save, in_background=True)
    assert not written  # and training goes on
    may_write.set()
    runtime.settle()
    assert [(folder / "text").read_text() for folder in runtime.checkpoints()] == ["slow"]


def test_what_went_wrong_in_the_background_is_raised_by_the_next_report(tmp_path: Path) -> None:
    runtime = LocalRuntime(tmp_path)

    def fail(_: Path) -> None:
        raise OSError("no space left on device")

    runtime.report({}, fail, in_background=True)
    with pytest.raises(OSError, match="no space"):
        runtime.report({}, save_text("next", []))
    runtime.report({}, save_text("after", []))  # told once
    assert [(folder / "text").read_text() for folder in runtime.checkpoints()] == ["after"]
