"""A study: a recipe, the keys of it that are searched, and how; a YAML file.

    file --reading--> keys, tune settings, recipe --checks--> a Study --samples--> the values of each trial

Nothing here knows Ray: distributions are data, so that both their ends can be checked before a trial starts, and so
that `--dry-run` prints the very trials that a search would run.
"""

from rayssl.search_space.distributions import Choice, Drawn, Interval, Values
from rayssl.search_space.loading import load_study
from rayssl.search_space.metrics import LOWER_IS_BETTER
from rayssl.search_space.prefixes import StageStore, total_epochs
from rayssl.search_space.study import Choose, SearchKey, Study
from rayssl.search_space.tune_settings import TuneSettings

__all__ = [
    "LOWER_IS_BETTER",
    "Choice",
    "Choose",
    "Drawn",
    "Interval",
    "SearchKey",
    "StageStore",
    "Study",
    "TuneSettings",
    "Values",
    "load_study",
    "total_epochs",
]
