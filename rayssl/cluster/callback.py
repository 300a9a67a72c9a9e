"""What Ray Tune tells its driver, passed on to the search's listener."""

import json
from pathlib import Path
from typing import Any, ClassVar

from ray import tune

from rayssl.cluster.proposals import TRIAL
from rayssl.cluster.trial import MISTAKE
from rayssl.cluster.tune import Listener


class Announcer(tune.Callback):
    """Passes on what happens to trials.

    Tune writes its callbacks into the state that a killed search goes on from, and a listener can't be written: it is
    the class's, set for as long as trials run.
    """

    listener: ClassVar[Listener | None] = None
    folder: ClassVar[Path]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial begins or goes on."""
        if self.listener is not None:
            self.listener.started(str(trial), _values(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch measured the metric."""
        if self.listener is not None and "epoch" in result:
            self.listener.measured(str(trial), _values(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end, was stopped, or wrote down a mistake."""
        if self.listener is not None:
            self.listener.ended(str(trial), read_mistake(self.folder, str(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial crashed, and was tried again often enough."""
        if self.listener is not None:
            # Not `get_pickled_error`, which looks where Tune copies the error only later.
            text = Path(trial.error_file).read_text() if trial.error_file else ""
            self.listener.ended(str(trial), describe_crash(str(trial), text))


def read_mistake(folder: Path, name: str) -> str | None:
    """The mistake that a trial wrote down; None if it made none."""
    path = folder / "trials" / name / MISTAKE
    return str(json.loads(path.read_text())) if path.exists() else None


def describe_crash(name: str, text: str) -> str:
    """What a traceback ends with, in a line, and where a trial's tracebacks are."""
    lines = text.strip().splitlines()
    return f"crashed: {lines[-1] if lines else 'nothing is known'} (tune/{name}/error.txt has all)"


def _values(trial: Any) -> dict[str, Any]:
    return {key: value for key, value in trial.config.items() if key != TRIAL}
