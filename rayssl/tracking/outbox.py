"""Calls to a tracking server that is away from time to time."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayssl.addresses import without_secrets
from rayssl.tracking.connection import Notify, connect, failures, is_refused, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

Call = Callable[["MlflowClient"], object]

_PATIENCE = 120.0
"""Seconds that the end of a run waits for a server that is away."""
_REST = 10.0
"""After a call that failed, the next try waits so many times as long as that took: a server that is away silently
may cost a tenth of a run's time, no more."""


@dataclass
class _Line:
    """Calls that wait their turn."""

    trouble: str
    """What to say when they fail."""
    failures: Callable[[], tuple[type[Exception], ...]]
    """The errors after which a call is made again later."""
    calls: deque[Call] = field(default_factory=deque)
    is_stuck: bool = False
    rests_until: float = 0.0


class Outbox:
    """Calls to a tracking server, sent in order; those that fail because it is away wait for a later one.

    Files wait in a line of their own: the place where they are kept may be another one than the server, and may refuse
    them for good where that takes every number.

    Calls are made in a thread, where Ctrl-C and SIGTERM raise nothing: SQLAlchemy, interrupted in the middle of a
    transaction, would leave the database locked, for the record of the interruption above all. So a call that is being
    made is waited for.
    """

    def __init__(self, uri: str, notify: Notify) -> None:
        self.uri = uri
        self.notify = notify
        self._records = _Line("can't be reached", failures)
        self._files = _Line("can't take files", lambda: (Exception,))  # each kind of store has errors of its own
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def send(self, call: Call) -> None:
        """Make a call, after those that wait; it waits itself if the server is away. One that is refused is dropped."""
        self._records.calls.append(call)
        self._thread.submit(self._make_calls).result()

    def send_file(self, call: Call) -> None:
        """As `send`, for a call that brings files."""
        self._files.calls.append(call)
        self._thread.submit(self._make_calls).result()

    def drain(self) -> None:
        """Wait for a server that is away, but not for ever."""
        deadline = time.monotonic() + _PATIENCE
        while (self._records.calls or self._files.calls) and time.monotonic() < deadline:
            time.sleep(1)
            self._records.rests_until = self._files.rests_until = 0.0
            self._thread.submit(self._make_calls).result()
        for line, what in ((self._records, "records"), (self._files, "files")):
            if line.calls:
                self.notify(
                    f"MLflow at {without_secrets(self.uri)} still {line.trouble}: {len(line.calls)} {what} are lost; "
                    "the run's folder has all"
                )

    def _make_calls(self) -> None:
        self._advance(self._records)
        if not self._records.calls:  # which may make the run that files belong to
            self._advance(self._files)

    def _advance(self, line: _Line) -> None:
        while line.calls and time.monotonic() >= line.rests_until:
            started = time.monotonic()
            try:
                self._make(line.calls[0])
            except line.failures() as error:
                if not line.is_stuck:
                    self.notify(
                        f"MLflow at {without_secrets(self.uri)} {line.trouble} ({reason_of(error, self.uri)}); "
                        "training goes on, what it misses is kept and sent later"
                    )
                line.is_stuck = True
                line.rests_until = time.monotonic() + _REST * (time.monotonic() - started)
                return
            line.calls.popleft()
            line.is_stuck = False

    def _make(self, call: Call) -> None:
        try:
            call(connect(self.uri))
        except failures() as error:
            if not is_refused(error):
                raise
            self.notify(f"MLflow refuses a record ({reason_of(error, self.uri)}); the run's folder has all")
