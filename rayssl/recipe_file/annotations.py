"""Which class or type stands at a place of a recipe: pydantic's annotations, walked beside the data."""

import inspect
import types
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

TAG = "name"
"""The key by which sections of a union are told apart."""


def members_of(annotation: Any) -> list[Any]:
    """List the alternatives of an annotation without None; one alternative if it isn't a union."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in members_of(argument)]
    return [] if annotation in (None, types.NoneType) else [annotation]


def section_classes_of(annotation: Any) -> list[type[BaseModel]]:
    """List the config classes among the alternatives."""
    return [each for each in members_of(annotation) if inspect.isclass(each) and issubclass(each, BaseModel)]


def section_class_of(annotation: Any, section: Mapping[str, Any]) -> type[BaseModel] | None:
    """Choose the config class of a section by its tag; None if the tag fits none."""
    classes = section_classes_of(annotation)
    if len(classes) == 1:
        return classes[0]
    return next((each for each in classes if section.get(TAG) in tags_of(each)), None)


def tags_of(section_class: type[BaseModel]) -> tuple[Any, ...]:
    """List the tags that stand for a config class."""
    info = section_class.model_fields.get(TAG)
    return get_args(info.annotation) if info and get_origin(info.annotation) is Literal else ()


def key_of(name: str, info: FieldInfo) -> str:
    """Give the key that a recipe writes for a field: its alias, if it has one."""
    return info.validation_alias if isinstance(info.validation_alias, str) else name


def fields_of(section_class: type[BaseModel]) -> dict[str, FieldInfo]:
    """Give the fields of a config class by name and by alias."""
    fields = section_class.model_fields
    return {**fields, **{key_of(name, info): info for name, info in fields.items()}}


def child_of(annotation: Any, parent: Any, key: str | int) -> Any:
    """Give the annotation of a key or list item, None if it isn't known."""
    section_class = section_class_of(annotation, parent) if isinstance(parent, dict) else None
    if section_class:
        info = fields_of(section_class).get(str(key))
        return info.annotation if info else None
    for member in members_of(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if isinstance(parent, list) and origin is tuple and Ellipsis not in arguments:
            return arguments[key] if isinstance(key, int) and key < len(arguments) else None
        if inspect.isclass(origin) and issubclass(origin, Mapping if isinstance(parent, dict) else Collection):
            return arguments[-1 if isinstance(parent, dict) else 0]
    return None
