"""Check a section whose class only another part of the recipe knows, such as a task's level."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from rayssl.recipe_file.messages import in_plain_words
from rayssl.recipe_file.wording import Keys
from rayssl.recipe_file.writing import to_plain
from rayssl.schema import Config

M = TypeVar("M", bound=Config)
Parsed = TypeVar("Parsed")


def parse_section(model: type[M], section: object) -> M:
    """Check a section against its class, as strictly as the rest of a recipe.

    Args:
        model: The section's class.
        section: Plain data from a recipe, or a config.

    Raises:
        ValidationError: With all mistakes in the words of `load_recipe`, so that it may pass through a validator.
    """
    plain = to_plain(section)
    try:
        return model.model_validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        rules = in_plain_words(error, model, plain)
        raise _validation_error(model.__name__, [(keys, rule, section) for keys, rule in rules]) from None


def parse_each(parse: Callable[[object], Parsed], sections: Mapping[Keys, object]) -> list[Parsed]:
    """Parse several sections inside one field, by `parse_section` or alike.

    Args:
        parse: Makes a config of a section.
        sections: Each section under its place in the field, such as (1, "level").

    Returns:
        What was made of them, in their order.

    Raises:
        ValidationError: With the mistakes of all sections, each at its place in the field.
    """
    parsed: list[Parsed] = []
    mistakes: list[tuple[Keys, str, Any]] = []
    for keys, section in sections.items():
        try:
            parsed.append(parse(section))
        except ValidationError as error:
            mistakes += [((*keys, *detail["loc"]), detail["msg"], detail["input"]) for detail in error.errors()]
    if mistakes:
        raise _validation_error("sections", mistakes)
    return parsed


def _validation_error(title: str, mistakes: list[tuple[Keys, str, Any]]) -> ValidationError:
    details = [
        InitErrorDetails(type=PydanticCustomError("section", "{rule}", {"rule": rule}), loc=keys, input=section)
        for keys, rule, section in mistakes
    ]
    return ValidationError.from_exception_data(title, details)
