"""Batches made ahead in a thread: the same ones, in order, errors in their place, and no thread left behind."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import Tensor

from rayssl.data.ahead import fetch_ahead, windows_on
from rayssl.errors import DataError
from tests.gpu import waiting_is_an_error


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fetch_ahead")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def wait_until(condition: Callable[[], bool]) -> None:
    """For what another thread does soon; what it must not do gets as long to happen."""
    ends = time.monotonic() + 5
    while not condition() and time.monotonic() < ends:
        time.sleep(0.001)
    assert condition()


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_all_results_come_in_order(count: int, depth: int) -> None:
    def uneven(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(fetch_ahead(iter(range(count)), uneven, depth=depth)) == [item * item for item in range(count)]


def test_only_another_thread_touches_the_items_and_one_at_a_time() -> None:
    seen: list[tuple[str, threading.Thread]] = []

    def items() -> Iterator[int]:
        for item in range(5):
            seen.append(("item", threading.current_thread()))
            yield item

    def prepare(item: int) -> int:
        seen.append(("prepare", threading.current_thread()))
        return item

    assert list(fetch_ahead(items(), prepare, depth=3)) == [0, 1, 2, 3, 4]
    assert [what for what, _ in seen] == 5 * ["item", "prepare"]
    assert len({thread for _, thread in seen}) == 1 and seen[0][1] is not threading.current_thread()


def test_it_runs_ahead_by_its_depth_and_no_further() -> None:
    asked: list[int] = []
    with closing(fetch_ahead(iter(range(20)), asked.append, depth=2)) as results:
        assert asked == []  # nothing before the first is asked for
        for number in range(1, 5):
            next(results)
            wait_until(lambda: len(asked) >= number + 2)  # noqa: B023  it is called at once
            time.sleep(0.005)
            assert len(asked) == number + 2


@pytest.mark.parametrize("where", ["items", "prepare"])
def test_an_error_comes_as_itself_after_all_results_before_it(where: str) -> None:
    error = DataError("data.max_bad_fraction: too many")

    def items() -> Iterator[int]:
        yield from range(4)
        if where == "items":
            raise error
        yield 4

    def prepare(item: int) -> int:
        if item == 4:
            raise error
        return item

    results = fetch_ahead(items(), prepare, depth=2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError) as caught:
        next(results)
    assert caught.value is error
    assert list(results) == []


def test_an_error_of_the_caller_ends_the_thread_and_then_the_items() -> None:
    ended: list[str] = []

    def items() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            ended.append(f"{len(threads())} threads")

    def train() -> None:
        with closing(fetch_ahead(items(), int, depth=2)) as results:
            for item in results:
                if item == 3:
                    raise KeyError("a step went wrong")

    with pytest.raises(KeyError, match="a step went wrong"):
        train()
    assert ended == ["0 threads"]


def test_closing_waits_for_the_item_in_work_and_begins_no_other() -> None:
    begun, go_on = [], threading.Event()

    def slow(item: int) -> int:
        begun.append(item)
        if item:
            go_on.wait(10)
        return item

    results = fetch_ahead(iter(range(10)), slow, depth=3)
    assert next(results) == 0
    wait_until(lambda: begun == [0, 1])
    threading.Timer(0.05, go_on.set).start()
    results.close()
    assert begun == [0, 1]


def test_results_that_were_never_asked_for_cost_nothing() -> None:
    fetch_ahead(iter(range(3)), int, depth=2).close()


def test_dropping_it_half_way_ends_the_thread() -> None:
    results = fetch_ahead(iter(range(10)), int, depth=2)
    next(results)
    assert len(threads()) == 1
    del results
    assert threads() == []


def test_on_the_cpu_windows_are_passed_on_as_they_come() -> None:
    windows = [torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8) for _ in range(3)]
    passed = windows_on(torch.device("cpu"), iter(windows))
    assert next(passed) is windows[0]
    assert threads() == []
    assert [id(each) for each in passed] == [id(each) for each in windows[1:]]


def made_up_windows(count: int, *, broken_at: int | None = None) -> Iterator[Tensor]:
    """Batches of 64 windows as stores give them, channels last, each in memory that the next one overwrites."""
    generator, memory = np.random.default_rng(0), np.empty((64, 96, 96, 3), dtype=np.uint8)
    for number in range(count):
        if number == broken_at:
            raise DataError("data.max_bad_fraction: too many")
        memory[...] = generator.integers(256, size=memory.shape, dtype=np.uint8)
        yield torch.from_numpy(memory).permute(0, 3, 1, 2)


@pytest.mark.gpu
def test_on_a_gpu_windows_arrive_whole_while_it_is_busy() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    busy = torch.randn(4096, 4096, device=device)
    arrived = []
    for windows in windows_on(device, made_up_windows(30)):
        assert windows.device == device and windows.is_contiguous(memory_format=torch.channels_last)
        for _ in range(5):
            busy = (busy @ busy).clamp_(-1, 1)
        arrived.append(windows.clone())  # queued behind the products, when the next windows are on their way
        del windows
    sent = [windows.clone() for windows in made_up_windows(30)]
    assert all(torch.equal(mine.cpu(), theirs) for mine, theirs in zip(arrived, sent, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_what_is_queued() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    with waiting_is_an_error():
        assert sum(len(windows) for windows in windows_on(device, made_up_windows(10))) == 640


@pytest.mark.gpu
def test_on_a_gpu_an_error_of_the_store_comes_in_its_place() -> None:
    windows = windows_on(torch.device("cuda"), made_up_windows(5, broken_at=3))
    assert [len(next(windows)) for _ in range(3)] == [64, 64, 64]
    with pytest.raises(DataError, match="too many"):
        next(windows)
