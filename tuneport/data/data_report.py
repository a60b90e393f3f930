"""What the data report says of duplicates, near duplicates, groups and token lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tuneport.data.duplicates import Duplicates
from tuneport.data.near_duplicates import NearDuplicates
from tuneport.data.splits import SPLITS, Codes

BINS = 20  # at most


class TokenLengths:
    """Counts of sequences by length in tokens, in memory bounded by the longest."""

    def __init__(self, max_seq_length: int) -> None:
        self.counts = np.zeros(max_seq_length + 1, np.int64)
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


def duplicates_report(
    mode: str,
    duplicates: Duplicates,
    *,
    splits: Codes,
    sources: Codes,
    identities: npt.NDArray[np.uint64],
    contents: npt.NDArray[np.uint64],
    others: Mapping[str, int],
) -> dict[str, Any]:
    """How many rows are duplicates: removed, or left within and across splits (``none``).

    ``identities`` (rows,) are hashes of inputs; ``contents`` those of inputs and reference, empty for tasks without.
    ``others``: how many of the duplicates have another label or reference than the row that they repeat.
    """
    report: dict[str, Any] = {"deduplicate": mode, "duplicates": len(duplicates.rows), **others}
    if several := _several_references(splits, identities, contents):
        report["several_references"] = several
    if mode != "none":
        removed = np.bincount(sources[duplicates.rows], minlength=len(SPLITS)).tolist()
        return report | {"removed": dict(zip(SPLITS, removed, strict=True))}
    distinct = [np.unique(identities[splits == code]) for code in range(len(SPLITS))]
    whole = contents if len(contents) else identities
    within = {
        split: int((splits == code).sum()) - len(np.unique(whole[splits == code])) for code, split in enumerate(SPLITS)
    }
    pairs = [(a, b) for b in range(len(SPLITS)) for a in range(b)]
    across = {
        f"{SPLITS[b]} rows also in {SPLITS[a]}": int(np.isin(identities[splits == b], distinct[a]).sum())
        for a, b in pairs
    }
    return report | {"within": within, "across": across}


def _several_references(
    splits: Codes, identities: npt.NDArray[np.uint64], contents: npt.NDArray[np.uint64]
) -> dict[str, int] | None:
    """How many inputs of kept rows have several references, and how many rows these are; None where none has."""
    if not len(contents):
        return None
    kept = splits < len(SPLITS)
    _, first, place = np.unique(contents[kept], return_index=True, return_inverse=True)
    _, of_content, answers = np.unique(identities[kept][first], return_inverse=True, return_counts=True)
    several = answers > 1
    rows = int(several[of_content][place].sum())
    return {"inputs": int(several.sum()), "rows": rows} if rows else None


def near_duplicates_report(
    near: NearDuplicates, *, splits: Codes, sources: Codes, threshold: float, removed: bool
) -> dict[str, Any]:
    """How many rows nearly repeat another one: removed, or left within and across splits.

    Duplicates are not counted. Where ``checked_rows`` is less than ``rows``, a sample was compared with itself:
    the counts are those of the sample, and the whole has more.
    """
    rows = len(splits) if removed else int((splits < len(SPLITS)).sum())
    report: dict[str, Any] = {"threshold": threshold, "checked_rows": near.checked, "rows": rows}
    if removed:
        counts = np.bincount(sources[near.rows], minlength=len(SPLITS)).tolist()
        return report | {"near_duplicates": len(near.rows), "removed": dict(zip(SPLITS, counts, strict=True))}
    one, other = splits[near.rows], splits[near.originals]
    within = {split: len(np.unique(near.rows[(one == code) & (other == code)])) for code, split in enumerate(SPLITS)}
    across = {
        f"{SPLITS[b]} rows also in {SPLITS[a]}": len(
            np.unique(np.concatenate([near.rows[(one == b) & (other == a)], near.originals[(other == b) & (one == a)]]))
        )
        for b in range(len(SPLITS))
        for a in range(b)
    }
    return report | {"near_duplicates": len(np.unique(near.rows)), "within": within, "across": across}


def groups_report(group_key: str, groups: npt.NDArray[np.uint64], splits: Codes) -> dict[str, Any]:
    """How many groups each split has, and how many stand in two splits with how many rows of both."""
    found = [np.unique(groups[splits == code]) for code in range(len(SPLITS))]
    across: dict[str, Any] = {}
    for b in range(len(SPLITS)):
        for a in range(b):
            shared = np.intersect1d(found[a], found[b], assume_unique=True)
            rows = int((np.isin(groups, shared) & ((splits == a) | (splits == b))).sum()) if len(shared) else 0
            across[f"{SPLITS[a]} and {SPLITS[b]}"] = {"groups": len(shared), "rows": rows}
    return {
        "column": group_key,
        "groups": {split: len(found[code]) for code, split in enumerate(SPLITS)},
        "across": across,
    }
