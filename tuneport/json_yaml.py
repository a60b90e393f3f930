"""JSON and YAML: what a text holds, or one short reason why it holds none; what is written is always valid JSON."""

from __future__ import annotations

import json
import math
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.limits import MAX_JSON_BYTES, MAX_YAML_BYTES, MAX_YAML_VALUES, check_depth, read_bytes, size

if t.TYPE_CHECKING:
    from yaml.nodes import Node

LONGEST_REASON = 300  # characters


def parse_json(text: str | bytes) -> t.Any:
    """What a JSON text holds.

    Raises ValueError with one line that says why it is none, also where it is nested too deep.
    """
    try:
        check_depth(text)
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(_reason(e)) from None


def read_json(file: Path) -> t.Any:
    """What a JSON file of settings holds.

    Raises ValueError as `parse_json`, also where it is larger than `MAX_JSON_BYTES`, and OSError.
    """
    return parse_json(read_bytes(file, MAX_JSON_BYTES).decode("utf-8"))


def parse_yaml(text: str | bytes) -> t.Any:
    """What a YAML text holds, of plain types only.

    Raises ValueError as `parse_json`, also where it is too large, or stands for too much.
    """
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"has more than {size(MAX_YAML_BYTES)}")
    with yaml_errors():
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            check_aliases(root)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()


def read_yaml(file: Path) -> t.Any:
    """What a YAML file holds. Raises ValueError as `parse_yaml`, and OSError."""
    return parse_yaml(read_bytes(file, MAX_YAML_BYTES))


def check_aliases(root: Node | None) -> None:
    """Raise ValueError where a YAML document has more than `MAX_YAML_VALUES`, with those that its aliases repeat.

    A few lines of aliases of aliases stand for more values than can be counted.
    """
    counted: dict[int, int] = {}

    def count(node: Node) -> int:
        if id(node) not in counted:
            counted[id(node)] = MAX_YAML_VALUES + 1  # what stands within itself has no end
            parts = node.value if isinstance(node.value, list) else ()
            pairs = [part if isinstance(part, tuple) else (part,) for part in parts]
            counted[id(node)] = 1 + sum(count(part) for pair in pairs for part in pair)
        return counted[id(node)]

    if root is not None and count(root) > MAX_YAML_VALUES:
        raise ValueError(f"more than {MAX_YAML_VALUES:,} values, with those that aliases repeat")


class yaml_errors:  # noqa: N801 a context manager
    """Makes one ValueError of all that PyYAML raises for a text that is none, or whose values are none."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import yaml

        odd = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
        if isinstance(error, odd):
            raise ValueError(_reason(error)) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"


def to_json(value: t.Any, indent: int | None = None, **more: t.Any) -> str:
    """A value as JSON; a number that JSON cannot hold, such as nan, is null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False, **more)


def json_line(value: t.Any) -> str:
    """A value as a line of JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, is written as its escape."""
    return to_json(value).encode("utf-8", "backslashreplace").decode() + "\n"


def finite(value: t.Any) -> t.Any:
    """The value with null for each number that is not finite, such as a diverged model's scores."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
