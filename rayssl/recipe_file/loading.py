"""Load a recipe: text and overrides become data, pydantic makes a config of it, and all mistakes are told at once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from rayssl.errors import ConfigError
from rayssl.recipe_file.draft import Recipe
from rayssl.recipe_file.messages import in_plain_words
from rayssl.recipe_file.overrides import apply_overrides
from rayssl.recipe_file.reading import RecipeSyntaxError, compose, construct
from rayssl.recipe_file.wording import show
from rayssl.schema import Config

M = TypeVar("M", bound=Config)

_MAX_BYTES = 1_000_000


def load_recipe(model: type[M], path: Path, overrides: Sequence[str] = ()) -> tuple[M, list[str]]:
    """Read a recipe from a file; the rest is `load_recipe_text`'s.

    Args:
        model: The config class of the whole recipe.
        path: A YAML file in UTF-8 of at most 1 MB.
        overrides: `dotted.key=value` texts.

    Raises:
        ConfigError: If the file can't be read, or the recipe or an override breaks a rule.
    """
    return load_recipe_text(model, _read_text(path), source=str(path), overrides=overrides)


def load_recipe_text(model: type[M], text: str, *, source: str, overrides: Sequence[str] = ()) -> tuple[M, list[str]]:
    """Read a recipe from YAML text, apply overrides and validate the result.

    An override of a union's tag (`data.name=folder`) drops what the text says for the old class only, with a note.
    An override inside a section that the text leaves out changes that one key of the section's default.

    Args:
        model: The config class of the whole recipe.
        text: YAML sections, lists and scalars, without aliases, tags and merge keys.
        source: What messages call the text, such as the file's path.
        overrides: `dotted.key=value` texts; the value is YAML too. Of two for the same key the last one counts, and
            a tag is set before the keys beside it, wherever it stands.

    Returns:
        The config, and notes for the user about the keys that were dropped.

    Raises:
        ConfigError: At once if the text isn't such YAML; else with all mistakes of text and overrides, a line each.
    """
    recipe = _parse_recipe(text, source)
    notes = apply_overrides(recipe, model, overrides)
    try:
        # Through JSON because strict JSON refuses "3" for 3 and true for 1, yet takes lists for tuples, text for paths.
        config = model.model_validate_json(json.dumps(recipe.data), strict=True)
    except ValidationError as error:
        for keys, rule in in_plain_words(error, model, recipe.data):
            recipe.add_mistake(*recipe.at_named_key(keys, rule))
    if recipe.mistakes:
        lines = dict.fromkeys(mistake.text for mistake in sorted(recipe.mistakes, key=lambda mistake: mistake.rank))
        heading = f"{source}: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise ConfigError("\n".join([heading, *lines]))
    return config, notes


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: must be a YAML file, but is a folder")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: must be at most 1 MB. A recipe has a few kB: is this the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: must be UTF-8 text, got the byte 0x{content[error.start]:02x}") from None


def _parse_recipe(text: str, source: str) -> Recipe:
    try:
        node = compose(text)
    except RecipeSyntaxError as error:
        raise ConfigError(f"{source}:{error.line}:{error.column}: {error}") from None
    recipe = Recipe(source)
    data = None if node is None else construct(node, (), recipe)
    if data is None:
        raise ConfigError(f"{source}: must have 'key: value' lines, but is empty")
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must have 'key: value' lines at the top level, got {show(data)}")
    recipe.data = data
    return recipe
