"""Which test rows the report shows, and what of their texts is marked: answers in their place, words that differ."""

from __future__ import annotations

import dataclasses as dc
import re
import typing as t
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain

from tuneport.metrics.scores import Evaluation
from tuneport.tasks.task import Mark, Row, ShownAnswer, Task

FIRST_ROWS = 20  # that stand in the page's own table
MOST_ROWS = 2_000  # that can be searched
MOST_CHARACTERS = 1_000_000  # of their texts
TEXT_LENGTH = 600  # characters of a text that are shown
COMPARED_WORDS = 300  # of two texts, in which words that differ are looked for

Segment = tuple[str, str, str]  # a piece of a text, how it is marked ("" if it is not), and what the mark says


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A test row and its answers as pieces of text."""

    row_id: str
    source: str
    texts: Sequence[Sequence[Segment]]
    truth: Sequence[Segment]
    predicted: Sequence[Segment]
    score: str
    base: Sequence[Segment]

    @property
    def pieces(self) -> Iterable[Segment]:
        return chain(*self.texts, self.truth, self.predicted, self.base)

    @property
    def characters(self) -> int:
        return sum(len(text) for text, _, _ in self.pieces)


def shown_rows(
    task: Task, rows: Sequence[Row], tuned: Sequence[Row], base: Sequence[Row] | None, found: Evaluation
) -> list[Shown]:
    """The rows that are answered wrong, most wrong first; where answers are not right or wrong, all, the worst first.

    As many as `MOST_ROWS` and `MOST_CHARACTERS` allow. ``base`` is None where the base model was left out; then what it
    answers is "".
    """
    wrong = range(len(rows)) if found.row_correct is None else (i for i, ok in enumerate(found.row_correct) if not ok)
    ranked = sorted(wrong, key=lambda i: -found.row_losses[i])
    written = found.row_correct is None

    def of(i: int) -> Shown | None:
        other = tuned[i] if base is None else base[i]
        answer = task.shown(rows[i], tuned[i], other)
        if answer is None:
            return None
        return as_shown(rows[i]["row_id"], dc.replace(answer, base="") if base is None else answer, written=written)

    return list(_within_limits(row for i in ranked if (row := of(i))))


def as_shown(row_id: str, answer: ShownAnswer, *, written: bool) -> Shown:
    """An answer as pieces; ``written``: the words of what is written that are not the reference's are marked."""
    truth, predicted, base = (_cut(text) for text in (answer.truth, answer.predicted, answer.base))
    pieces = {"truth": [(truth, "", "")], "predicted": [(predicted, "", "")], "base": [(base, "", "")]}
    if written:
        pieces["truth"], pieces["predicted"] = differing(truth, predicted)
        pieces["base"] = differing(truth, base)[1]
    texts = [segments(text, [mark for mark in answer.marks if mark.text == i]) for i, text in enumerate(answer.texts)]
    return Shown(row_id=row_id, source=source_of(row_id), texts=texts, score=_cut(answer.score), **pieces)


def source_of(row_id: str) -> str:
    """The file that a row is from."""
    return row_id.rpartition(":")[0] or row_id


def segments(text: str, marks: Sequence[Mark]) -> list[Segment]:
    """A text of at most `TEXT_LENGTH` characters in pieces, marked or not; marks do not overlap."""
    shown, found, at = _cut(text), list[Segment](), 0
    for mark in sorted(marks, key=lambda m: m.start):
        start, end = max(at, mark.start), min(mark.end, len(shown))
        if start >= end:
            continue
        found += [(shown[at:start], "", "")] if start > at else []
        found.append((shown[start:end], mark.kind, mark.label))
        at = end
    return [*found, (shown[at:], "", "")] if at < len(shown) or not found else found


def differing(reference: str, text: str) -> tuple[list[Segment], list[Segment]]:
    """Both texts in pieces: words of the reference that the text lacks are marked, and words that it adds.

    What stands between words makes no difference.
    """
    a, b = (re.findall(r"\s*\S+", words) or [words] for words in (reference, text))
    if not reference or not text or max(len(a), len(b)) > COMPARED_WORDS:
        return [(reference, "", "")], [(text, "", "")]
    left, right = list[Segment](), list[Segment]()
    one, other = ([word.lstrip() for word in words] for words in (a, b))
    for what, i, j, k, n in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        same = what == "equal"
        left += [("".join(a[i:j]), "" if same else "lacking", "")] if j > i else []
        right += [("".join(b[k:n]), "" if same else "added", "")] if n > k else []
    return left, right


def _within_limits(rows: Iterable[Shown]) -> Iterable[Shown]:
    room = MOST_CHARACTERS
    for number, row in enumerate(rows):
        room -= row.characters
        if number and (room < 0 or number >= MOST_ROWS):
            return
        yield row


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def as_json(rows: Sequence[Shown]) -> list[dict[str, t.Any]]:
    """What the page's script reads."""
    return [dc.asdict(row) for row in rows]
