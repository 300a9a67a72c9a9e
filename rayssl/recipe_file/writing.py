"""From a config back to text: YAML that loads back equal, flat keys for logs, the JSON schema for editors."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from rayssl.recipe_file.reading import CORE_SCHEMA
from rayssl.schema import Config


def to_yaml(config: Config) -> str:
    """Write a config as YAML that loads back to an equal config, every default spelled out."""
    return yaml.dump(to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(config: Config) -> dict[str, object]:
    """Give each value under its dotted key, the key that an override uses; lists of scalars stay lists."""
    return dict(_leaves(to_plain(config), ""))


def write_json_schema(model: type[Config], path: Path) -> None:
    """Write the JSON schema of a config class, with which editors complete and check recipes.

    Raises:
        OSError: If the file can't be written.
    """
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    path.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


def to_plain(value: Any) -> Any:
    """Turn configs, at any depth of lists and sections, into what YAML and JSON can write."""
    # round_trip leaves out computed fields, which would be unknown keys on the way back.
    return to_jsonable_python(value, by_alias=True, round_trip=True)


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        items: Iterable[tuple[object, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = enumerate(value)
    else:
        yield prefix, value
        return
    for key, item in items:
        yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))


class _Dumper(yaml.SafeDumper):
    """Writes scalars that YAML 1.1 and 1.2 read alike: text that is a number to either is put in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a shared value twice, since aliases are refused on the way in."""
        return True


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    """Write 1.0e-4, because YAML 1.1 takes a number without a point, or without the exponent's sign, for text."""
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e16:
        return dumper.represent_float(value)
    number = Decimal(repr(value)).normalize()
    first, *others = map(str, number.as_tuple().digits)
    text = f"{'-' if value < 0 else ''}{first}.{''.join(others) or '0'}e{number.adjusted():+d}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escape what can't be seen, because PyYAML doubles unusual line breaks in plain and single quotes."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_flat)


for _kind, _pattern in CORE_SCHEMA.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
