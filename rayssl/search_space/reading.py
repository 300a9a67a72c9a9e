"""From a study's file to its parts, each mistake with its line; the parts that are right are given all the same."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from rayssl.config import ExperimentConfig, find_recipe
from rayssl.errors import ConfigError
from rayssl.recipe_file import did_you_mean, flatten, load_recipe_text, parse_section
from rayssl.recipe_file.draft import Recipe
from rayssl.recipe_file.overrides import apply_overrides
from rayssl.recipe_file.reading import RecipeSyntaxError, compose, construct
from rayssl.recipe_file.wording import Keys, shorten, show
from rayssl.schema import Config
from rayssl.search_space.distributions import parse_distribution
from rayssl.search_space.study import SearchKey, as_override
from rayssl.search_space.tune_settings import TuneSettings

_INLINE = "experiment"


class StudyFile(Config):
    """The sections of a study."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """First part of the search's id; null: the name of the file."""
    recipe: str | None = None
    """Name or path of the recipe that is searched around."""
    experiment: dict[str, Any] | None = None
    """Or the whole recipe, written here."""
    set_: dict[str, Any] = Field(default_factory=dict, alias="set")
    """Dotted keys of the recipe that have another value in all trials."""
    search: dict[str, Any]
    """Dotted keys of the recipe that are searched, a line each."""
    tune: TuneSettings = TuneSettings()
    """How."""
    reuse: bool = True
    """Whether trials start from the stage checkpoints of others that began alike."""


@dataclass
class Draft:
    """A study while it is being read."""

    recipe: Recipe
    """Its data, the line of each key, and its mistakes."""
    overrides: tuple[str, ...]
    """Of the recipe, from the command line."""

    def add(self, keys: Keys, rule: str) -> None:
        """Add a mistake at a key, or at the nearest section around it that has a line."""
        place = keys
        while place and place not in self.recipe.origins:
            place = place[:-1]
        self.recipe.add_mistake(keys, rule, self.recipe.origins.get(place))

    def section(self, name: str) -> Mapping[str, Any]:
        """A section's data, empty if it is missing or no section."""
        section = self.recipe.data.get(name)
        return section if isinstance(section, dict) else {}


def read_draft(path: Path, overrides: Sequence[str]) -> Draft:
    """Read the file and apply the overrides that begin with `tune.`; all others are the recipe's.

    Raises:
        ConfigError: If the file can't be read or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"study {path}: can't be read: {reason}") from None
    recipe = Recipe(str(path))
    try:
        node = compose(text)
    except RecipeSyntaxError as error:
        raise ConfigError(f"{path}:{error.line}:{error.column}: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: must have 'key: value' lines, such as recipe: demo-psl")
    recipe.data = construct(node, (), recipe)
    own = [text for text in overrides if text.startswith("tune.")]
    apply_overrides(recipe, StudyFile, own)
    draft = Draft(recipe, tuple(text for text in overrides if text not in own))
    _check_sections(draft)
    return draft


def read_tune(draft: Draft) -> TuneSettings | None:
    """The `tune` section; None if it has mistakes, which are noted already."""
    try:
        return parse_section(TuneSettings, draft.section("tune"))
    except ValidationError:
        return None


def read_base(draft: Draft) -> tuple[str, str, tuple[str, ...], ExperimentConfig] | None:
    """The recipe as text, what messages call it, its overrides, and the config; None, and mistakes, if it has any."""
    found = _base_text(draft)
    if found is None:
        return None
    text, source = found
    mine = {as_override(key, value): ("set", key) for key, value in draft.section("set").items()}
    fixed = (*mine, *draft.overrides)
    try:
        return text, source, fixed, load_recipe_text(ExperimentConfig, text, source=source, overrides=fixed)[0]
    except ConfigError as error:
        for line in str(error).splitlines()[1:] or [str(error)]:
            place, rule = locate(line, mine)
            if place is None and source == _INLINE:
                place, rule = _place_inline(line)
            draft.add(place or ("recipe",), rule)
        return None


def read_search(draft: Draft) -> list[SearchKey]:
    """The searched keys without mistakes of their own; the others are noted."""
    found = []
    for key, entry in draft.section("search").items():
        try:
            found.append(_parse_entry(key, entry))
        except ValueError as error:
            draft.add(("search", key), str(error))
        if key in draft.section("set"):
            draft.add(("search", key), "is in `set` as well. Leave it out there")
    return found


def locate(line: str, overrides: Mapping[str, Keys]) -> tuple[Keys | None, str]:
    """Take "override KEY=VALUE: rule" apart: the place that wrote this override, None if it is none of them."""
    for override, keys in overrides.items():
        start = f"override {shorten(override)}: "
        if line.startswith(start):
            return keys, line.removeprefix(start)
    return None, line


def unknown_key(key: str, known: Mapping[str, Any]) -> str:
    """The rule for a key that is not the recipe's."""
    return f"unknown key '{key}'.{did_you_mean(key, known)}"


def known_values(base: ExperimentConfig | None, keys: Sequence[SearchKey]) -> dict[str, Any]:
    """Dotted keys of the recipe and the searched ones."""
    return {**(flatten(base) if base else {}), **{each.key: None for each in keys}}


def _check_sections(draft: Draft) -> None:
    """Note what is wrong with the sections themselves."""
    recipe = draft.recipe
    try:
        parse_section(StudyFile, recipe.data)
    except ValidationError as error:
        for detail in error.errors():
            draft.add(tuple(detail["loc"]), detail["msg"])
    if ("recipe" in recipe.data) == ("experiment" in recipe.data):
        rule = "must be given, or `experiment` with a whole recipe; not both"
        draft.add(("recipe",), rule)
    if recipe.data.get("search") == {}:
        draft.add(("search",), "must name at least one key")


def _base_text(draft: Draft) -> tuple[str, str] | None:
    recipe = draft.recipe
    name, inline = recipe.data.get("recipe"), recipe.data.get("experiment")
    if isinstance(inline, dict) and name is None:
        return json.dumps(inline), _INLINE
    if not isinstance(name, str) or inline is not None:
        return None
    beside = Path(recipe.source).parent / name
    try:
        path = beside if beside.is_file() else find_recipe(name)
        return path.read_text(encoding="utf-8"), str(path)
    except ConfigError as error:
        draft.add(("recipe",), str(error).partition(": ")[2])
    except (OSError, UnicodeDecodeError) as error:
        draft.add(("recipe",), f"can't be read: {error}")
    return None


def _place_inline(line: str) -> tuple[Keys, str]:
    """Take "experiment:1: data.limit: rule" apart."""
    dotted, _, rule = re.sub(rf"^{_INLINE}(:1)?: ", "", line).partition(": ")
    return ("experiment", *(int(part) if part.isdigit() else part for part in dotted.split("."))), rule


def _parse_entry(key: str, entry: Any) -> SearchKey:
    example = "such as {uniform: [0.1, 0.2]}. A value for all trials belongs into `set`"
    if not isinstance(entry, dict):
        raise ValueError(f"must name a distribution, {example}, got {show(entry)}")
    when = entry.get("when", {})
    kinds = [kind for kind in entry if kind != "when"]
    if len(kinds) != 1:
        raise ValueError(f"must name one distribution, {example}, got {len(kinds)}")
    if not isinstance(when, dict):
        raise ValueError(f"when: must be keys and their values, such as {{method.name: mgta}}, got {show(when)}")
    conditions = {other: tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}
    return SearchKey(key, parse_distribution(kinds[0], entry[kinds[0]]), conditions)
