"""SIGTERM, by which schedulers take a machine back: a run is asked to stop, and ended if that takes too long."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE_SECONDS = 25.0
"""Kubernetes and most batch systems leave 30 seconds between SIGTERM and SIGKILL."""


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets while the body runs.

    A second SIGTERM, or the end of the grace period, leaves the body by SystemExit (143). Outside of the main thread,
    where Python lets nobody handle signals, the event stays unset.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    patience = threading.Timer(_GRACE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    patience.daemon = True

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            sys.exit(128 + number)
        asked.set()
        patience.start()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        patience.cancel()
        signal.signal(signal.SIGTERM, before)
