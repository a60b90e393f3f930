"""What the data report says of copies and of token lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tuneport.data.copies import Copies
from tuneport.data.splits import SPLITS, Codes

LISTED_ROWS = 20  # of the rows dropped for one reason, so many are named
BINS = 20  # at most


class TokenLengths:
    """Counts of sequences by length in tokens, in memory bounded by the longest."""

    def __init__(self, max_length: int) -> None:
        self.counts = np.zeros(max_length + 1, np.int64)
        self.truncated = 0

    def add(self, lengths: npt.NDArray[np.int32], truncated: int) -> None:
        longest = int(lengths.max(initial=0))
        if longest >= len(self.counts):
            self.counts = np.pad(self.counts, (0, longest + 1 - len(self.counts)))
        self.counts += np.bincount(lengths, minlength=len(self.counts))
        self.truncated += truncated

    def quantile(self, share: float) -> int:
        """The shortest length that is at least as long as this share of the sequences."""
        return int(np.searchsorted(self.counts.cumsum(), share * self.counts.sum()))

    def report(self) -> dict[str, Any]:
        present = np.flatnonzero(self.counts)
        if not len(present):
            return {"tokens": None, "truncated": self.truncated}
        low, high = int(present[0]), int(present[-1])
        width = -(-(high + 1 - low) // BINS)  # whole tokens, so that no bin is empty by construction
        counts, edges = np.histogram(present, np.arange(low, high + width + 1, width), weights=self.counts[present])
        return {
            "tokens": {
                "min": low,
                "median": self.quantile(0.5),
                "p95": self.quantile(0.95),
                "max": high,
                "total": int((self.counts * np.arange(len(self.counts))).sum()),
                "histogram": {"edges": edges.tolist(), "rows": counts.astype(int).tolist()},
            },
            "truncated": self.truncated,
        }


def copies_report(
    mode: str, copies: Copies, *, splits: Codes, sources: Codes, identities: npt.NDArray[np.uint64], other_label: int
) -> dict[str, Any]:
    """How many rows repeat another one's inputs: removed (``exact``), or left within and across splits (``none``)."""
    report: dict[str, Any] = {"deduplicate": mode, "copies": len(copies.rows), "with_another_label": other_label}
    if mode == "exact":
        removed = np.bincount(sources[copies.rows], minlength=len(SPLITS)).tolist()
        return report | {"removed": dict(zip(SPLITS, removed, strict=True))}
    distinct = [np.unique(identities[splits == code]) for code in range(len(SPLITS))]
    within = {split: int((splits == code).sum()) - len(distinct[code]) for code, split in enumerate(SPLITS)}
    pairs = [(a, b) for b in range(len(SPLITS)) for a in range(b)]
    across = {
        f"{SPLITS[b]} rows also in {SPLITS[a]}": int(np.isin(identities[splits == b], distinct[a]).sum())
        for a, b in pairs
    }
    return report | {"within": within, "across": across}
