"""Pydantic's errors in plain words: the place in the file, the rule, the value, and what would help."""

import functools
import inspect
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rayssl.recipe_file.annotations import (
    TAG,
    child_of,
    key_of,
    members_of,
    section_class_of,
    section_classes_of,
    tags_of,
)
from rayssl.recipe_file.reading import CORE_SCHEMA
from rayssl.recipe_file.wording import Keys, did_you_mean, show

_MAX_KEYS_LISTED = 12
_SECTION = "must be a section of 'key: value' lines"
_REQUIREMENTS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "none_required": "must be null",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": _SECTION,
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
}


class _Finding(NamedTuple):
    """One of pydantic's errors, at its place in the file."""

    keys: Keys
    detail: Mapping[str, Any]
    annotation: Any
    """What stands around the last key; the union itself for a tag."""
    parent: Any
    union: Keys | None
    """The place of the plain union (`float | Literal["soft"]`) that has other members, which failed too."""


def in_plain_words(error: ValidationError, model: type[BaseModel], data: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """Give the place and the broken rule of each mistake.

    Args:
        error: What pydantic says about the data.
        model: The class that it was checked against.
        data: What was checked.
    """
    alternatives: dict[Keys, list[_Finding]] = {}
    for detail in error.errors(include_url=False):
        finding = _locate(model, data, detail)
        if finding.union is None:
            yield _describe(finding)
        else:
            alternatives.setdefault(finding.union, []).append(finding)
    for union, findings in alternatives.items():
        # The member that was meant is the one whose own shape fits, so that the error lies inside it.
        inner = [finding for finding in findings if len(finding.keys) > len(union)]
        if inner:
            yield from map(_describe, inner)
        else:
            first, *others = dict.fromkeys(_requirement(finding.detail) for finding in findings)
            rule = " or ".join([first, *(other.removeprefix("must be ") for other in others)])
            yield union, f"{rule}, got {show(findings[0].detail['input'])}"


def _locate(model: type[BaseModel], data: Any, detail: Mapping[str, Any]) -> _Finding:
    """Follow pydantic's location through annotations and data, past the labels of union members in it."""
    annotation: Any = model
    around, parent, value = None, None, data
    keys: Keys = ()
    union = None
    for element in detail["loc"]:
        members = members_of(annotation)
        classes = section_classes_of(annotation)
        chosen = next((each for each in classes if element in tags_of(each) or element == each.__name__), None)
        if len(members) > 1 and len(classes) == len(members) and chosen:
            annotation = chosen
        elif len(members) > len(classes) and len(members) > 1 and not _has_key(value, element):
            union = keys if union is None else union
            if isinstance(value, dict) and classes:
                annotation = functools.reduce(operator.or_, classes)
            else:
                annotation = next((each for each in members if inspect.isclass(get_origin(each))), None)
        else:
            around, parent, keys = annotation, value, (*keys, element)
            annotation = child_of(annotation, value, element)
            value = value[element] if _has_key(value, element) else None
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _Finding((*keys, TAG), detail, annotation, value, union)
    return _Finding(keys, detail, around, parent, union)


def _has_key(value: Any, key: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(key, int) and key < len(value)
    return isinstance(value, dict) and key in value


def _describe(finding: _Finding) -> tuple[Keys, str]:
    keys, detail = finding.keys, finding.detail
    kind, value = detail["type"], detail["input"]
    if kind == "missing" and isinstance(keys[-1], int):
        lengths = (len(get_args(each)) for each in members_of(finding.annotation) if get_origin(each) is tuple)
        return keys[:-1], f"must have {next(lengths, 'more')} items, got {show(value)}"
    if kind == "missing":
        return keys, "is required"
    if kind == "extra_forbidden":
        return keys, _unknown_key(str(keys[-1]), section_class_of(finding.annotation, finding.parent or {}))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return keys, _bad_tag(finding)
    requirement = _requirement(detail)
    if kind not in _REQUIREMENTS and not detail["msg"].startswith("Input should "):
        return keys, requirement
    return keys, _with_help(f"{requirement}, got {show(value)}", _help(kind, value, requirement))


def _bad_tag(finding: _Finding) -> str:
    tags = [str(tag) for each in section_classes_of(finding.annotation) for tag in tags_of(each)]
    choices = f" There are: {', '.join(tags)}"
    if not _has_key(finding.parent, TAG):
        return f"is required.{choices}"
    tag = finding.parent[TAG]
    return f"unknown {show(tag)}.{did_you_mean(str(tag), tags)}{choices}"


def _requirement(detail: Mapping[str, Any]) -> str:
    context = detail.get("ctx", {})
    if detail["type"] in ("value_error", "assertion_error"):
        return " ".join(str(context.get("error", detail["msg"])).split())
    if detail["type"] not in _REQUIREMENTS:
        return " ".join(re.sub(r"^Input should ", "must ", detail["msg"]).split())
    # Bounds of a float field are floats, but "at least 0" reads better than "at least 0.0".
    numbers = {key: int(value) for key, value in context.items() if isinstance(value, float) and value.is_integer()}
    requirement = _REQUIREMENTS[detail["type"]].format(**{**context, **numbers})
    return re.sub(r"\b1 (item|character)s$", r"1 \1", requirement)


def _help(kind: str, value: Any, requirement: str) -> str:
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f" Write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        is_number = any(re.fullmatch(CORE_SCHEMA[each], value) for each in ("int", "float"))
        return " Remove the quotes" if is_number else ""
    if kind == "string_type" and isinstance(value, int | float):
        return " Put it in quotes"
    if kind in ("literal_error", "enum"):
        return did_you_mean(str(value), re.findall(r"'([^']*)'", requirement))
    return ""


def _unknown_key(key: str, section_class: type[BaseModel] | None) -> str:
    if section_class is None:
        return "unknown key"
    keys = [key_of(name, info) for name, info in section_class.model_fields.items()]
    listing = f" It can be: {', '.join(keys)}" if 0 < len(keys) <= _MAX_KEYS_LISTED else ""
    nesting = " Nest it: dots don't open sections in a file" if "." in key else ""
    return _with_help("unknown key", did_you_mean(key, keys), nesting or listing)


def _with_help(rule: str, *helps: str) -> str:
    return f"{rule}.{''.join(helps)}" if any(helps) else rule
