"""Odd JSON and YAML gives one short reason; what is written is valid JSON."""

import json
import math

import pytest

from tuneport.json_yaml import parse_json, parse_yaml, to_json

DEEP = "[" * 100_000 + "]" * 100_000
YAMLS = [
    DEEP,
    "a: [",
    "!!python/object/apply:os.system [x]",
    "2001-99-99",
    "!!bool maybe",
    "!!int x",
    "!!float x",
    "!!timestamp x",
    "? [a]\n: b",
    "\x00",
    "*nowhere",
    "!!binary é",
]


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "{", "", "\ufeff{}", "[1] x", "9" * 5000])
def test_json_that_is_none_gives_one_short_reason(text):
    with pytest.raises(ValueError, match=r".") as e:
        parse_json(text)
    assert 0 < len(str(e.value)) <= 301 and "\n" not in str(e.value)


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_yaml_that_is_none_gives_one_short_reason(text):
    with pytest.raises(ValueError, match=r".") as e:
        parse_yaml(text)
    assert 0 < len(str(e.value)) <= 301 and "\n" not in str(e.value)


def test_what_is_no_number_is_written_as_null():
    value = {"a": math.nan, "b": [math.inf, 1.5, {"c": -math.inf}], "d": (1, "é")}
    found = json.loads(to_json(value), parse_constant=pytest.fail)
    assert found == {
        "a": None,
        "b": [None, 1.5, {"c": None}],
        "d": [1, "é"],
    }
