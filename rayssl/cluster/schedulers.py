"""Who stops a search's trials early, made for ray.tune from the study's settings."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune import schedulers

from rayssl.search_space import LOWER_IS_BETTER, Drawn, Interval, Study


def make_scheduler(study: Study, *, longest: int) -> Any:
    """Make the scheduler that the study names; `longest` are the epochs of the longest trial."""
    settings = study.tune
    grace = min(settings.grace_period, longest)
    if settings.scheduler == "asha":
        # One epoch more than there are: a trial that comes to its end must not be cut off while it writes its results.
        return schedulers.ASHAScheduler(
            time_attr="epoch", max_t=longest + 1, grace_period=grace, reduction_factor=settings.reduction_factor
        )
    if settings.scheduler == "hyperband":
        # Trials that are left after the last halving come to their own ends, for the reason above; and Tune never stops
        # those that it let wait there if the last of them ends by itself.
        return _HyperBand(
            time_attr="epoch", max_t=longest, reduction_factor=settings.reduction_factor, stop_last_trials=False
        )
    if settings.scheduler == "median":
        # It would pause trials, too, until there are enough to compare: infinitely late here.
        return _MedianStopping(time_attr="epoch", grace_period=grace, min_time_slice=math.inf)
    if settings.scheduler == "pbt":
        return _make_pbt(study, grace)
    return schedulers.FIFOScheduler()


class _HyperBand(schedulers.HyperBandScheduler):
    """Tune's, which lets trials wait for ever in two cases.

    After a bracket's first halving it takes no more notice of trials that fail, for which the others then wait; and if
    all trials that go on are past the next halving already, since the metric is not measured in every epoch, none of
    them is left that would bring it about. It also moves a trial that crashed and is started again to another bracket.
    """

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        bracket, _ = self._trial_info[trial]
        if trial.status == "ERROR" and trial in bracket.current_trials():  # Tune starts it again: it is waited for
            bracket._live_trials[trial] = None
        else:
            super().on_trial_error(tune_controller, trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        bracket, _ = self._trial_info.get(trial, (None, 0))
        if bracket is None or trial not in bracket.current_trials():
            super().on_trial_add(tune_controller, trial)

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        action: str = self._halve(tune_controller, bracket)
        while bracket.current_trials() and bracket._halves and bracket.cur_iter_done():
            later = self._halve(tune_controller, bracket)
            action = action if action == self.STOP else later
        return action

    def _halve(self, tune_controller: Any, bracket: Any) -> str:
        """If all trials are there, stop the bad ones and let the good ones go on."""
        try:
            return str(super()._process_bracket(tune_controller, bracket))
        finally:
            bracket.is_being_processed = False  # set meanwhile, since the trials that it stops are no news


class _MedianStopping(schedulers.MedianStoppingRule):
    """Tune's rule, which otherwise trips over a trial that ended before it measured anything."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._metric in result:
            super().on_trial_complete(tune_controller, trial, result)


class _Population(schedulers.PopulationBasedTraining):
    """Tune's, which refuses all that propose trials, since settings that change would mislead them; not so a list."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)


def _make_pbt(study: Study, interval: int) -> Any:
    generator = np.random.default_rng(study.base.seed)
    given: dict[str, Drawn] = {
        each.key: each.distribution for each in study.space.keys if isinstance(each.distribution, Drawn)
    }

    def mutation(key: str) -> Any:
        distribution = given[key]
        if isinstance(distribution, Interval):
            return lambda: distribution.sample(generator)
        return list(distribution.values)

    def within_bounds(config: dict[str, Any]) -> dict[str, Any]:
        """Tune multiplies by .8 or 1.2, past the ends."""
        bounds = {key: each for key, each in given.items() if isinstance(each, Interval) and key in config}
        return {**config, **{key: each.clip(config[key]) for key, each in bounds.items()}}

    return _Population(
        time_attr="epoch",
        perturbation_interval=interval,
        hyperparam_mutations={key: mutation(key) for key in given},
        custom_explore_fn=within_bounds,
        require_attrs=False,
        log_config=False,
    )


def make_stopper(study: Study) -> Any:
    """Make what Tune asks about every result; None if the study has no stopping rule."""
    limits = dict(study.tune.stop)

    def is_good_enough(trial_id: str, result: dict[str, Any]) -> bool:
        return any(
            key in result and (result[key] <= limit if key in LOWER_IS_BETTER else result[key] >= limit)
            for key, limit in limits.items()
        )

    return is_good_enough if limits else None
