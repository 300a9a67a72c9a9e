"""Small pieces of every message: dotted keys, values as a recipe writes them, suggestions."""

import difflib
import json
from collections.abc import Iterable
from typing import Any

from rayssl.addresses import sentence_without_secrets

Keys = tuple[str | int, ...]
"""The way from the whole recipe to one place in it: keys of sections and indices of lists."""

_MAX_SHOWN = 60


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Give " Did you mean 'x'?" for the candidate most like the word, in upper or lower case; "" if none is."""
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f" Did you mean '{by_lower_case[matches[0]]}'?" if matches else ""


def dotted(keys: Keys) -> str:
    """Write a place as a dotted key."""
    return ".".join(shorten(str(key)) for key in keys)


def show(value: Any) -> str:
    """Write a value as YAML does, in at most 60 visible characters."""
    return shorten(_render(value))


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


def shorten(text: str) -> str:
    """Mask passwords in addresses, escape what can't be seen, and cut what is longer than 60 characters."""
    shown = sentence_without_secrets(text)
    visible = "".join(character if character.isprintable() else repr(character)[1:-1] for character in shown)
    return visible if len(visible) <= _MAX_SHOWN else f"{visible[: _MAX_SHOWN - 3]}..."
