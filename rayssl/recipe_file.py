"""From a YAML file and dotted overrides to a validated config, with every mistake in one message.

    text --_compose--> YAML nodes --_construct--> data + the origin of each key --_apply_override--> data
         --pydantic--> a config, or one ConfigError with a line a mistake: file, line, dotted key, rule, value, help

Scalars follow the YAML 1.2 core schema, so `1e-4` is a number, `010` is ten and `no` is text. Types are checked as
strictly as JSON's: "3" is not a number, `true` is not 1 and 3.0 is not a whole number; lists serve for tuples and text
for paths. Unions of sections are told apart by their key `name`.
"""

import difflib
import functools
import inspect
import json
import math
import operator
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rayssl.errors import ConfigError
from rayssl.schema import Config

__all__ = ["did_you_mean", "flatten", "load_recipe", "load_recipe_text", "to_yaml", "write_json_schema"]

M = TypeVar("M", bound=Config)
Keys = tuple[str | int, ...]

TAG = "name"
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_DIGITS = 100
MAX_SHOWN = 60
MAX_KEYS_LISTED = 12


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
    """Read a recipe from YAML text, applies overrides and validates the result.

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
    notes = _apply_overrides(recipe, model, overrides)
    try:
        # Through JSON because strict JSON refuses "3" for 3 and true for 1, yet takes lists for tuples, text for paths.
        config = model.model_validate_json(json.dumps(recipe.data), strict=True)
    except ValidationError as error:
        for keys, rule in _in_plain_words(error, model, recipe.data):
            recipe.add_mistake(*recipe.at_named_key(keys, rule))
    if recipe.mistakes:
        lines = dict.fromkeys(mistake.text for mistake in sorted(recipe.mistakes, key=lambda mistake: mistake.rank))
        heading = f"{source}: {len(lines)} mistake{'s' if len(lines) > 1 else ''}"
        raise ConfigError("\n".join([heading, *lines]))
    return config, notes


def to_yaml(config: Config) -> str:
    """Write a config as YAML that loads back to an equal config, every default spelled out."""
    return yaml.dump(_to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(config: Config) -> dict[str, object]:
    """Give each value under its dotted key, the key that an override uses; lists of scalars stay lists."""
    return dict(_leaves(_to_plain(config), ""))


def write_json_schema(model: type[Config], path: Path) -> None:
    """Write the JSON schema of a config class, with which editors complete and check recipes.

    Raises:
        OSError: If the file can't be written.
    """
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    path.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Give " Did you mean 'x'?" for the candidate most like the word, in upper or lower case; "" if none is."""
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f" Did you mean '{by_lower_case[matches[0]]}'?" if matches else ""


def _to_plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # round_trip leaves out computed fields, which would be unknown keys on the way back.
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return {key: _to_plain(item) for key, item in value.items()} if isinstance(value, dict) else value


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


# What is being built: the data, where each key came from, and what is wrong.


@dataclass(frozen=True)
class _Override:
    """One `key=value` text in parts; `rank` is its place among the overrides."""

    rank: int
    text: str
    segments: tuple[str, ...]
    node: yaml.Node | None


class _Mistake(NamedTuple):
    rank: tuple[int, int]
    """(0, line) in the file, line 0 for what isn't there; (1, place) among the overrides."""
    text: str


class _RefusedOverrideError(ValueError):
    """Why an override can't be parsed or applied."""


