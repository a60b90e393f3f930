"""Token ids of texts, and which of the tokens have a part in given stretches of the text."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from tuneport.encoding.token_ids import Lengths, TokenIds

if t.TYPE_CHECKING:
    from tokenizers import Tokenizer

Spans = Sequence[tuple[int, int]]  # from, to (exclusive); they grow and do not overlap
# Texts and, of each, stretches of its characters -> token ids, and 1 for each token with a part in one, 0 for others.
Locate = Callable[[Sequence[str], Sequence[Spans]], tuple[TokenIds, TokenIds]]
BEYOND = np.iinfo(np.int64).max


def library_located(tokenizer: Tokenizer) -> Locate:
    """By the tokenizers library; the tokenizer must not cut."""

    def located(texts: Sequence[str], spans: Sequence[Spans]) -> tuple[TokenIds, TokenIds]:
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = TokenIds.of([encoding.ids for encoding in encodings])
        offsets = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        places = np.fromiter(offsets, np.int64, 2 * len(ids.values)).reshape(-1, 2)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        return ids, within(ids, places[:, 0], places[:, 1], spans, sizes)

    return located


def within(ids: TokenIds, starts: Lengths, ends: Lengths, spans: Sequence[Spans], sizes: Lengths) -> TokenIds:
    """1 for each token that has a part in a span of its text, else 0.

    ``starts`` and ``ends`` are places of tokens in their text, of which ``sizes`` are the lengths, all in one unit.
    """
    begins = sizes.cumsum() - sizes  # of the texts, one after another
    found = [
        (start + begin, end + begin) for begin, own in zip(begins.tolist(), spans, strict=True) for start, end in own
    ]
    bounds = np.array([*found, (BEYOND, BEYOND)], np.int64)
    offset = begins[ids.rows]
    first = np.searchsorted(bounds[:, 1], starts + offset, side="right")  # the first span that ends behind the start
    inside: npt.NDArray[np.bool_] = bounds[first, 0] < ends + offset
    return TokenIds(inside.astype(np.int32), ids.lengths)
