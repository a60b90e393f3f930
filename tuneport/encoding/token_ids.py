"""The token ids of many texts end to end in one array, so that they are cut, joined and labelled together."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

if t.TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int32]
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenIds:
    """``lengths[i]`` of the ``values`` are those of text i."""

    values: Ids
    lengths: Lengths

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> TokenIds:
        """From a list of ids a text."""
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        return cls(np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum())), lengths)

    @classmethod
    def same(cls, ids: Sequence[int], wanted: npt.NDArray[np.bool_]) -> TokenIds:
        """These ids for each text for which they are expected, else none."""
        return cls(np.tile(np.array(ids, np.int32), int(wanted.sum())), wanted * np.int64(len(ids)))

    @cached_property
    def starts(self) -> Lengths:
        """Where the ids of each text begin."""
        found: Lengths = self.lengths.cumsum() - self.lengths
        return found

    @cached_property
    def places(self) -> Lengths:
        """The place of each id in its text, from 0."""
        found: Lengths = np.arange(len(self.values)) - np.repeat(self.starts, self.lengths)
        return found

    @cached_property
    def rows(self) -> Lengths:
        """The number of the text that each id is of."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def cut(self, most: Lengths | int, *, start: bool = False) -> TokenIds:
        """At most so many ids of each text, without its last ones or, from the ``start``, its first ones."""
        kept = np.minimum(self.lengths, np.maximum(most, 0))
        if (kept == self.lengths).all():
            return self
        if start:
            chosen = self.places >= np.repeat(self.lengths - kept, self.lengths)
        else:
            chosen = self.places < np.repeat(kept, self.lengths)
        return TokenIds(self.values[chosen], kept)

    def take(self, texts: Lengths) -> TokenIds:
        """The ids of these texts, each as often as it is asked for."""
        lengths = self.lengths[texts]
        found = TokenIds(np.empty(int(lengths.sum()), np.int32), lengths)
        found.values[:] = self.values[np.repeat(self.starts[texts], lengths) + found.places]
        return found

    def joined(self, counts: Lengths) -> TokenIds:
        """Texts that follow each other as one: ``counts`` says how many make each."""
        ends = np.append(0, self.lengths.cumsum())[np.append(0, counts.cumsum())]
        return TokenIds(self.values, ends[1:] - ends[:-1])

    def column(self) -> pa.ListArray:
        """As an Arrow column of lists."""
        import pyarrow as pa

        ends = np.zeros(len(self.lengths) + 1, np.int32)
        np.cumsum(self.lengths, out=ends[1:])
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(self.values))


def concatenate(*parts: TokenIds) -> TokenIds:
    """The ids of each text, one part after the other."""
    parts = tuple(part for part in parts if len(part.values)) or parts[:1]
    if len(parts) == 1:
        return parts[0]
    lengths = np.sum([part.lengths for part in parts], axis=0)
    values = np.empty(int(lengths.sum()), np.int32)
    begins = lengths.cumsum() - lengths
    for part in parts:
        values[np.repeat(begins, part.lengths) + part.places] = part.values
        begins = begins + part.lengths
    return TokenIds(values, lengths)


def surround(prefix: Sequence[int], ids: TokenIds, suffix: Sequence[int]) -> TokenIds:
    """The ids of each text between the same ids."""
    everywhere = np.ones(len(ids.lengths), bool)
    return concatenate(TokenIds.same(prefix, everywhere), ids, TokenIds.same(suffix, everywhere))


ToIds = Callable[[Sequence[str]], TokenIds]


def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that does not cut."""
    whole = type(tokenizer).from_str(tokenizer.to_str())
    whole.no_truncation()
    return whole


def library_ids(tokenizer: Tokenizer) -> ToIds:
    """Texts to token ids without special tokens around them; the tokenizer must not cut."""

    def to_ids(texts: Sequence[str]) -> TokenIds:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return TokenIds.of([encoding.ids for encoding in encodings])

    return to_ids
