"""Windows on their way to a GPU: the next batches are read, pinned and copied while a step computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DEPTH = 2
"""Batches under way beside the one in use: one is read while the other one is copied."""


def windows_on(device: torch.device, batches: Iterator[Tensor]) -> Generator[Tensor, None, None]:
    """Give the batches, in order, on the device.

    For a GPU a thread takes them from `batches` ahead of time. On the CPU they are passed on as they come: there a
    thread would take from the training what it saves.

    Args:
        device: Where the windows shall lie.
        batches: Uint8 windows (N, 3, S, S) on the CPU, best with the channels last in memory, as `Pictures.batches`
            gives them.

    Yields:
        The same windows, for use on the stream that is current when they are asked for.

    Raises:
        Exception: What `batches` raises, where the batch would have come that it was raised for.
    """
    if device.type != "cuda":
        for windows in batches:
            yield windows.to(device)
        return
    stream = torch.cuda.Stream(device)
    with closing(fetch_ahead(batches, partial(_send, stream=stream), depth=_DEPTH)) as sent:
        for windows, arrived in sent:
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            # They were allocated on the other stream, which must not use their memory again before this one is done.
            windows.record_stream(current)
            yield windows


def fetch_ahead(
    items: Iterator[_Item], prepare: Callable[[_Item], _Result], *, depth: int
) -> Generator[_Result, None, None]:
    """Give `prepare(item)` for each item, in order; a thread makes the next ones while the caller is busy.

    The thread begins when the first result is asked for. It is gone when this generator has ended, whether it came to
    its end, was closed, or raised. No item is asked for before the one before it is prepared.

    Args:
        items: Only the thread advances it.
        prepare: Called in the thread.
        depth: Results that may be ready or in work beside the one in use; at least 1.

    Raises:
        Exception: What `items` or `prepare` raises, after all results before it.
    """
    end = object()

    def make_next() -> _Result | object:
        item = next(items, end)
        return end if item is end else prepare(item)  # type: ignore[arg-type]  # an _Item

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch_ahead")
    try:
        waiting: deque[Future[_Result | object]] = deque(pool.submit(make_next) for _ in range(depth))
        while (result := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(make_next))
            yield result  # type: ignore[misc]  # a _Result
    finally:
        pool.shutdown(cancel_futures=True)


def _send(windows: Tensor, *, stream: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
    """Begin a copy to the stream's device; the event tells when it has arrived.

    torch keeps the pinned memory for the next batches, and hands it out again once its copy is done.
    """
    rows = windows.permute(0, 2, 3, 1)
    with torch.cuda.stream(stream):  # which makes its device this thread's, too
        pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        pinned.copy_(rows)
        on_device = pinned.to(stream.device, non_blocking=True).permute(0, 3, 1, 2)
        return on_device, stream.record_event()
