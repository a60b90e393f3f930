"""Conversations as token ids with labels on the assistant's turns, many at once."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

import numpy as np

from tuneport.encoding.completions import EncodedRows
from tuneport.encoding.conversations import special_ids
from tuneport.encoding.located import Locate, Spans
from tuneport.encoding.token_ids import TokenIds
from tuneport.labels import IGNORED
from tuneport.serving.chat_template import ChatTemplate

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer


class ConversationEncoder:
    """Conversations as token ids, with labels on what the assistant says: each of its turns, or the ``last`` one.

    A turn of ``weight`` 0 has no labels, nor has white space after the special token that ends a turn. ``located``
    finds the ids that ``tokenizer`` finds.
    """

    def __init__(
        self, tokenizer: Tokenizer, located: Locate, template: ChatTemplate, *, max_seq_length: int, last: bool
    ) -> None:
        tokenizer.no_truncation()
        self.located, self.template, self.max_seq_length, self.last = located, template, max_seq_length, last
        self.special = tuple(special_ids(tokenizer))

    def __call__(self, conversations: Sequence[tuple[str, Spans]]) -> EncodedRows:
        """Encode what `spans` found of conversations; what is too long is cut at its end."""
        ids, learnt = self.located([text for text, _ in conversations], [spans for _, spans in conversations])
        kept, learnt = ids.cut(self.max_seq_length), learnt.cut(self.max_seq_length)
        labelled = (learnt.values == 1) & (kept.places > 0)  # nothing stands before the first token to predict it from
        labels = np.where(labelled, kept.values, np.int32(IGNORED))
        return EncodedRows(kept, TokenIds(labels, kept.lengths), ids.lengths > self.max_seq_length)

    def spans(self, turns: Sequence[Mapping[str, t.Any]], tools: t.Any = None) -> tuple[str, Spans]:
        """Return the text up to the last answer to learn, and where in it those answers stand.

        Raises ValueError (problem, what was found).
        """
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        learnt = [i for i in (answers[-1:] if self.last else answers) if turns[i].get("weight", 1)]
        turns = turns[: learnt[-1] + 1]
        answers = [i for i in answers if i < len(turns)]
        if self.template.marks_answers:
            text, spans = self.template.answers(turns, tools)
            if len(spans) != len(answers):
                raise ValueError(
                    "turns for which the chat template marks another number of {% generation %} parts",
                    f"{len(spans)} parts, {len(answers)} assistant turns",
                )
            spans = [span for i, span in zip(answers, spans, strict=True) if i in learnt]
        else:
            text = self.template(turns, tools)
            spans = [self._span(turns, i, text, tools) for i in learnt]
        return text, [(start, self._end(text[start:end]) + start) for start, end in spans]

    def _span(self, turns: Sequence[Mapping[str, t.Any]], i: int, text: str, tools: t.Any) -> tuple[int, int]:
        """An answer stands between what is rendered to ask for it, and what is rendered with it."""
        asked = self.template(turns[:i], tools, add_generation_prompt=True)
        answered = text if i == len(turns) - 1 else self.template(turns[: i + 1], tools)
        if not answered.startswith(asked):
            raise ValueError(
                "turns that the chat template writes otherwise than it asks for them, so that the answer's begin is "
                "not known; expected a template that marks answers with {% generation %}",
                f"turn {i + 1}",
            )
        if not text.startswith(answered):
            raise ValueError(
                "earlier turns that the chat template changes when later ones follow, so that they are never asked for "
                "as they stand; expected loss_on=last, or a template that marks answers with {% generation %}",
                f"turn {i + 1}",
            )
        return len(asked), len(answered)

    def _end(self, answer: str) -> int:
        kept = answer.rstrip()
        return len(kept) if kept.endswith(self.special) else len(answer)
