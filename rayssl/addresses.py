"""Addresses that may carry a password or a key: what of them may be printed, recorded or written to a file."""

import re
from urllib.parse import unquote

_MASK = "***"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
_PAIR = re.compile(r"(?<=[?&;#])([^=?&;#]+)=([^&;#]*)")
_ANYWHERE = ("secret", "passw", "passphrase", "token", "signature", "credential", "apikey", "accesskey", "accountkey")
"""What the name of a secret has in it."""
_AS_WORD = {"key", "keys", "pass", "pwd", "sas", "sig", "auth"}
"""What it has in it as a word of its own: there are too many harmless names with these letters."""
_QUERY = re.compile(r"\?[^=?&;#/@]+=")
_ODD_PORT = re.compile(r":(?!\d*$)[^\]]*$")
"""What stands where a port belongs and is none: the beginning of a password."""
_BY_AUTHORITY = {"http", "https", "s3", "gs", "gcs", "file"}
"""Schemes whose user-info ends before the first slash; a database's password may have slashes in it."""
_SHORTEST = 4
"""Letters that a secret must have to be looked for in a sentence, where it may stand without its address."""


def has_secret(address: str) -> bool:
    """Whether an address carries user-info, or something that looks like a password, a key or a token."""
    return without_secrets(address) != address


def without_secrets(address: str) -> str:
    """The address with *** in place of its user-info and of each value that looks like a secret.

    Names and values are looked at as they are and with their percent-encoding undone, so neither `pass%77ord=...` nor
    a whole address with a password as a value (`endpoint=http%3A%2F%2Fuser%3Aword%40host`) is passed on. What is no
    address comes back as it is, and so does the result of this function.
    """
    start, end = _user_info(address)
    if end > start:
        address = f"{address[:start]}{_MASK}{address[end:]}"
    return _PAIR.sub(_mask_value, address) if _SCHEME.match(address) else address


def sentence_without_secrets(text: str, *addresses: str) -> str:
    """A message with its addresses masked; the secrets of `addresses` are masked wherever they stand in it.

    Libraries put the address that they were given into their errors, whole or in parts.
    """
    for address in addresses:
        text = text.replace(address, without_secrets(address))
    text = _ADDRESS.sub(lambda found: without_secrets(found[0]), text)
    for secret in sorted({each for address in addresses for each in _secrets(address)}, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return text


def _user_info(address: str) -> tuple[int, int]:
    """Where it begins and ends, without its @; twice the same place if there is none.

    It ends at the last @, since people write passwords with an @, a slash or a # in them as they are.
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return 0, 0
    start = scheme.end()
    query = _QUERY.search(address, start)
    rest = address[start : query.start() if query else len(address)]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    is_database = bool(authority) and scheme[1].lower() not in _BY_AUTHORITY
    if "@" in rest and ("@" in authority or is_database or _ODD_PORT.search(authority)):
        return start, start + rest.rindex("@")
    return start, start + max(authority.find("%40"), 0)


def _mask_value(pair: re.Match[str]) -> str:
    name, value = pair[1], pair[2]
    return f"{name}={_MASK}" if value and (_names_secret(name) or _hides_secret(value)) else pair[0]


def _names_secret(name: str) -> bool:
    plain = _decoded(name)
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", plain)
    joined = "".join(words).lower()
    return any(part in joined for part in _ANYWHERE) or any(word.lower() in _AS_WORD for word in words)


def _hides_secret(value: str) -> bool:
    """Whether a value is itself an address, or a list of NAME=VALUE, that carries a secret."""
    plain = _decoded(value)
    start, end = _user_info(plain)
    return end > start or any(pair[2] and _names_secret(pair[1]) for pair in _PAIR.finditer(f"?{plain}"))


def _secrets(address: str) -> set[str]:
    """What must not be seen of an address, as it is written in it and as it is meant."""
    start, end = _user_info(address)
    user_info = address[start:end]
    found = {user_info, user_info.partition(":")[2] or user_info}
    found |= {pair[2] for pair in _PAIR.finditer(address) if _mask_value(pair) != pair[0]}
    found -= {_MASK}
    return {form for each in found for form in (each, _decoded(each)) if len(form) >= _SHORTEST}


def _decoded(text: str) -> str:
    """Without percent-encoding, of which there may be several layers."""
    while (plain := unquote(text)) != text:
        text = plain
    return text
