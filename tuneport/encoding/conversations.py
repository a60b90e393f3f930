"""Conversations as the turns that chat templates render."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping

from tuneport.serving.chat_template import ChatTemplate, Turns

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(tokenizer_config: Mapping[str, t.Any]) -> dict[str, str]:
    """The special tokens by the names that templates know."""
    found = {name: tokenizer_config.get(name) for name in TOKENS}
    texts = {name: v.get("content") if isinstance(v, Mapping) else v for name, v in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token with which an assistant's turn ends; None where it ends with none.

    Raises ValueError (problem, reason) where the template renders no conversation.
    """
    question = [{"role": "user", "content": "Question"}]
    asked = template(question, add_generation_prompt=True)
    text = template([*question, {"role": "assistant", "content": "Answer"}])
    answer = text[len(asked) :] if text.startswith(asked) else text
    after = answer.rpartition("Answer")[2]
    found = [(after.find(token), i) for token, i in special_ids(tokenizer).items() if token in after]
    return min(found)[1] if found else None


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
        return _of_sharegpt(values.get("conversations"))
    if shape == "alpaca":
        asked, extra, said = (values.get(name) for name in ("instruction", "input", "output"))
        asked = f"{asked}\n\n{extra}" if isinstance(extra, str) and extra.strip() else asked
    else:
        asked, said = values.get("prompt"), values.get("completion")
    if asked is None or said is None:
        return None
    return [*_side(asked, "user", learnt=False), *_side(said, "assistant", learnt=True)]


def _of_sharegpt(value: t.Any) -> t.Any:
    if value is None:
        return None
    found = Turns().parsed(value, "a list of turns")
    if not isinstance(found, list) or not all(isinstance(turn, dict) and "from" in turn for turn in found):
        raise ValueError('no list of turns; expected [{"from": "human", "value": "..."}, ...]', repr(value)[:60])
    return [{"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn.get("value")} for turn in found]


def _side(value: t.Any, role: str, learnt: bool) -> list[dict[str, t.Any]]:
    """A prompt or a completion, which may be turns themselves; of a prompt's turns none is learnt."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = Turns().parsed(value, "text or a list of turns")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"a {'completion' if learnt else 'prompt'} that is neither text nor turns", repr(value)[:60])
    return [turn if learnt or turn.get("role") != "assistant" else {**turn, "weight": 0} for turn in turns]
