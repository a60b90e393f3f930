"""Conversations as token ids with labels on the assistant's turns, many at once."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tuneport.encoding.completions import EncodedRows
from tuneport.encoding.conversations import closed_at, special_ids
from tuneport.encoding.located import Locate, Spans
from tuneport.encoding.rendered import in_python_notation, stands, unwritten
from tuneport.encoding.seams import NEAR, Seams
from tuneport.encoding.token_ids import TokenIds
from tuneport.labels import IGNORED
from tuneport.serving.chat_template import ChatTemplate

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

Turns = Sequence[Mapping[str, t.Any]]
LINKS = frozenset(["role", "content", "tool_calls", "weight", "tool_call_id"])  # and what the text says without them
NOT_ENDED = "an answer is closed by no token that ends the generation, so that its end is not learnt"
OUTSIDE = "the token that ends an answer stands behind the template's {% generation %} part; it is learnt, too"
ACROSS = (
    "the tokens of a question alone, which the served model is given, are others than it learns: a token stands across "
    "the seam of question and answer"
)
OTHERWISE = (
    "the chat template asks for an answer otherwise than it writes it, so the served model is asked otherwise, too"
)
SPACED = "an answer is written with other white space than it came with"
SHAPES = {
    "text": "arguments as JSON text",
    "object": "arguments as objects",
    "null": "content null",
    "empty": "empty content",
    "function": "name and arguments under 'function'",
    "flat": "name and arguments without 'function'",
}


class Rendered(t.NamedTuple):
    """A conversation's text, the parts of it that are learnt, where the served model would be asked for them, and what
    has to be said of the row."""

    text: str
    spans: Spans
    asked: Sequence[int]
    notes: Sequence[str]


class ConversationEncoder:
    """Conversations as token ids, with labels on what the assistant says: each of its turns, or the ``last`` one.

    A turn of ``weight`` 0 has no labels, nor has white space after the special token that ends a turn. ``located``
    finds the ids that ``tokenizer`` finds. ``stop`` are the ids after which a served model stops.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        located: Locate,
        template: ChatTemplate,
        *,
        max_seq_length: int,
        last: bool,
        stop: Sequence[int],
    ) -> None:
        tokenizer.no_truncation()
        self.located, self.template, self.max_seq_length, self.last = located, template, max_seq_length, last
        self.special = tuple(special_ids(tokenizer))
        self.stop = np.array(stop, np.int32)
        self.ends = tuple(token for i in stop if (token := tokenizer.id_to_token(i)))
        self.seams = Seams(lambda texts: located(texts, [()] * len(texts))[0])

    def __call__(self, conversations: Sequence[Rendered]) -> EncodedRows:
        """Encode what `spans` found of conversations; what is too long is cut at its end."""
        ids, learnt = self.located([row.text for row in conversations], [row.spans for row in conversations])
        kept, learnt = ids.cut(self.max_seq_length), learnt.cut(self.max_seq_length)
        labelled = (learnt.values == 1) & (kept.places > 0)  # nothing stands before the first token to predict it from
        labels = np.where(labelled, kept.values, np.int32(IGNORED))
        cut = ids.lengths > self.max_seq_length
        notes = [[*row.notes] for row in conversations]
        for row in np.flatnonzero(self._not_ended(kept, learnt.values == 1, cut)).tolist():
            notes[row].append(NOT_ENDED)
        seams = [
            (row.text[max(0, place - NEAR) : place], row.text[place : place + NEAR])
            for row in conversations
            for place in row.asked
        ]
        rows = np.repeat(np.arange(len(conversations)), [len(row.asked) for row in conversations])
        for row in np.unique(rows[self.seams.differ(seams, apart=False)]).tolist():
            notes[row].append(ACROSS)
        return EncodedRows(kept, TokenIds(labels, kept.lengths), cut, notes)

    def _not_ended(
        self, ids: TokenIds, learnt: npt.NDArray[np.bool_], cut: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """The rows with a learnt part that holds no token to stop at, unless the part is cut."""
        begins = learnt & ~np.concatenate([[False], learnt[:-1] & (ids.rows[1:] == ids.rows[:-1])])
        number = np.cumsum(begins) - 1  # of the part
        stops = np.bincount(number[learnt & np.isin(ids.values, self.stop)], minlength=int(begins.sum()))
        rows, last = ids.rows[begins], np.zeros(int(begins.sum()), np.int64)
        last[number[learnt]] = ids.places[learnt]
        open_end = (stops == 0) & ~(cut[rows] & (last == self.max_seq_length - 1))
        return np.bincount(rows[open_end], minlength=len(cut)) > 0

    def spans(self, turns: Turns, tools: t.Any = None) -> Rendered:
        """Return the text up to the last answer to learn, and where in it those answers stand.

        Raises ValueError (problem, what was found).
        """
        answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        learnt = [i for i in (answers[-1:] if self.last else answers) if turns[i].get("weight", 1)]
        turns = turns[: learnt[-1] + 1]
        shown = self.template.shown(turns)
        answers = [i for i in answers if i < len(turns)]
        if self.template.marks_answers:
            text, spans = self.template.answers(shown, tools)
            if len(spans) != len(answers):
                raise ValueError(
                    "turns for which the chat template marks another number of {% generation %} parts",
                    f"{len(spans)} parts, {len(answers)} assistant turns",
                )
            spans = [span for i, span in zip(answers, spans, strict=True) if i in learnt]
            last = self.template.render(shown[: learnt[-1]], tools, add_generation_prompt=True)
            asked = [len(last)] if text.startswith(last) else []
        else:
            text = self.template.render(shown, tools)
            spans = [self._span(shown, i, text, tools) for i in learnt]
            asked = [start for start, _ in spans]
        notes = self._unused(turns, shown, tools, text, learnt=learnt)
        notes += [] if asked else [OTHERWISE]
        found = []
        for i, (start, end) in zip(learnt, spans, strict=True):
            try:
                notes += self._checked(turns[i], shown[i], text, (start, end))
            except ValueError as e:
                raise ValueError(
                    "turns of the assistant that the chat template does not write in full where they are to be learnt",
                    f"turn {i + 1}: {e}",
                ) from None
            closed = self._end(text, start, end)
            if closed > end:
                notes.append(OUTSIDE)
            found.append((start, closed))
        return Rendered(text, found, asked, list(dict.fromkeys(notes)))

    def _span(self, shown: Turns, i: int, text: str, tools: t.Any) -> tuple[int, int]:
        """An answer stands between what is rendered to ask for it, and what is rendered with it."""
        asked = self.template.render(shown[:i], tools, add_generation_prompt=True)
        answered = text if i == len(shown) - 1 else self.template.render(shown[: i + 1], tools)
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

    def _end(self, text: str, start: int, end: int) -> int:
        """Where what is learnt of an answer ends: with its last special token, which may follow the answer's mark."""
        answer = text[start:end]
        kept = answer.rstrip()
        if kept.endswith(self.special):
            return start + len(kept)
        if stops := [answer.rfind(token) + len(token) for token in self.ends if token in answer]:
            return start + max(stops)  # what the template writes behind it is never generated
        if self.template.marks_answers:
            return closed_at(text, end, self.ends, self.special) or end
        return end

    def _checked(
        self, turn: Mapping[str, t.Any], shown: Mapping[str, t.Any], text: str, span: tuple[int, int]
    ) -> list[str]:
        """What has to be said of a turn that is learnt. Raises ValueError where not all of it is in its answer."""
        start, end = span
        content, notes = (shown["content"] or "").strip(), list[str]()
        if not content or not text.startswith(content, start, end) or "tool_calls" in shown:
            answer = text[start:end].rstrip()
            if answer.endswith(self.special):
                answer = answer[: -max(len(token) for token in self.special if answer.endswith(token))]
            place = text.rfind(content, 0, end)  # the template may write the answer's begin when it asks for it
            begun = 0 <= place < start < place + len(content)
            if lost := unwritten({**shown, "content": None} if begun else shown, answer):
                raise ValueError(lost)
            if content not in answer and not begun:
                notes.append(SPACED)
            if in_python_notation(shown, answer):
                notes.append("the chat template writes a value of a tool call in Python's notation, not as JSON")
        notes += [
            f"the chat template does not write {key!r:.60} of an answer, so it is not learnt"
            for key in turn
            if key not in LINKS
            and not (stands(turn[key], text[:end]) if isinstance(turn[key], str) else self._reads(key, text))
        ]
        if shown.get("tool_calls"):
            given, taken = self.template.shape(turn), self.template.shape(shown)
            notes += [
                f"tool calls are given to the chat template with {SHAPES[b]} (the data has {SHAPES[a]}), as it does "
                "not write them otherwise"
                for a, b in zip(given, taken, strict=True)
                if a != b
            ]
        return notes

    def _unused(self, turns: Turns, shown: Turns, tools: t.Any, text: str, *, learnt: Sequence[int]) -> list[str]:
        """What of a conversation the chat template does not write, beside what is learnt."""
        notes = list[str]()
        for i, turn in enumerate(turns):
            if i in learnt:
                continue
            for key in turn:
                if key not in LINKS and (key != "name" or turn["role"] != "tool") and not self._reads(key, text):
                    notes.append(f"the chat template does not write {key!r:.60} of turns that are not learnt")
            said = turn["content"]
            if said and said not in text and not stands(said, text):
                notes.append(f"the chat template does not write the text of a turn of role {turn['role']}")
            if "tool_calls" in turn and unwritten({**shown[i], "content": None}, text):
                notes.append("the chat template does not write the tool calls of turns that are not learnt")
            if turn["role"] != "assistant" and turn.get("weight") == 1:
                notes.append(f"a turn of role {turn['role']} is marked to be learnt: only the assistant's are")
        names = [name for tool in tools or () if isinstance(name := (tool.get("function") or tool).get("name"), str)]
        if not all(name in text for name in names):
            notes.append("the chat template does not write the tools that a conversation may use")
        return notes

    def _reads(self, key: str, text: str) -> bool:
        return key in self.template.source or f'"{key}"' in text
