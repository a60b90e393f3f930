"""What a turn says is sought in a text as words, in each way in which templates write it."""

from typing import Any

import pytest

from tuneport.encoding.rendered import in_python_notation, occurrences, stands, unwritten


@pytest.mark.parametrize(
    ("word", "text", "times"),
    [
        ("b", "tool_b b_c ab b", 1),
        ("b", '{"b": 1, "b": 2}', 2),
        ("im_end", "<|im_end|>", 1),
        ("end", "<|im_end|>", 0),
        ("<x>", "a<x>b<x>", 2),
        ("1", "10 21 1", 1),
        ("é", "né é", 1),
        ("x", "", 0),
    ],
)
def test_a_word_is_not_part_of_a_longer_one(word: str, text: str, times: int) -> None:
    assert occurrences(word, text) == times


@pytest.mark.parametrize("text", ["a “b”\n c", '"a “b”\\n c"', "a \\u201cb\\u201d\\n c", "a “b” c", "xa “b”\n c\n"])
def test_a_text_stands_as_it_is_as_json_or_with_other_white_space(text: str) -> None:
    assert stands(" a “b”\n c ", text)
    assert not stands("a b c", text)


def turn(**arguments: Any) -> dict[str, Any]:
    return {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"a": {"b": [1, True, None, "x\ny"]}}, "f <a><b>1</b><b>true</b><b>null</b><b>x\ny</b></a>"),
        ({"a": {"b": [1, True, None, "x\ny"]}}, 'f(a={"b": [1, True, None, "x\\ny"]})'),
        ({"a": ""}, 'f {"a": ""}'),
        ({"a": "é"}, 'f {"a": "\\u00e9"}'),
        ({}, "f {}"),
    ],
)
def test_arguments_are_found_in_json_and_in_tags(arguments: dict[str, Any], text: str) -> None:
    assert unwritten(turn(**arguments), text) is None


@pytest.mark.parametrize(
    ("arguments", "text", "lost"),
    [
        ({"a": 1}, "{'a': 1}", "the tool call 'f'"),
        ({"a": 1, "b": None}, 'f {"a": 1}', "the argument 'b' of the tool call 'f'"),
        ({"a": None}, 'f {"a": ""}', "the value None of the argument 'a' of the tool call 'f'"),
        ({"a": ["x", "y"]}, 'f {"a": ["x"]}', "the value 'y' of the argument 'a' of the tool call 'f'"),
        ({"a": 12}, 'f {"a": 1}', "the value 12 of the argument 'a' of the tool call 'f'"),
    ],
)
def test_the_first_part_that_is_missing_is_named(arguments: dict[str, Any], text: str, lost: str) -> None:
    assert unwritten(turn(**arguments), text) == lost


def test_python_notation_is_told_from_json() -> None:
    assert in_python_notation(turn(a={"b": True}), "f {'b': True}")
    assert not in_python_notation(turn(a=[1, 2]), "f [1, 2]")
    assert not in_python_notation(turn(a={"b": True}), 'f {"b": true}')