@dataclass
class _Recipe:
    source: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, int | _Override] = field(default_factory=dict)
    """The line, counted from 1, or the override that a key came from; what a default filled in has none."""
    mistakes: list[_Mistake] = field(default_factory=list)

    def origin_of(self, keys: Keys) -> int | _Override | None:
        """Find the key's own origin, or for a missing key the override that wrote the section around it."""
        if keys in self.origins or not keys:
            return self.origins.get(keys)
        around = self.origin_of(keys[:-1])
        return around if isinstance(around, _Override) else None

    def at_named_key(self, keys: Keys, rule: str) -> tuple[Keys, str, int | _Override | None]:
        """Move a rule such as "training.batch_size: must be ..." of a check over several keys to the key it names."""
        named, colon, rest = rule.partition(": ")
        for known, origin in self.origins.items() if colon and " " not in named else ():
            if known[: len(keys)] == keys and _dotted(known[len(keys) :]) == named:
                return known, rest, origin
        return keys, rule, self.origin_of(keys)

    def add_mistake(self, keys: Keys, rule: str, origin: int | _Override | None) -> None:
        """Add a mistake at a key; those without a line come first, those of overrides last."""
        text = f"{_dotted(keys)}: {rule}" if keys else rule
        if isinstance(origin, _Override):
            is_same_key = _dotted(keys) == _dotted(origin.segments)
            self.add_override_mistake(origin.rank, origin.text, rule if is_same_key else text)
        elif origin is None:
            self.mistakes.append(_Mistake((0, 0), f"{self.source}: {text}"))
        else:
            self.mistakes.append(_Mistake((0, origin), f"{self.source}:{origin}: {text}"))

    def add_override_mistake(self, rank: int, override: str, rule: str) -> None:
        """Add a mistake of an override."""
        self.mistakes.append(_Mistake((1, rank), f"override {_shorten(override)}: {rule}"))

    def forget_origins(self, keys: Keys) -> None:
        """Drop the origins of a key and of all inside it."""
        self.origins = {known: origin for known, origin in self.origins.items() if known[: len(keys)] != keys}


# From a file to data.


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: must be a YAML file, but is a folder")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: must be at most 1 MB. A recipe has a few kB: is this the right file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: must be UTF-8 text, got the byte 0x{content[error.start]:02x}") from None


def _parse_recipe(text: str, source: str) -> _Recipe:
    try:
        node = _compose(text)
    except _SyntaxError as error:
        raise ConfigError(f"{source}:{error.line}:{error.column}: {error}") from None
    recipe = _Recipe(source)
    data = None if node is None else _construct(node, (), recipe)
    if data is None:
        raise ConfigError(f"{source}: must have 'key: value' lines, but is empty")
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: must have 'key: value' lines at the top level, got {_show(data)}")
    recipe.data = data
    return recipe


def _construct(node: yaml.Node, keys: Keys, recipe: _Recipe, override: _Override | None = None) -> Any:
    """Turn a YAML node into plain data and tells the recipe where each key came from."""
    if isinstance(node, yaml.ScalarNode):
        return _construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            recipe.origins[*keys, index] = override or _line(item)
        return [_construct(item, (*keys, index), recipe, override) for index, item in enumerate(node.value)]
    section: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
        inner = (*keys, key)
        origin = override or _line(key_node)
        if not key:
            recipe.add_mistake(keys, "a key must be text", origin)
        elif key == "<<":
            recipe.add_mistake(inner, "merge keys are not supported. Write the keys out", origin)
        elif key in section:
            first = "" if override else f", first on line {recipe.origins[inner]}"
            recipe.add_mistake(inner, f"is given twice{first}", origin)
        else:
            recipe.origins[inner] = origin
            section[key] = _construct(value_node, inner, recipe, override)
    return section


def _construct_scalar(node: yaml.ScalarNode) -> str | float | bool | None:
    text: str = node.value
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


# YAML: the scalars of 1.2's core schema, without the parts that could hurt or surprise.

_CORE_SCHEMA = {
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"null|Null|NULL|~|",
}

_SYNTAX_RULES = {
    r"found character '\\t'": "a tab can't indent. Use spaces",
    r"found character ['\"](.)['\"] that cannot start": r"text can't start with \1. Put it in quotes",
    r"mapping values are not allowed": "a ':' can't stand here. Check the indentation, or put the text in quotes",
    r"could not find expected ':'": "expected ':' after the key",
    r"expected <block end>, but found '<scalar>'": "text can't stand here. Check the quotes and the indentation",
    r"expected <block end>, but found ':'": "expected a key before the ':'",
    r"expected <block end>": "expected the same indentation as the lines above",
    r"expected (',' or '[\]}]')": r"expected \1",
    r"found unexpected end of stream": "expected a closing quote",
    r"but found another document": "expected one document, but '---' starts another",
    r"expected the node content": "expected a value",
    r"found unknown escape character '(.)'": r"\\\1 means nothing in double quotes. Use single quotes",
}


