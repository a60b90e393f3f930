"""Conversations as the turns that chat templates render."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

from tuneport.serving.chat_template import ChatTemplate, Turns

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
QUESTION = {"role": "user", "content": "Question"}
ANSWER = {"role": "assistant", "content": "Answer"}
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(tokenizer_config: Mapping[str, t.Any]) -> dict[str, str]:
    """The special tokens by the names that templates know."""
    found = {name: tokenizer_config.get(name) for name in TOKENS}
    texts = {name: v.get("content") if isinstance(v, Mapping) else v for name, v in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token with which an assistant's turn ends; None where it ends with none.

    Raises ValueError (problem, reason) where the template renders no conversation, or does not write its answer.
    """
    asked = template([QUESTION], add_generation_prompt=True)
    text = template([QUESTION, ANSWER])
    answer = text[len(asked) :] if text.startswith(asked) else text
    if "Answer" not in answer:
        raise ValueError("a chat template that does not write what the assistant says", f"{text!r:.60}")
    after = answer.rpartition("Answer")[2]
    found = [(after.find(token), i) for token, i in special_ids(tokenizer).items() if token in after]
    return min(found)[1] if found else None


def closed_at(text: str, place: int, ends: Sequence[str], special: Sequence[str]) -> int | None:
    """Where one of the ``ends`` that follows a place ends; None where more than special tokens stand before it."""
    while True:
        place = len(text) - len(text[place:].lstrip())
        if end := next((token for token in ends if text.startswith(token, place)), None):
            return place + len(end)
        token = next((token for token in special if text.startswith(token, place)), None)
        if token is None:
            return None
        place += len(token)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens of a tokenizer, as they are written, with their ids."""
    return {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def turns_of(values: Mapping[str, t.Any], shape: str, key: str) -> t.Any:
    """A row's turns, in OpenAI's form but not yet checked; None where a column holds null.

    ``shape``: messages (in column ``key``), sharegpt, alpaca or
    prompt_completion. Raises ValueError (problem, what was found).
    """
    if shape == "messages":
        return values.get(key)
    if shape == "sharegpt":
        return _of_sharegpt(values)
    if shape == "alpaca":
        asked, extra, said = (values.get(name) for name in ("instruction", "input", "output"))
        asked = f"{asked}\n\n{extra}" if isinstance(extra, str) and extra.strip() else asked
    else:
        asked, said = values.get("prompt"), values.get("completion")
    if asked is None or said is None:
        return None
    turns = [*_side(asked, "user", learnt=False), *_side(said, "assistant", learnt=True)]
    return [*_system(values), *_history(values), *turns] if shape == "alpaca" else turns


def passed_over(values: Mapping[str, t.Any], shape: str, turns: t.Any) -> list[str]:
    """The columns that other data of the kind has a use for, and which are of no use in this row."""
    if shape == "sharegpt" and _system(values):
        first = turns[0] if turns else None
        if isinstance(first, dict) and first.get("content") != _system(values)[0]["content"]:
            return ["the column 'system' is not used where a conversation has a system turn of its own"]
    used = {"sharegpt": ("system",), "alpaca": ("system", "history")}.get(shape, ())
    return [
        f"the column {name!r} is not used with chat_format={shape}"
        for name in ("system", "history")
        if name not in used and values.get(name)
    ]


def _of_sharegpt(values: Mapping[str, t.Any]) -> t.Any:
    value = values.get("conversations")
    if value is None:
        return None
    found = Turns().parsed(value, "a list of turns")
    if not isinstance(found, list) or not all(isinstance(turn, dict) and "from" in turn for turn in found):
        raise ValueError('no list of turns; expected [{"from": "human", "value": "..."}, ...]', repr(value)[:60])
    turns = [
        {
            "role": SHAREGPT_ROLES.get(str(turn["from"]), turn["from"]),
            "content": turn.get("value"),
            **{k: v for k, v in turn.items() if k not in ("from", "value")},
        }
        for turn in found
    ]
    return turns if turns and turns[0]["role"] == "system" else [*_system(values), *turns]


def _system(values: Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    said = values.get("system")
    if said is None or said == "":
        return []
    if not isinstance(said, str):
        raise ValueError("column 'system' holds no text; expected text", repr(said)[:60])
    return [{"role": "system", "content": said}] if said.strip() else []


def _history(values: Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Alpaca's earlier turns, which are learnt, too, as LLaMA-Factory does."""
    value = values.get("history")
    if value is None or value == "":
        return []
    pairs = Turns().parsed(value, "a list of [question, answer]")
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair) for pair in pairs
    ):
        raise ValueError("column 'history' holds no list of [question, answer]", repr(value)[:60])
    return [
        {"role": role, "content": said}
        for pair in pairs
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def _side(value: t.Any, role: str, learnt: bool) -> list[dict[str, t.Any]]:
    """A prompt or a completion, which may be turns themselves; of a prompt's turns none is learnt."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = Turns().parsed(value, "text or a list of turns")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"a {'completion' if learnt else 'prompt'} that is neither text nor turns", repr(value)[:60])
    return [turn if learnt or turn.get("role") != "assistant" else {**turn, "weight": 0} for turn in turns]
