"""What a line of a study says about a key: a distribution under ray.tune's name, or a value that follows other keys."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayssl.recipe_file import did_you_mean
from rayssl.recipe_file.wording import show

Values = Mapping[str, Any]
"""Dotted key -> value, plain data."""


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends: uniform, quniform, loguniform, randint and lograndint."""

    low: float
    high: float
    """The largest value itself, also for randint and lograndint, which a study writes with one more (as ray.tune)."""
    log: bool = False
    """Whether the logarithm is uniform."""
    whole: bool = False
    """Whether only whole numbers are drawn."""
    step: float | None = None
    """Distance of the values of quniform, counted from the low end; None: any value."""

    def ends(self) -> dict[str, Any]:
        """The values that are tried before a search: a name for each, and the value."""
        return {"its low end": self.clip(self.low), "its high end": self.clip(self.high)}

    def sample(self, generator: np.random.Generator) -> float:
        """Draw a value; floats have four digits, so that a recipe can be read and gives the very same run."""
        if self.log:
            # Whole numbers have equal shares of the logarithm around them, so that both ends are drawn.
            half = 0.5 if self.whole else 0.0
            drawn = math.exp(generator.uniform(math.log(self.low - half), math.log(self.high + half)))
        elif self.whole:
            return int(generator.integers(int(self.low), int(self.high) + 1))
        else:
            drawn = generator.uniform(self.low, self.high)
        return self.clip(float(f"{drawn:.4g}") if not (self.whole or self.step) else drawn)

    def clip(self, value: float) -> float:
        """The nearest value that can be drawn."""
        bounded = min(max(value, self.low), self.high)
        if self.step is not None:
            steps = min(round((bounded - self.low) / self.step), math.floor((self.high - self.low) / self.step + 1e-9))
            return float(f"{self.low + steps * self.step:.10g}")
        return round(bounded) if self.whole else float(bounded)


@dataclass(frozen=True)
class Choice:
    """Some values, which may be whole sections or lists: choice and grid_search."""

    values: tuple[Any, ...]
    grid: bool = False
    """Whether every value is tried with every other key's, instead of one drawn for each trial."""

    def ends(self) -> dict[str, Any]:
        """All values."""
        return {show(value): value for value in self.values}

    def sample(self, generator: np.random.Generator) -> Any:
        """Draw one of the values."""
        return self.values[int(generator.integers(len(self.values)))]


@dataclass(frozen=True)
class Follows:
    """A value computed from other keys: same_as, times and minus."""

    kind: str
    sources: tuple[str, ...]
    number: float = 0

    def value(self, values: Values) -> Any:
        """Compute it: the source itself, the source times the number, or the number minus the sources."""
        if self.kind == "same_as":
            return values[self.sources[0]]
        if self.kind == "times":
            return values[self.sources[0]] * self.number
        return self.number - sum(values[source] for source in self.sources)


Drawn = Interval | Choice
Distribution = Drawn | Follows


def parse_distribution(kind: str, argument: Any) -> Distribution:
    """Make a distribution of `{kind: argument}`.

    Raises:
        ValueError: With the rule that it breaks.
    """
    if kind not in _PARSERS:
        raise ValueError(
            f"unknown distribution {show(kind)}.{did_you_mean(kind, _PARSERS)} There are: {', '.join(_PARSERS)}"
        )
    return _PARSERS[kind](kind, argument)


def _interval(kind: str, argument: Any) -> Interval:
    log, whole, quantized = kind.startswith("log"), kind.endswith("randint"), kind == "quniform"
    shape = "[low, high, step]" if quantized else "[low, high]"
    wanted = int if whole else int | float
    is_list = isinstance(argument, list) and len(argument) == 2 + quantized
    if not is_list or any(not isinstance(each, wanted) or isinstance(each, bool) for each in argument):
        kinds = "whole numbers" if whole else "numbers"
        raise ValueError(f"{kind}: must be {shape}, {kinds}, got {show(argument)}")
    low, high = argument[0], argument[1] - whole
    if not low < argument[1]:
        raise ValueError(f"{kind}: the low end must be below the high end, got {show(argument)}")
    if log and low <= 0:
        raise ValueError(f"{kind}: the low end must be greater than 0, got {show(low)}")
    if quantized and argument[2] <= 0:
        raise ValueError(f"{kind}: the step must be greater than 0, got {show(argument[2])}")
    return Interval(low, high, log=log, whole=whole, step=argument[2] if quantized else None)


def _choice(kind: str, argument: Any) -> Choice:
    if not isinstance(argument, list) or not argument:
        raise ValueError(f"{kind}: must be a list of values, got {show(argument)}")
    return Choice(tuple(argument), grid=kind == "grid_search")


def _same_as(kind: str, argument: Any) -> Follows:
    if not isinstance(argument, str):
        raise ValueError(f"{kind}: must be another key, got {show(argument)}")
    return Follows(kind, (argument,))


def _times(kind: str, argument: Any) -> Follows:
    if not isinstance(argument, list) or [type(each) in (int, float) for each in argument] != [False, True]:
        raise ValueError(f"{kind}: must be [other.key, NUMBER], got {show(argument)}")
    return Follows(kind, (str(argument[0]),), argument[1])


def _minus(kind: str, argument: Any) -> Follows:
    is_list = isinstance(argument, list) and len(argument) > 1 and type(argument[0]) in (int, float)
    if not is_list or not all(isinstance(each, str) for each in argument[1:]):
        raise ValueError(f"{kind}: must be [NUMBER, other.key, ...], got {show(argument)}")
    return Follows(kind, tuple(argument[1:]), argument[0])


_PARSERS: dict[str, Callable[[str, Any], Distribution]] = {
    **dict.fromkeys(("uniform", "quniform", "loguniform", "randint", "lograndint"), _interval),
    **dict.fromkeys(("choice", "grid_search"), _choice),
    "same_as": _same_as,
    "times": _times,
    "minus": _minus,
}
