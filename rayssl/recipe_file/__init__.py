"""From a YAML file and dotted overrides to a validated config, with every mistake in one message.

    text --reading--> YAML nodes --reading--> data + the origin of each key --overrides--> data
         --pydantic--> a config, or --messages--> one ConfigError with a line a mistake: file, line, dotted key,
         rule, value, help

    a config --writing--> YAML that loads back equal, flat dotted keys, a JSON schema

Scalars follow the YAML 1.2 core schema, so `1e-4` is a number, `010` is ten and `no` is text. Types are checked as
strictly as JSON's: "3" is not a number, `true` is not 1 and 3.0 is not a whole number; lists serve for tuples and text
for paths. Unions of sections are told apart by their key `name`. A section whose class only another part of the recipe
knows (a level, by its task) is declared as `Any` and checked by `parse_section` and `parse_each`.
"""

from rayssl.recipe_file.loading import load_recipe, load_recipe_text
from rayssl.recipe_file.sections import parse_each, parse_section
from rayssl.recipe_file.wording import did_you_mean
from rayssl.recipe_file.writing import flatten, to_plain, to_yaml, write_json_schema

__all__ = [
    "did_you_mean",
    "flatten",
    "load_recipe",
    "load_recipe_text",
    "parse_each",
    "parse_section",
    "to_plain",
    "to_yaml",
    "write_json_schema",
]
