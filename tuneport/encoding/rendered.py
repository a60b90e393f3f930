"""Whether a turn stands in what a chat template wrote of it: its content, its tool calls and their arguments."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Iterator, Mapping

Turn = Mapping[str, t.Any]


def unwritten(turn: Turn, text: str) -> str | None:
    """The first part of a turn that does not stand in a text, in words; None where all of it does."""
    if turn.get("content") and not stands(turn["content"], text):
        return "its content"
    functions = [call.get("function") or call for call in turn.get("tool_calls", ())]
    for function in functions:
        name, arguments = function["name"], function.get("arguments")
        if occurrences(name, text) < sum(other["name"] == name for other in functions):
            return f"the tool call {name!r:.60}"
        if isinstance(arguments, str):
            if arguments.strip() not in text:
                return f"the arguments of the tool call {name!r:.60}"
        elif json.dumps(arguments, ensure_ascii=False) not in text:
            for part, value in _parts(arguments, ""):
                if not _value_stands(value, text):
                    return f"{part} of the tool call {name!r:.60}"
    return None


def in_python_notation(turn: Turn, text: str) -> bool:
    """Whether a value among a turn's arguments is written as Python shows it, not as JSON."""
    for call in turn.get("tool_calls", ()):
        for value in _values((call.get("function") or call).get("arguments")):
            shown, written = str(value), json.dumps(value, ensure_ascii=False)
            if shown != written and occurrences(shown, text) and not occurrences(written, text):
                return True
    return False


def stands(said: str, text: str) -> bool:
    """Whether a text stands in another one, as it is, as JSON writes it or with other white space."""
    said = said.strip()
    if said in text:
        return True
    return any(form in text for form in _escaped(said)) or "".join(said.split()) in "".join(text.split())


def occurrences(word: str, text: str) -> int:
    """How often a word stands in a text, not as part of a longer one."""
    found, place = 0, text.find(word)
    while place >= 0:
        end = place + len(word)
        inside = word[:1].isalnum() and place > 0 and _is_letter(text[place - 1])
        found += not (inside or (word[-1:].isalnum() and _is_letter(text[end : end + 1])))
        place = text.find(word, max(end, place + 1))
    return found


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _escaped(said: str) -> Iterator[str]:
    yield json.dumps(said, ensure_ascii=False)[1:-1]
    yield json.dumps(said)[1:-1]


def _value_stands(value: t.Any, text: str) -> bool:
    if isinstance(value, str):
        said = value.strip()
        return not said or any(occurrences(form, text) for form in (said, *_escaped(said)))
    return any(occurrences(form, text) for form in (json.dumps(value), str(value)))


def _parts(value: t.Any, name: str) -> Iterator[tuple[str, t.Any]]:
    """Each key and each plain value of arguments, with what it is in words."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"the argument {key!r:.60}", key
            yield from _parts(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner, name)
    elif value is not None or name:
        yield f"the value {value!r:.60} of the argument {name!r:.60}", value


def _values(value: t.Any) -> Iterator[t.Any]:
    """Arguments and all values in them that Python and JSON write each its own way."""
    if value is None or isinstance(value, (bool, dict, list)):
        yield value
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
