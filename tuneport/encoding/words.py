"""Lists of words with a label each as token ids and labels, many at once."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence
from itertools import chain

import numpy as np

from tuneport.encoding.completions import EncodedRows
from tuneport.encoding.prompts import around
from tuneport.encoding.token_ids import ToIds, TokenIds, surround
from tuneport.labels import IGNORED

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer


class WordEncoder:
    """Rows of words as the tokenizers library encodes them with ``is_pretokenized``, which is each word by itself.

    ``to_ids`` gives the ids of ``tokenizer``, which says what stands around a row and where a long one is cut.
    """

    def __init__(self, tokenizer: Tokenizer, to_ids: ToIds) -> None:
        self.to_ids = to_ids
        self.prefix, self.suffix = around(tokenizer)
        cutting: t.Any = tokenizer.truncation
        self.room = int(cutting["max_length"]) - len(self.prefix) - len(self.suffix)
        self.cuts_start = cutting["direction"] == "left"

    def __call__(self, rows: Sequence[Sequence[str]], first: Sequence[int], others: Sequence[int]) -> EncodedRows:
        """Encode rows. ``first`` holds for each word the label of its first token, ``others`` that of further ones."""
        distinct: dict[str, int] = {}
        codes = np.array([distinct.setdefault(word, len(distinct)) for word in chain.from_iterable(rows)], np.int64)
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        by_word = self.to_ids(list(distinct)).take(codes)
        words = TokenIds(by_word.rows.astype(np.int32), by_word.lengths).joined(counts)
        ids = by_word.joined(counts)
        kept, words = (part.cut(self.room, start=self.cuts_start) for part in (ids, words))
        begins = words.places == 0
        begins[1:] |= words.values[1:] != words.values[:-1]
        labels = np.where(begins, np.array(first, np.int32)[words.values], np.array(others, np.int32)[words.values])
        ignored: tuple[list[int], ...] = ([IGNORED] * len(self.prefix), [IGNORED] * len(self.suffix))
        return EncodedRows(
            surround(self.prefix, kept, self.suffix),
            surround(ignored[0], TokenIds(labels, kept.lengths), ignored[1]),
            ids.lengths > self.room,
        )