class _SyntaxError(ValueError):
    """What the YAML breaks, in plain words, with the place counted from 1."""

    def __init__(self, rule: str, *, line: int, column: int) -> None:
        super().__init__(rule)
        self.line, self.column = line, column


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 scalars; refuses anchors (a small file could grow without bound), tags and deep nesting."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; what is refused is said as yaml says it, with a place."""
        event: Any = self.peek_event()
        rule = _refusal(event, self.depth)
        if not rule:
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":str") or len(node.value) <= MAX_DIGITS:
                return node
            rule = f"a number must have at most {MAX_DIGITS} digits"
        raise yaml.MarkedYAMLError(problem=rule, problem_mark=event.start_mark)


def _refusal(event: Any, depth: int) -> str:
    if event.anchor is not None:
        return "anchors and aliases (& and *) are not supported. Write the value out, or put the text in quotes"
    if event.tag is not None:
        return "tags (!) are not supported. Write the plain value, or put the text in quotes"
    if depth >= MAX_DEPTH:
        return f"sections and lists must be nested at most {MAX_DEPTH} deep"
    if isinstance(event, yaml.ScalarEvent) and re.search("[\ud800-\udfff]", event.value):
        return "\\uD800 to \\uDFFF are halves of characters. Use \\U and eight digits"
    return ""


class _Dumper(yaml.SafeDumper):
    """Writes scalars that YAML 1.1 and 1.2 read alike: text that is a number to either is put in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a shared value twice, since aliases are refused on the way in."""
        return True


for _kind, _pattern in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


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


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        start = text.rfind("\n", 0, error.position) + 1
        line, column = text.count("\n", 0, start) + 1, error.position - start + 1
        raise _SyntaxError("control characters can't stand here", line=line, column=column) from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or loader.get_mark()
        opening = error.context_mark if re.search("flow|scanning", error.context or "") else None
        problem = error.problem or "can't be parsed"
        found = (match.expand(words) for rule, words in _SYNTAX_RULES.items() if (match := re.search(rule, problem)))
        start_line = f" (it began on line {opening.line + 1})" if opening and opening.line < mark.line else ""
        rule = next(found, problem) + start_line
    except (ValueError, OverflowError):
        # PyYAML asks chr() for the character of "\UFFFFFFFF", which doesn't exist.
        mark, rule = loader.get_mark(), "a \\U escape must be at most \\U0010FFFF"
    raise _SyntaxError(rule, line=mark.line + 1, column=mark.column + 1)


# Overrides.


def _apply_overrides(recipe: _Recipe, model: type[BaseModel], texts: Sequence[str]) -> list[str]:
    overrides: list[_Override] = []
    notes: list[str] = []
    for rank, text in enumerate(texts):
        try:
            overrides.append(_parse_override(text, rank))
        except (_RefusedOverrideError, _SyntaxError) as error:
            recipe.add_override_mistake(rank, text, str(error))
    for override in _tags_first(overrides):
        try:
            notes += _apply_override(recipe, model, override)
        except _RefusedOverrideError as error:
            recipe.add_override_mistake(override.rank, override.text, str(error))
    return notes


def _parse_override(text: str, rank: int) -> _Override:
    key, equals, value = text.partition("=")
    segments = tuple(segment.strip() for segment in key.split("."))
    if not equals:
        raise _RefusedOverrideError("must be key=value, but has no '='")
    if not all(segments):
        raise _RefusedOverrideError("must have a key before the '=', such as data.limit, without empty parts")
    if len(segments) > MAX_DEPTH:
        raise _RefusedOverrideError(f"the key must have at most {MAX_DEPTH} parts, got {len(segments)}")
    return _Override(rank, text, segments, _compose(value))


def _tags_first(overrides: Iterable[_Override]) -> list[_Override]:
    """Move each tag before the keys beside it, so that a search may give them in any order."""
    ordered: list[_Override] = []
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


