"""Where Tune's trials come from: a list that the study made, or optuna."""

import importlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ray.tune.search import Searcher

from rayssl.errors import ConfigError
from rayssl.search_space import Choice, Drawn, Interval, SearchKey, Study

TRIAL = "trial"
"""The key of a trial's config that names it; all others are dotted keys of the recipe."""


def trial_name(number: int) -> str:
    """Name of a trial, from 0: its folder, its record, its line in the table."""
    return f"t{number:03d}"


class ListedProposals(Searcher):
    """Gives the samples of a study, one after another."""

    def __init__(self, samples: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self._samples = list(samples)
        self._next = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next sample, or that there is none."""
        if self._next == len(self._samples):
            return str(Searcher.FINISHED)
        self._next += 1
        return {TRIAL: trial_name(self._next - 1), **self._samples[self._next - 1]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""

    def save(self, checkpoint_path: str) -> None:
        """Write how many samples are given."""
        Path(checkpoint_path).write_bytes(pickle.dumps(self._next))

    def restore(self, checkpoint_path: str) -> None:
        """Go on where `save` was called."""
        self._next = pickle.loads(Path(checkpoint_path).read_bytes())


class OptunaProposals(Searcher):
    """Asks optuna for each trial's values and tells it their outcome; conditions and values that follow are kept.

    Args:
        study: What is searched.

    Raises:
        ConfigError: If optuna is not installed.
    """

    def __init__(self, study: Study) -> None:
        super().__init__()
        optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        direction = "maximize" if study.tune.mode == "max" else "minimize"
        self._study = study
        self._memory = optuna.create_study(
            direction=direction, sampler=optuna.samplers.TPESampler(seed=study.base.seed)
        )
        self._asked: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """What optuna thinks best to try."""
        asked = self._asked[trial_id] = self._memory.ask()
        return {TRIAL: trial_name(asked.number), **self._study.propose(lambda key, given: _suggest(asked, key, given))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the last value that was reported, of a stopped trial too; a trial without one has failed."""
        asked = self._asked.pop(trial_id, None)
        value = (result or {}).get(self._study.tune.metric)
        if asked is not None and value is not None:
            self._memory.tell(asked, value)
        elif asked is not None:
            self._memory.tell(asked, state=import_optuna().trial.TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Write all that optuna knows."""
        Path(checkpoint_path).write_bytes(pickle.dumps((self._memory, self._asked)))

    def restore(self, checkpoint_path: str) -> None:
        """Go on where `save` was called."""
        self._memory, self._asked = pickle.loads(Path(checkpoint_path).read_bytes())


def import_optuna() -> ModuleType:
    """Optuna, which rayssl does not need otherwise.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ModuleNotFoundError:
        raise ConfigError(
            "tune.algorithm: optuna is not installed. Install it (pip install 'rayssl[optuna]'), or take random"
        ) from None


def _suggest(asked: Any, key: SearchKey, given: Drawn) -> Any:
    if isinstance(given, Choice):
        # By number, since optuna wants scalars and a choice may be a whole section.
        return given.values[asked.suggest_categorical(key.key, list(range(len(given.values))))]
    return _suggest_number(asked, key.key, given)


def _suggest_number(asked: Any, name: str, given: Interval) -> float:
    if given.whole:
        return int(asked.suggest_int(name, int(given.low), int(given.high), log=given.log))
    return float(asked.suggest_float(name, given.low, given.high, log=given.log, step=given.step))
