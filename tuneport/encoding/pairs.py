"""Pairs of texts as token ids and token types, many at once."""

from __future__ import annotations

import itertools
import typing as t
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuneport.encoding.token_ids import Lengths, ToIds, TokenIds, concatenate

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer


class PairEncoder:
    """Pairs as ``tokenizer`` encodes them, which says what stands around them and where long ones are cut.

    ``to_ids`` gives its ids.
    """

    def __init__(self, tokenizer: Tokenizer, to_ids: ToIds) -> None:
        self.to_ids = to_ids
        shown = tokenizer.encode("a", "a")  # which special tokens stand around two texts
        places = [[i for i, part in enumerate(shown.sequence_ids) if part == of] for of in (0, 1)]
        cuts = [0, places[0][0], places[0][-1] + 1, places[1][0], places[1][-1] + 1, len(shown.ids)]
        self.ids, self.types = ([own[a:b] for a, b in itertools.pairwise(cuts)] for own in (shown.ids, shown.type_ids))
        cutting: t.Any = tokenizer.truncation
        self.room = int(cutting["max_length"]) - sum(len(self.ids[i]) for i in (0, 2, 4))
        self.cuts_start = cutting["direction"] == "left"

    def __call__(
        self, firsts: Sequence[str], seconds: Sequence[str]
    ) -> tuple[TokenIds, TokenIds, npt.NDArray[np.bool_]]:
        """Token ids, token types and whether something was cut."""
        whole = (self.to_ids(firsts), self.to_ids(seconds))
        sizes = longest_first(whole[0].lengths, whole[1].lengths, self.room)
        kept = [ids.cut(most, start=self.cuts_start) for ids, most in zip(whole, sizes, strict=True)]
        everywhere = np.ones(len(firsts), bool)
        before, between, after = (TokenIds.same(self.ids[i], everywhere) for i in (0, 2, 4))
        types = [TokenIds.same(self.types[i], everywhere) for i in (0, 2, 4)]
        of_texts = [
            TokenIds(np.full(len(ids.values), self.types[i][0], np.int32), ids.lengths)
            for i, ids in ((1, kept[0]), (3, kept[1]))
        ]
        return (
            concatenate(before, kept[0], between, kept[1], after),
            concatenate(types[0], of_texts[0], types[1], of_texts[1], types[2]),
            whole[0].lengths + whole[1].lengths > self.room,
        )


def longest_first(first: Lengths, second: Lengths, room: int) -> tuple[Lengths, Lengths]:
    """How many tokens of two texts are kept: the longer one is cut first, then both alike."""
    shorter = np.minimum(first, second)
    halves = shorter > room // 2
    shorter, longer = np.where(halves, room // 2, shorter), np.where(halves, room - room // 2, room - shorter)
    swapped = first > second
    fits = first + second <= room
    kept = np.where(swapped, longer, shorter), np.where(swapped, shorter, longer)
    return np.where(fits, first, kept[0]), np.where(fits, second, kept[1])