def _apply_override(recipe: _Recipe, model: type[BaseModel], override: _Override) -> list[str]:
    """Set one value in the recipe's data, and gives the notes about what that dropped."""
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
        annotation, section, keys = _child(annotation, section, key), section[key], (*keys, key)
    key = _key_in(section, last, keys)
    recipe.forget_origins((*keys, key))
    value = None if override.node is None else _construct(override.node, (*keys, key), recipe, override)
    notes = _change_tag(recipe, annotation, keys, section, value, override) if key == TAG else []
    section[key] = value
    recipe.origins[*keys, key] = override
    return notes


def _key_in(section: Any, segment: str, keys: Keys) -> str | int:
    if isinstance(section, dict):
        return segment
    if not isinstance(section, list):
        raise _RefusedOverrideError(f"{_dotted(keys)}: must be a section or a list, got {_show(section)}")
    if not section:
        raise _RefusedOverrideError(f"{_dotted(keys)}: is an empty list. Set the whole list")
    indices = {str(index): index for index in range(len(section))}
    if segment not in indices:
        last = len(section) - 1
        rule = (
            f"has {last + 1} items, so the index must be 0 to {last}" if last else "has 1 item, so the index must be 0"
        )
        raise _RefusedOverrideError(f"{_dotted(keys)}: {rule}, got {_shorten(segment)}")
    return indices[segment]


def _default_of(annotation: Any, section: Mapping[str, Any], key: str) -> Any:
    section_class = _section_class(annotation, section)
    info = _fields(section_class).get(key) if section_class else None
    if info is None or info.is_required() or info.default_factory_takes_validated_data:
        return None
    default = _to_plain(info.get_default(call_default_factory=True))
    return default if isinstance(default, dict | list | str | int | float) else None


def _change_tag(
    recipe: _Recipe, annotation: Any, keys: Keys, section: dict[str, Any], tag: Any, override: _Override
) -> list[str]:
    """Remove what only the old class has; a typo in the file stays, and stays a mistake.

    Of a default section (no origin) everything goes, because its values were chosen for the old class.
    """
    classes = _section_classes(annotation)
    new_class = next((each for each in classes if tag in _tags(each)), None)
    if len(classes) < 2 or new_class is None or section.get(TAG) == tag:
        return []
    known = {key for each in classes for key in _fields(each)}
    dropped = []
    for key in [key for key in section if key != TAG]:
        inner = (*keys, key)
        origin = recipe.origins.get(inner)
        if origin is None:
            del section[key]
        elif not isinstance(origin, _Override) and key in known - _fields(new_class).keys():
            del section[key]
            recipe.forget_origins(inner)
            dropped.append(_dotted(inner))
    if not dropped:
        return []
    old = section.get(TAG)
    reason = f"{old} only" if any(old in _tags(each) for each in classes) else f"not in {tag}"
    return [f"{_shorten(override.text)}: dropped {', '.join(dropped)} ({reason})"]


# Which class or type stands at a place: pydantic's annotations, walked beside the data.


def _members(annotation: Any) -> list[Any]:
    """List the alternatives of an annotation without None; one alternative if it isn't a union."""
    if hasattr(annotation, "__value__"):
        return _members(annotation.__value__)
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [] if annotation in (None, types.NoneType) else [annotation]


def _section_classes(annotation: Any) -> list[type[BaseModel]]:
    return [each for each in _members(annotation) if inspect.isclass(each) and issubclass(each, BaseModel)]


def _section_class(annotation: Any, section: Mapping[str, Any]) -> type[BaseModel] | None:
    classes = _section_classes(annotation)
    if len(classes) == 1:
        return classes[0]
    return next((each for each in classes if section.get(TAG) in _tags(each)), None)


def _tags(section_class: type[BaseModel]) -> tuple[Any, ...]:
    info = section_class.model_fields.get(TAG)
    return get_args(info.annotation) if info and get_origin(info.annotation) is Literal else ()


def _key(name: str, info: FieldInfo) -> str:
    return info.validation_alias if isinstance(info.validation_alias, str) else name


def _fields(section_class: type[BaseModel]) -> dict[str, FieldInfo]:
    fields = section_class.model_fields
    return {**fields, **{_key(name, info): info for name, info in fields.items()}}


