"""What Ray Tune tells its driver, passed on to the search's listener."""

import json
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray import tune

from rayssl.cluster.proposals import TRIAL
from rayssl.cluster.trial import MISTAKE
from rayssl.cluster.tune import Listener

_LOOK_SECONDS = 0.5
_STOP_SECONDS = 12.0
"""How long trials may take for their checkpoints. Tune then needs 5 seconds to end their processes, and 25 are left
between SIGTERM and the end (`rayssl.stopping`)."""


class Desk:
    """The driver's side of a search while its trials run.

    Args:
        folder: The search's folder.
        listener: Told of the trials.
        board: The search's `SearchBoard`.
        asked_to_stop: Set when the search shall stop.
    """

    def __init__(self, folder: Path, *, listener: Listener, board: Any, asked_to_stop: threading.Event) -> None:
        self.folder = folder
        self.listener = listener
        self._board = board
        self._asked_to_stop = asked_to_stop
        self._next_look = 0.0
        self._deadline: float | None = None
        self.has_stopped = False

    def look(self, running: Sequence[str]) -> None:
        """Pass on what trials said; if asked to, stop those that are running and then Tune itself."""
        if time.monotonic() < self._next_look or self.has_stopped:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for name, sentence in ray.get(self._board.take.remote()):
            self.listener.said(name, sentence)
        if not self._asked_to_stop.is_set():
            return
        self._deadline = self._deadline or time.monotonic() + _STOP_SECONDS
        self._board.stop.remote()
        if time.monotonic() > self._deadline or ray.get(self._board.are_stopped.remote(running)):
            self.has_stopped = True
            signal.raise_signal(signal.SIGUSR1)  # upon which Tune writes its state and ends


class Announcer(tune.Callback):
    """Passes on what happens to trials.

    Tune writes its callbacks into the state that a killed search goes on from, and a desk can't be written: it is the
    class's, set for as long as trials run.
    """

    desk: ClassVar[Desk | None] = None

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune has handled an event, or waited a moment for one."""
        if self.desk is not None:
            self.desk.look([str(trial) for trial in trials if trial.status == "RUNNING"])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or goes on."""
        if self.desk is not None:
            self.desk.listener.started(str(trial), _values(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch measured the metric."""
        if self.desk is not None and "epoch" in result:
            self.desk.listener.measured(str(trial), _values(trial), result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial crashed, or its node was lost, and is tried again."""
        if self.desk is not None:
            text = describe_crash(str(trial), _error_of(trial))
            self.desk.listener.said(str(trial), f"warning: {text}; starting again from the last checkpoint")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end, was stopped, or wrote down a mistake."""
        if self.desk is not None:
            self.desk.listener.ended(str(trial), read_mistake(self.desk.folder, str(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial crashed, and was tried again often enough."""
        if self.desk is not None:
            self.desk.listener.ended(str(trial), describe_crash(str(trial), _error_of(trial)))


def read_mistake(folder: Path, name: str) -> str | None:
    """The mistake that a trial wrote down; None if it made none."""
    path = folder / "trials" / name / MISTAKE
    return str(json.loads(path.read_text())) if path.exists() else None


def describe_crash(name: str, text: str) -> str:
    """What a traceback ends with, in a line, and where a trial's tracebacks are."""
    lines = text.strip().splitlines()
    return f"crashed: {lines[-1] if lines else 'nothing is known'} (tune/{name}/error.txt has all)"


def _error_of(trial: Any) -> str:
    # Not `get_pickled_error`, which looks where Tune copies the error only later.
    return Path(trial.error_file).read_text() if trial.error_file else ""


def _values(trial: Any) -> dict[str, Any]:
    return {key: value for key, value in trial.config.items() if key != TRIAL}
