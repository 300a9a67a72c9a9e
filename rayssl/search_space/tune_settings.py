"""The `tune` section of a study: what is maximised, how many trials there are, who stops them."""

from typing import Literal

from pydantic import Field

from rayssl.schema import Config


class TuneSettings(Config):
    """How a search is run; the names are ray.tune's where it has one."""

    metric: str = "probe/best/top1"
    """What trials are compared by: a number that an epoch of a run gives, measured on the pictures held out."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    num_samples: int = Field(default=10, ge=1)
    """Trials; where a key has a grid_search, trials for each of its combinations. With algorithm grid: not used."""
    scheduler: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    """Who stops weak trials early. asha: successive halving without waiting (Li et al. 2020); hyperband: with waiting;
    median: stops what is below the others' median; pbt: copies strong trials and changes their settings."""
    grace_period: int = Field(default=1, ge=1)
    """Epochs that every trial gets before it may be stopped; with pbt the epochs between two changes."""
    reduction_factor: int = Field(default=3, ge=2)
    """asha and hyperband: of so many trials one goes on at each halving."""
    algorithm: Literal["random", "grid", "optuna"] = "random"
    """Who draws the settings. grid: every combination of the choices; optuna: TPE (Bergstra et al. 2011)."""
    workers: int | None = Field(default=None, ge=0)
    """Worker processes of each trial; null: the recipe's cluster.workers. 0 and 1 train inside the trial itself."""
    concurrency: int | None = Field(default=None, ge=1)
    """Most trials at a time; null: as many as the cluster holds. Not with hyperband and pbt."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """Seconds after which no trial goes on; null: no limit."""
    stop: dict[str, float] = Field(default_factory=dict)
    """Stops a trial as soon as one of these metrics, or `epoch`, is as good as the number beside it."""

    @property
    def pauses(self) -> bool:
        """Whether the scheduler lets trials wait for each other."""
        return self.scheduler in ("hyperband", "pbt")
