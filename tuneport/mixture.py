"""Several sources for one input: addresses with weights, row limits and column maps; one JSON text where it travels."""

from __future__ import annotations

import math
import re
import typing as t
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tuneport.address import Address
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.json_yaml import parse_json, to_json

KEYS = ("path", "weight", "max_rows", "columns")
EXAMPLE = '[{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]'

# Of a list, or of one source with what else is said of it; a glob may begin with a bracket, too: [ab].jsonl
_STRUCTURED = re.compile(r'\s*(\[\s*[\[{"\]]|\{\s*"(path|weight|max_rows|columns)")')


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture; without a ``weight`` all of its rows are taken."""

    address: Address
    weight: float | None = None
    max_rows: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def is_mixture(value: object) -> bool:
    """Whether a value is a list of sources, or one with what else is said of it, be it as JSON."""
    return isinstance(value, list | tuple | Mapping) or (isinstance(value, str) and bool(_STRUCTURED.match(value)))


def parts(text: str) -> tuple[Part, ...]:
    """The sources that a text of `canonical` names; of any other text the one address that it is."""
    if not is_mixture(text):
        return (Part(address=Address.of(text)),)
    return tuple(
        Part(address=Address.of(entry["path"]), **{key: entry[key] for key in KEYS[1:] if key in entry})
        for entry in parse_json(text)
    )


def canonical(option: str, value: t.Any, locate: Callable[[str], str] = str) -> str:
    """A list of sources, or its JSON, as the one JSON text that means it; ``locate`` says where each path leads.

    Raises `UserError` for what is no such list, for weights below 0, that sum to 0 or that only some have, and for a
    source that is named twice.
    """
    entries = _entries(option, value)
    found = [_entry(f"{option}[{number}]", entry, locate) for number, entry in enumerate(entries, 1)]
    _check_weights(option, found)
    paths = [entry["path"] for entry in found]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"{option}: names {excerpt(twice)} twice; expected each source once. Raise its weight instead.")
    return to_json(found)


def _entries(option: str, value: t.Any) -> list[t.Any]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as e:
            raise UserError(
                f"{option}={excerpt(value)}: is not JSON ({e}); expected a list, as in {EXAMPLE}."
            ) from None
    if not value:
        raise UserError(f"{option}=[]: names no source; expected at least one, as in {EXAMPLE}.")
    return [value] if isinstance(value, Mapping) else list(value)


def _entry(where: str, entry: t.Any, locate: Callable[[str], str]) -> dict[str, t.Any]:
    """One source, checked, with only what was given of it."""
    if isinstance(entry, str | Path):
        entry = {"path": str(entry)}
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: is {excerpt(entry)}; expected a path, or an object with {', '.join(KEYS)}.")
    for key in entry:
        if key not in KEYS:
            raise UserError(
                f"{where}: {excerpt(key)} is not known; expected {', '.join(KEYS)}.{did_you_mean(str(key), KEYS)}"
            )
    given = {key: value for key, value in entry.items() if value is not None}
    path = str(given["path"]) if isinstance(given.get("path"), str | Path) else ""
    if not path or "\0" in path:
        raise UserError(f"{where}.path={excerpt(given.get('path'))}: not valid; expected a path or an address.")
    _check(where, "weight", given, "a number of at least 0", _is_weight)
    _check(where, "max_rows", given, "a whole number of at least 1", _is_count)
    _check(where, "columns", given, 'an object of names, as in {"prompt": "question"}', _is_map)
    return {"path": locate(path), **{key: given[key] for key in KEYS[1:] if key in given}}


def _check(where: str, key: str, given: Mapping[str, t.Any], expected: str, valid: Callable[[t.Any], bool]) -> None:
    if key in given and not valid(given[key]):
        raise UserError(f"{where}.{key}={excerpt(given[key])}: not valid; expected {expected}.")


def _is_weight(value: t.Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_count(value: t.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_map(value: t.Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, str) and x for pair in value.items() for x in pair)


def _check_weights(option: str, entries: list[dict[str, t.Any]]) -> None:
    weights = [entry["weight"] for entry in entries if "weight" in entry]
    if not weights:
        return
    if len(weights) < len(entries):
        (without, *_) = [entry["path"] for entry in entries if "weight" not in entry]
        raise UserError(
            f"{option}: {excerpt(without)} has no weight, but others have one; expected one for each source, or none."
        )
    if not sum(weights):
        raise UserError(f"{option}: the weights sum to 0; expected at least one above 0.")
