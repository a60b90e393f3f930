"""Where a prompt's tokens alone are not the begin of the tokens of the prompt with what follows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tuneport.encoding.token_ids import ToIds

NEAR = 16  # characters on either side of a seam that decide where tokens end


class Seams:
    """Looks at seams between texts, each pair of ends once; ``to_ids`` must not cut."""

    def __init__(self, to_ids: ToIds) -> None:
        self.to_ids = to_ids

    def differ(self, pairs: Sequence[tuple[str, str]], *, apart: bool) -> npt.NDArray[np.bool_]:
        """Whether the tokens before the seam of each pair become others by what follows.

        ``apart``: both sides become tokens by themselves, so those behind the seam are compared, too.
        """
        near = [(before[-NEAR:], after[:NEAR]) for before, after in pairs]
        distinct = list(dict.fromkeys(near))
        sides = list(dict.fromkeys(side for pair in distinct for side in pair[: 1 + apart]))
        found = self._lists([*sides, *(before + after for before, after in distinct)])
        ids = dict(zip(sides, found, strict=False))
        changed = {}
        for (before, after), whole in zip(distinct, found[len(sides) :], strict=True):
            wanted = ids[before] + ids[after] if apart else ids[before]
            changed[before, after] = wanted != (whole if apart else whole[: len(wanted)])
        return np.array([changed[pair] for pair in near], bool)

    def _lists(self, texts: Sequence[str]) -> list[list[int]]:
        ids = self.to_ids(texts)
        ends, values = ids.lengths.cumsum().tolist(), ids.values.tolist()
        return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
