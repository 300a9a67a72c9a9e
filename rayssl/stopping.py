"""SIGTERM, by which schedulers take a machine back: a run is asked to stop, and ended if that takes too long."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE_SECONDS = 25.0
"""Kubernetes and most batch systems leave 30 seconds between SIGTERM and SIGKILL."""
_ECHO_SECONDS = 5.0
"""A SIGTERM so soon after the first one asks for nothing new."""


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets while the body runs.

    A later SIGTERM, or the end of the grace period, leaves the body by SystemExit (143); one that follows at once is
    the same request, told by two (a pod's preStop hook and whoever stops the job). Outside of the main thread, where
    Python lets nobody handle signals, the event stays unset.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    asked_at = 0.0
    patience = threading.Timer(_GRACE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    patience.daemon = True

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if not asked.is_set():
            asked_at = time.monotonic()
            asked.set()
            patience.start()
        elif time.monotonic() - asked_at > _ECHO_SECONDS:
            sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        patience.cancel()
        signal.signal(signal.SIGTERM, before)
