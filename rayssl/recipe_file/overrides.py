"""`dotted.key=value`: parse overrides, put them into an order, and set them in a recipe's data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from rayssl.recipe_file.annotations import TAG, child_of, fields_of, section_class_of, section_classes_of, tags_of
from rayssl.recipe_file.draft import Override, Recipe, RefusedOverrideError
from rayssl.recipe_file.reading import MAX_DEPTH, RecipeSyntaxError, compose, construct
from rayssl.recipe_file.wording import Keys, dotted, shorten, show
from rayssl.recipe_file.writing import to_plain


def apply_overrides(recipe: Recipe, model: type[BaseModel], texts: Sequence[str]) -> list[str]:
    """Set all overrides in the recipe's data; gives notes about keys that were dropped, and adds mistakes."""
    overrides: list[Override] = []
    notes: list[str] = []
    for rank, text in enumerate(texts):
        try:
            overrides.append(_parse_override(text, rank))
        except (RefusedOverrideError, RecipeSyntaxError) as error:
            recipe.add_override_mistake(rank, text, str(error))
    for override in _tags_first(overrides):
        try:
            notes += _apply_override(recipe, model, override)
        except RefusedOverrideError as error:
            recipe.add_override_mistake(override.rank, override.text, str(error))
    return notes


def _parse_override(text: str, rank: int) -> Override:
    key, equals, value = text.partition("=")
    segments = tuple(segment.strip() for segment in key.split("."))
    if not equals:
        raise RefusedOverrideError("must be key=value, but has no '='")
    if not all(segments):
        raise RefusedOverrideError("must have a key before the '=', such as data.limit, without empty parts")
    if len(segments) > MAX_DEPTH:
        raise RefusedOverrideError(f"the key must have at most {MAX_DEPTH} parts, got {len(segments)}")
    return Override(rank, text, segments, compose(value))


def _tags_first(overrides: Iterable[Override]) -> list[Override]:
    """Move each tag before the keys beside it, so that a search may give them in any order."""
    ordered: list[Override] = []
    for override in overrides:
        place = len(ordered)
        if override.segments[-1] == TAG:
            section = override.segments[:-1]
            # Not before a value for the whole section or for the same tag: of those, the last one counts.
            replaced = (
                i for i, other in enumerate(ordered) if override.segments[: len(other.segments)] == other.segments
            )
            start = max(replaced, default=-1) + 1
            beside = (i for i in range(start, place) if ordered[i].segments[: len(section)] == section)
            place = next(beside, place)
        ordered.insert(place, override)
    return ordered


def _apply_override(recipe: Recipe, model: type[BaseModel], override: Override) -> list[str]:
    """Set one value in the recipe's data, and give the notes about what that dropped."""
    annotation: Any = model
    section: Any = recipe.data
    keys: Keys = ()
    *parents, last = override.segments
    for segment in parents:
        key = _key_in(section, segment, keys)
        if isinstance(section, dict) and section.get(key) is None:
            default = None if key in section else _default_of(annotation, section, segment)
            section[key] = {} if default is None else default
            if default is None:
                recipe.origins[*keys, key] = override
        annotation, section, keys = child_of(annotation, section, key), section[key], (*keys, key)
    key = _key_in(section, last, keys)
    recipe.forget_origins((*keys, key))
    value = None if override.node is None else construct(override.node, (*keys, key), recipe, override)
    notes = _change_tag(recipe, annotation, keys, section, value, override) if key == TAG else []
    section[key] = value
    recipe.origins[*keys, key] = override
    return notes


def _key_in(section: Any, segment: str, keys: Keys) -> str | int:
    if isinstance(section, dict):
        return segment
    if not isinstance(section, list):
        raise RefusedOverrideError(f"{dotted(keys)}: must be a section or a list, got {show(section)}")
    if not section:
        raise RefusedOverrideError(f"{dotted(keys)}: is an empty list. Set the whole list")
    indices = {str(index): index for index in range(len(section))}
    if segment not in indices:
        last = len(section) - 1
        rule = (
            f"has {last + 1} items, so the index must be 0 to {last}" if last else "has 1 item, so the index must be 0"
        )
        raise RefusedOverrideError(f"{dotted(keys)}: {rule}, got {shorten(segment)}")
    return indices[segment]


def _default_of(annotation: Any, section: Mapping[str, Any], key: str) -> Any:
    section_class = section_class_of(annotation, section)
    info = fields_of(section_class).get(key) if section_class else None
    if info is None or info.is_required():
        return None
    return to_plain(info.get_default(call_default_factory=True))


def _change_tag(
    recipe: Recipe, annotation: Any, keys: Keys, section: dict[str, Any], tag: Any, override: Override
) -> list[str]:
    """Remove what only the old class has; a typo in the file stays, and stays a mistake.

    Of a default section (no origin) everything goes, because its values were chosen for the old class.
    """
    classes = section_classes_of(annotation)
    new_class = next((each for each in classes if tag in tags_of(each)), None)
    if len(classes) < 2 or new_class is None or section.get(TAG) == tag:
        return []
    known = {key for each in classes for key in fields_of(each)}
    dropped: list[str] = []
    for key in [key for key in section if key != TAG]:
        inner = (*keys, key)
        origin = recipe.origins.get(inner)
        if origin is None:
            del section[key]
        elif not isinstance(origin, Override) and key in known - fields_of(new_class).keys():
            del section[key]
            recipe.forget_origins(inner)
            dropped.append(key)
    if not dropped:
        return []
    old = section.get(TAG)
    elsewhere = {key for each in classes if old not in tags_of(each) for key in fields_of(each)}
    reason = f"not in {tag}" if elsewhere.intersection(dropped) else f"{old} only"
    names = ", ".join(dotted((*keys, key)) for key in dropped)
    return [f"{shorten(override.text)}: dropped {names} ({reason})"]
