"""The recipe while it is being built: its data, where each key came from, and what is wrong."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from rayssl.recipe_file.wording import Keys, dotted, shorten


@dataclass(frozen=True)
class Override:
    """One `key=value` text in parts; `rank` is its place among the overrides."""

    rank: int
    text: str
    segments: tuple[str, ...]
    node: yaml.Node | None


class Mistake(NamedTuple):
    """A line of the message, and where it comes among the others."""

    rank: tuple[int, int]
    """(0, line) in the file, line 0 for what isn't there; (1, place) among the overrides."""
    text: str


class RefusedOverrideError(ValueError):
    """Why an override can't be parsed or applied."""


@dataclass
class Recipe:
    """Everything known about a recipe before it is a config."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, int | Override] = field(default_factory=dict)
    """The line, counted from 1, or the override that a key came from; what a default filled in has none."""
    mistakes: list[Mistake] = field(default_factory=list)

    def origin_of(self, keys: Keys) -> int | Override | None:
        """Find the key's own origin, or for a missing key the override that wrote the section around it."""
        if keys in self.origins or not keys:
            return self.origins.get(keys)
        around = self.origin_of(keys[:-1])
        return around if isinstance(around, Override) else None

    def at_named_key(self, keys: Keys, rule: str) -> tuple[Keys, str, int | Override | None]:
        """Move a rule such as "training.batch_size: must be ..." of a check over several keys to the key it names."""
        named, colon, rest = rule.partition(": ")
        for known, origin in self.origins.items() if colon and " " not in named else ():
            if known[: len(keys)] == keys and dotted(known[len(keys) :]) == named:
                return known, rest, origin
        return keys, rule, self.origin_of(keys)

    def add_mistake(self, keys: Keys, rule: str, origin: int | Override | None) -> None:
        """Add a mistake at a key; those without a line come first, those of overrides last."""
        text = f"{dotted(keys)}: {rule}" if keys else rule
        if isinstance(origin, Override):
            is_same_key = dotted(keys) == dotted(origin.segments)
            self.add_override_mistake(origin.rank, origin.text, rule if is_same_key else text)
        elif origin is None:
            self.mistakes.append(Mistake((0, 0), f"{self.source}: {text}"))
        else:
            self.mistakes.append(Mistake((0, origin), f"{self.source}:{origin}: {text}"))

    def add_override_mistake(self, rank: int, override: str, rule: str) -> None:
        """Add a mistake of an override."""
        self.mistakes.append(Mistake((1, rank), f"override {shorten(override)}: {rule}"))

    def forget_origins(self, keys: Keys) -> None:
        """Drop the origins of a key and of all inside it."""
        self.origins = {known: origin for known, origin in self.origins.items() if known[: len(keys)] != keys}
