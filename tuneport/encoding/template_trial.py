"""What a chat template writes, found by trying it: tool calls, in which shapes, and the tokens that end a turn."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from itertools import product

from tuneport.encoding.conversations import ANSWER, QUESTION, closed_at, special_ids
from tuneport.encoding.rendered import unwritten
from tuneport.serving.chat_template import ChatTemplate
from tuneport.serving.template_sandbox import TemplateLimit

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMES = ("first_function", "second_function")
ARGUMENTS = {"some_key": "some value", "other_key": True}
TEXT = '{"some_key": "some value", "other_key": true}'
CONTENTS = {"text": "Thinking aloud", "null": None, "empty": ""}
TOOLS = [{"type": "function", "function": {"name": "offered", "description": "Offered", "parameters": {}}}]
# After each assistant's turn of text comes the end of a text, in the template itself: whoever uses it writes the same.
CLOSING = (
    "{% set closed = namespace(turns=[]) %}{% for turn in messages %}"
    "{% if turn.role == 'assistant' and turn.content is string and turn.content and not turn.tool_calls %}"
    "{% set closed.turns = closed.turns + [dict(turn, content=turn.content + eos_token)] %}"
    "{% else %}{% set closed.turns = closed.turns + [turn] %}{% endif %}{% endfor %}"
    "{% set messages = closed.turns %}\n"
)


def end_of_calls(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token with which a turn of tool calls ends; None where it ends with none, or one that ends a call."""
    for names in (NAMES, NAMES[:1]):
        turn = _calling(template.fitting(("null", "function", "text")), names)
        try:
            text = template([QUESTION, turn], TOOLS).rstrip()
        except TemplateLimit:
            raise
        except ValueError:
            continue
        after = text[text.find(names[0]) :]
        ends = [(token, i) for token, i in special_ids(tokenizer).items() if after.endswith(token)]
        return next((i for token, i in ends if after.count(token) == 1), None)
    return None


def call_shapes(template: ChatTemplate) -> list[tuple[str, ...]]:
    """The shapes in which a template writes tool calls whole (see `ChatTemplate`); none where it writes no calls."""
    shapes = product(template.contents, template.forms, template.kinds)
    return [shape for shape in shapes if _writes(template, shape)]


def _writes(template: ChatTemplate, shape: tuple[str, ...]) -> bool:
    turn = _calling(shape, NAMES[:1])
    for tools in (None, TOOLS):
        try:
            text = template([QUESTION, turn], tools)
        except TemplateLimit:
            raise
        except ValueError:
            continue
        # Python's notation of an object is no JSON, and of null no text.
        strange = str(ARGUMENTS) in text or (turn["content"] is None and "None" in text)
        return not strange and unwritten(turn, text) is None
    return False


def _calling(shape: tuple[str, ...], names: tuple[str, ...]) -> dict[str, t.Any]:
    """A turn of the assistant with tool calls in a shape; some templates ask for ids of 9 characters."""
    content, form, kind = shape
    calls: list[Mapping[str, t.Any]] = []
    for number, name in enumerate(names):
        function = {"name": name, "arguments": TEXT if kind == "text" else ARGUMENTS}
        around = {"id": f"call0000{number}"}
        calls.append({**around, "type": "function", "function": function} if form == "function" else around | function)
    return {"role": "assistant", "content": CONTENTS[content], "tool_calls": calls}


def closed(source: str) -> str:
    """A template that writes the tokenizer's eos_token after what the assistant says, which ``source`` does not."""
    return CLOSING + source


def learns_end(template: ChatTemplate, end: str, tokenizer: Tokenizer) -> bool:
    """Whether a template's own {% generation %} mark, if it has one, holds the token that ends the answer, or is
    followed by it."""
    if not template.marks_answers:
        return True
    text, spans = template.answers(template.shown([QUESTION, ANSWER]))
    special = tuple(special_ids(tokenizer))
    return all(end in text[a:b] or closed_at(text, b, [end], special) is not None for a, b in spans)
