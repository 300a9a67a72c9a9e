"""Calls to a tracking server that is away from time to time."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rayssl.addresses import without_secrets
from rayssl.tracking.connection import Notify, connect, failures, is_refused, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PATIENCE = 120.0
"""Seconds that the end of a run waits for a server that is away."""


class Outbox:
    """Calls to a tracking server, sent in order; those that fail because it is away wait for the next one.

    They are made in a thread, where Ctrl-C and SIGTERM raise nothing: SQLAlchemy, interrupted in the middle of a
    transaction, would leave the database locked, for the record of the interruption above all. So a call that is being
    made is waited for.
    """

    def __init__(self, uri: str, notify: Notify) -> None:
        self.uri = uri
        self._notify = notify
        self._waiting: deque[Callable[[MlflowClient], object]] = deque()
        self._is_away = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def send(self, call: "Callable[[MlflowClient], object]") -> None:
        """Make a call, after those that wait; it waits itself if the server is away. One that is refused is dropped."""
        self._thread.submit(self._send, call).result()

    def _send(self, call: "Callable[[MlflowClient], object]") -> None:
        self._waiting.append(call)
        try:
            while self._waiting:
                self._make(self._waiting[0])
                self._waiting.popleft()
            self._is_away = False
        except failures() as error:
            if not self._is_away:
                self._notify(
                    f"MLflow at {without_secrets(self.uri)} can't be reached ({reason_of(error, self.uri)}); "
                    "training goes on, records are kept and sent later"
                )
            self._is_away = True

    def _make(self, call: "Callable[[MlflowClient], object]") -> None:
        try:
            call(connect(self.uri))
        except failures() as error:
            if not is_refused(error):
                raise
            self._notify(f"MLflow refuses a record ({reason_of(error, self.uri)}); the run's folder has all")

    def drain(self) -> None:
        """Wait for a server that is away, but not for ever."""
        deadline = time.monotonic() + _PATIENCE
        while self._waiting and time.monotonic() < deadline:
            time.sleep(1)
            self.send(lambda client: None)
        if self._waiting:
            self._notify(
                f"MLflow at {without_secrets(self.uri)} is still away: {len(self._waiting)} records are lost; the "
                "run's folder has all"
            )