def _child(annotation: Any, parent: Any, key: str | int) -> Any:
    """Give the annotation of a key or list item, None if it isn't known."""
    section_class = _section_class(annotation, parent) if isinstance(parent, dict) else None
    if section_class:
        info = _fields(section_class).get(str(key))
        return info.annotation if info else None
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if isinstance(parent, list) and origin is tuple and Ellipsis not in arguments:
            return arguments[key] if isinstance(key, int) and key < len(arguments) else None
        if inspect.isclass(origin) and issubclass(origin, Mapping if isinstance(parent, dict) else Collection):
            return arguments[-1 if isinstance(parent, dict) else 0]
    return None


# Pydantic's errors in plain words.

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


def _in_plain_words(error: ValidationError, model: type[BaseModel], data: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
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
            yield union, f"{rule}, got {_show(findings[0].detail['input'])}"


def _locate(model: type[BaseModel], data: Any, detail: Mapping[str, Any]) -> _Finding:
    """Follow pydantic's location through annotations and data, past the labels of union members in it."""
    annotation: Any = model
    around, parent, value = None, None, data
    keys: Keys = ()
    union = None
    for element in detail["loc"]:
        members = _members(annotation)
        classes = _section_classes(annotation)
        chosen = next((each for each in classes if element in _tags(each) or element == each.__name__), None)
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
            annotation = _child(annotation, value, element)
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
        lengths = (len(get_args(each)) for each in _members(finding.annotation) if get_origin(each) is tuple)
        return keys[:-1], f"must have {next(lengths, 'more')} items, got {_show(value)}"
    if kind == "missing":
        return keys, "is required"
    if kind == "extra_forbidden":
        return keys, _unknown_key(str(keys[-1]), _section_class(finding.annotation, finding.parent or {}))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return keys, _bad_tag(finding)
    requirement = _requirement(detail)
    if kind not in _REQUIREMENTS and not detail["msg"].startswith("Input should "):
        return keys, requirement
    return keys, _with_help(f"{requirement}, got {_show(value)}", _help(kind, value, requirement))


def _bad_tag(finding: _Finding) -> str:
    tags = [str(tag) for each in _section_classes(finding.annotation) for tag in _tags(each)]
    choices = f" There are: {', '.join(tags)}"
    if not _has_key(finding.parent, TAG):
        return f"is required.{choices}"
    tag = finding.parent[TAG]
    return f"unknown {_show(tag)}.{did_you_mean(str(tag), tags)}{choices}"


def _requirement(detail: Mapping[str, Any]) -> str:
    context = detail.get("ctx", {})
    if detail["type"] in ("value_error", "assertion_error"):
        message = str(context["error"]) if "error" in context else detail["msg"].removeprefix("Value error, ")
        return " ".join(message.split()) or "is not valid"
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
        is_number = any(re.fullmatch(_CORE_SCHEMA[each], value) for each in ("int", "float"))
        return " Remove the quotes" if is_number else ""
    if kind == "string_type" and isinstance(value, int | float):
        return " Put it in quotes"
    if kind in ("literal_error", "enum"):
        return did_you_mean(str(value), re.findall(r"'([^']*)'", requirement))
    return ""


def _unknown_key(key: str, section_class: type[BaseModel] | None) -> str:
    if section_class is None:
        return "unknown key"
    keys = [_key(name, info) for name, info in section_class.model_fields.items()]
    listing = f" It can be: {', '.join(keys)}" if 0 < len(keys) <= MAX_KEYS_LISTED else ""
    nesting = " Nest it: dots don't open sections in a file" if "." in key else ""
    return _with_help("unknown key", did_you_mean(key, keys), nesting or listing)


def _with_help(rule: str, *helps: str) -> str:
    return f"{rule}.{''.join(helps)}" if any(helps) else rule


def _dotted(keys: Keys) -> str:
    return ".".join(_shorten(str(key)) for key in keys)


def _show(value: Any) -> str:
    return _shorten(_render(value))


def _render(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_render, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_render(item)}' for key, item in value.items())}}}"
    return str(value)


def _shorten(text: str) -> str:
    visible = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return visible if len(visible) <= MAX_SHOWN else f"{visible[: MAX_SHOWN - 3]}..."
