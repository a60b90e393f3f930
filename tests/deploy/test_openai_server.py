"""What of OpenAI's requests the chat server takes, and what it says in their words."""

from typing import Any

import pytest

from tuneport.deploy.openai_server import completion, parameters

KNOWN = ("temperature", "top_p", "max_new_tokens")


@pytest.mark.parametrize(
    "values",
    [
        {"n": 2},
        {"stop": ["a"]},
        {"seed": 0},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required", "tools": [{}]},
        {"tool_choice": "none", "tools": [{}]},
        {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"parallel_tool_calls": False},
    ],
)
def test_what_would_change_nothing_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))}=.* is not supported; leave it out"):
        parameters(values, KNOWN)


def test_openai_s_defaults_ask_for_nothing() -> None:
    body = {
        "n": 1,
        "stop": None,
        "seed": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
    }
    assert parameters({**body, "tool_choice": "none", "max_tokens": 3}, KNOWN) == {"max_new_tokens": 3}
    assert parameters({**body, "tool_choice": "auto", "tools": [{}]}, KNOWN) == {}


def test_an_answer_says_why_it_ended_and_what_it_took() -> None:
    answer = {"content": "red", "prompt_tokens": 7, "completion_tokens": 3, "finish_reason": "length"}
    found = completion("answers", answer)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
