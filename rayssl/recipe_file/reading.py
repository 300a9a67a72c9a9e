"""From YAML text to nodes, and from nodes to plain data.

Scalars are those of YAML 1.2's core schema, without the parts of the language that could hurt or surprise.
"""

import re
from typing import Any

import yaml

from rayssl.recipe_file.draft import Override, Recipe
from rayssl.recipe_file.wording import Keys

MAX_DEPTH = 32
"""Sections and lists inside one another, and parts of a dotted key."""
_MAX_DIGITS = 100

CORE_SCHEMA = {
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"null|Null|NULL|~|",
}
"""Patterns of plain scalars that aren't text, from the YAML 1.2.2 specification, section 10.3.2."""

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


class RecipeSyntaxError(ValueError):
    """What the YAML breaks, in plain words, with the place counted from 1."""

    def __init__(self, rule: str, *, line: int, column: int) -> None:
        super().__init__(rule)
        self.line, self.column = line, column


def compose(text: str) -> yaml.Node | None:
    """Parse YAML text; None if it is empty.

    Raises:
        RecipeSyntaxError: If it is no YAML, or uses what is refused here.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        start = text.rfind("\n", 0, error.position) + 1
        line, column = text.count("\n", 0, start) + 1, error.position - start + 1
        raise RecipeSyntaxError("control characters can't stand here", line=line, column=column) from None
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
    raise RecipeSyntaxError(rule, line=mark.line + 1, column=mark.column + 1)


def construct(node: yaml.Node, keys: Keys, recipe: Recipe, override: Override | None = None) -> Any:
    """Turn a YAML node into plain data and tell the recipe where each key came from."""
    if isinstance(node, yaml.ScalarNode):
        return _construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            recipe.origins[*keys, index] = override or _line(item)
        return [construct(item, (*keys, index), recipe, override) for index, item in enumerate(node.value)]
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
            section[key] = construct(value_node, inner, recipe, override)
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
            if not isinstance(node, yaml.ScalarNode) or node.tag.endswith(":str") or len(node.value) <= _MAX_DIGITS:
                return node
            rule = f"a number must have at most {_MAX_DIGITS} digits"
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


for _kind, _pattern in CORE_SCHEMA.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
