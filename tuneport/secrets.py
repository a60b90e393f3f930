"""What must not be shown, saved or compiled: secrets in addresses, and what variables that hold credentials hold.

Told by structure, not by a list of secrets: of an address everything that can be one is masked.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

MASK = "***"
SHORTEST = 8  # characters of a variable's value: a shorter one may stand in any text
# Parameters of a query that say what to read, and never by which right.
HARMLESS = frozenset(
    {"api-version", "cache", "download", "format", "mode", "revision", "sslmode", "timeout", "version", "versionid"}
)
# Schemes in which a name stands before an '@', and none of a user: a model, a container of Azure's, an image.
NAMES = frozenset({"abfs", "abfss", "hf", "models", "oci", "wasb", "wasbs"})
CREDENTIAL = re.compile(r"(?i)(token|password|_key|cookie)$|secret")

# An address up to its host; a `Path` makes one slash of two.
_START = re.compile(r"(?<![A-Za-z0-9])([A-Za-z][A-Za-z0-9+.-]+):/+")
_AUTHORITY = re.compile(r"[^\s/?#]*")
_PORT = re.compile(r":\d*\W*$")
_USERINFO = re.compile(r"\S{0,1000}@|[^\n@]{0,200}@")  # a password may have a '/', a '?', a '#' or a blank
_WORD = re.compile(r"(?:[^\s'\"<>`]|['\"<>`](?=[A-Za-z0-9]))+")  # a quote ends an address unless it goes on behind it
_MARK = re.compile(r"[?#]")
_SEPARATOR = re.compile(r"(&amp;|\\u0026|[&#?])")  # of the parts of a query and a fragment; as HTML and JSON write it


def masked(text: str, known: Iterable[str] = ()) -> str:
    """A text whose addresses have no secrets: `***` stands for the user and password of each, and for the value of
    each parameter of its query or fragment that is not known to be harmless.

    ``known``: texts that are masked wherever they occur; see `credentials`.
    """
    for secret in known:
        text = text.replace(secret, MASK)
    if ":/" not in text:
        return text
    parts, at = [], 0
    while start := _START.search(text, at):
        shown, host = _userinfo(text, start)
        parts += [text[at : start.end()], shown]
        at = host
    return _WORD.sub(lambda word: _without_values(word[0]), "".join([*parts, text[at:]]))


def _userinfo(text: str, scheme: re.Match[str]) -> tuple[str, int]:
    """What is shown of an address's user and password, and where its host begins."""
    begin = scheme.end()
    authority = t.cast("re.Match[str]", _AUTHORITY.match(text, begin))[0]
    user, at, _ = authority.rpartition("@")
    if scheme[1].lower() in NAMES and ":" not in user:
        return "", begin
    if at and ":" not in user:
        return f"{MASK}@", begin + len(user) + 1
    if not at and (":" not in authority or authority.startswith("[") or _PORT.search(authority)):
        return "", begin
    if odd := _USERINFO.match(text, begin):
        return f"{MASK}@", odd.end()
    return f"{authority.partition(':')[0]}:{MASK}", begin + len(authority)  # no port: a password cut off before its '@'


def _without_values(word: str) -> str:
    """An address without the values in its query and fragment; any other word as it is."""
    scheme = _START.search(word)
    mark = _MARK.search(word, scheme.end()) if scheme else None
    if scheme is None or mark is None:
        return word
    shown, before = [word[: mark.start()]], ""
    for part in _SEPARATOR.split(word[mark.start() :]):
        name, is_pair, value = part.partition("=")
        harmless = unquote(name).lower() in HARMLESS or _SEPARATOR.fullmatch(part)
        if is_pair and value and not harmless:
            shown.append(f"{name}={MASK}")
        elif part and not is_pair and not harmless and before != "#" and scheme[1].lower() in ("http", "https"):
            shown.append(MASK)
        else:
            shown.append(part)
        before = part
    return "".join(shown)


def masked_values(values: t.Any) -> t.Any:
    """The same for every text in mappings and lists."""
    if isinstance(values, str):
        return masked(values)
    if isinstance(values, Mapping):
        return {name: masked_values(value) for name, value in values.items()}
    return [masked_values(value) for value in values] if isinstance(values, list | tuple) else values


def is_credential(name: str) -> bool:
    """Whether a variable of this name holds a token, a password or a key."""
    return CREDENTIAL.search(name) is not None


def credentials(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What variables that look like credentials hold, longest first; of a key of several lines, each line."""
    values = (value for name, value in environment.items() if is_credential(name))
    lines = {line.strip() for value in values for line in value.splitlines()}
    return tuple(sorted((line for line in lines if len(line) >= SHORTEST), key=lambda line: (-len(line), line)))
