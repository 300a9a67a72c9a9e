"""A study: a recipe, the keys that are searched, and how; and the trials that come of it."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from rayssl.config import ExperimentConfig
from rayssl.recipe_file import flatten, load_recipe_text
from rayssl.search_space.distributions import Choice, Distribution, Drawn, Follows, Values
from rayssl.search_space.tune_settings import TuneSettings

# Keeps these draws apart from the other uses of a recipe's seed.
_SAMPLE_STREAM = 31
_MOST_TRIES = 100


@dataclass(frozen=True)
class SearchKey:
    """One line of the `search` section."""

    key: str
    distribution: Distribution
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The key is searched only where each of these keys has one of the values beside it."""


Choose = Callable[[SearchKey, Drawn], Any]
"""Gives a value for a key."""


@dataclass(frozen=True)
class SearchSpace:
    """The searched keys and the recipe around them."""

    text: str
    """The recipe as YAML."""
    source: str
    """What messages call it."""
    fixed: tuple[str, ...]
    """Overrides of the recipe, the same for all trials."""
    keys: tuple[SearchKey, ...]
    """In the study's order."""

    def config(self, values: Values) -> ExperimentConfig:
        """The recipe with these values.

        Raises:
            ConfigError: If they break a rule; each mistake begins with "override" and the key.
        """
        overrides = [*self.fixed, *map(as_override, values, values.values())]
        return load_recipe_text(ExperimentConfig, self.text, source=self.source, overrides=overrides)[0]

    def propose(self, choose: Choose, base: Values) -> dict[str, Any]:
        """Choose a value for each key whose conditions hold, and compute those that follow.

        Args:
            choose: Asked for the keys with a distribution, each after those that it depends on.
            base: The recipe's own values by dotted key.

        Returns:
            Values in the study's order.
        """
        values: dict[str, Any] = {}
        for each in in_order(self.keys):
            known = {**base, **values}
            if all(known.get(key) in allowed for key, allowed in each.when.items()):
                given = each.distribution
                values[each.key] = given.value(known) if isinstance(given, Follows) else choose(each, given)
        return {each.key: values[each.key] for each in self.keys if each.key in values}


@dataclass(frozen=True)
class Study:
    """A study without a mistake."""

    name: str
    space: SearchSpace
    tune: TuneSettings
    reuse: bool
    """Whether trials start from the stage checkpoints of others that began alike."""
    base: ExperimentConfig
    """The recipe with what the study fixes."""
    raw_search: Mapping[str, Any]
    """The `search` section as it was written."""

    def config(self, values: Values) -> ExperimentConfig:
        """The recipe of a trial, which runs as it is, with the evaluations of its end."""
        settings = {} if self.tune.workers is None else {"cluster.workers": self.tune.workers}
        return self.space.config({**values, **settings})

    @property
    def base_values(self) -> dict[str, Any]:
        """The recipe's own values by dotted key."""
        return flatten(self.base)

    def propose(self, choose: Choose) -> dict[str, Any]:
        """See `SearchSpace.propose`."""
        return self.space.propose(choose, self.base_values)

    def samples(self) -> list[dict[str, Any]]:
        """The values of every trial, no two alike; of an algorithm that learns from trials random ones.

        They are a function of the study and of the recipe's seed.
        """
        generator = np.random.default_rng([self.base.seed, _SAMPLE_STREAM])
        drawn: dict[str, dict[str, Any]] = {}
        base = self.base_values
        for combination in self._combinations():
            for _ in range(_MOST_TRIES):
                values = self.space.propose(partial(_draw, combination, generator), base)
                if drawn.setdefault(json.dumps(values, sort_keys=True), values) is values:
                    break
        return list(drawn.values())

    def as_data(self) -> dict[str, Any]:
        """The study as plain data that loads back, with the whole recipe in it."""
        return {
            "name": self.name,
            "experiment": self.base.model_dump(mode="json", by_alias=True),
            "search": dict(self.raw_search),
            "tune": self.tune.model_dump(mode="json"),
            "reuse": self.reuse,
        }

    def _combinations(self) -> Iterator[dict[str, Choice]]:
        """For each trial the one value that every key with a grid has in it."""
        everything = self.tune.algorithm == "grid"
        grids = {
            each.key: each.distribution
            for each in self.space.keys
            if isinstance(each.distribution, Choice) and (everything or each.distribution.grid)
        }
        for _ in range(1 if everything else self.tune.num_samples):
            for values in itertools.product(*(grid.values for grid in grids.values())):
                yield {key: Choice((value,)) for key, value in zip(grids, values, strict=True)}


def _draw(fixed: Mapping[str, Choice], generator: np.random.Generator, key: SearchKey, given: Drawn) -> Any:
    return fixed.get(key.key, given).sample(generator)


def as_override(key: str, value: Any) -> str:
    """Write a value as an override; JSON is YAML."""
    return f"{key}={json.dumps(value)}"


def in_order(keys: Sequence[SearchKey]) -> list[SearchKey]:
    """Each key after those that its conditions and its value depend on.

    Raises:
        ValueError: If some wait for each other; it names one of them.
    """
    ordered: list[SearchKey] = []
    waiting = list(keys)
    while waiting:
        names = {each.key for each in waiting}
        ready = [each for each in waiting if not names & {*each.when, *sources_of(each)}]
        if not ready:
            raise ValueError(waiting[0].key)
        ordered += ready
        waiting = [each for each in waiting if each not in ready]
    return ordered


def sources_of(key: SearchKey) -> tuple[str, ...]:
    """The keys that its value is computed from."""
    return key.distribution.sources if isinstance(key.distribution, Follows) else ()
