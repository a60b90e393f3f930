"""Assign rows to training, validation and test: seeded, shuffled, stratified; nothing that is given is taken away."""

from __future__ import annotations

import itertools
import typing as t
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "validation", "test")
REMOVED = 255  # the split code of a removed duplicate
Codes = npt.NDArray[np.uint8]
Strata = npt.NDArray[np.int32]


def assign_splits(
    source: Codes, strata: Strata, given: Collection[str], *, validation_ratio: float, test_ratio: float, seed: int
) -> Codes:
    """Return the split of each row, as an index into `SPLITS`.

    ``source`` is the split that each row was given for, ``strata`` its class. A split of which no rows were given is
    taken from the training rows. Each class gives its share of it to within one row, the whole is as near to the ratio
    as that allows, and every class keeps at least one training row.
    """
    result = source.copy()
    wanted = {"validation": validation_ratio, "test": test_ratio}
    taken = {split: ratio for split, ratio in wanted.items() if split not in given}
    if not taken:
        return result
    rng = np.random.default_rng(seed)
    train = np.flatnonzero(source == 0).astype(np.int32 if len(source) < 2**31 else np.int64)
    train = rng.permutation(train)
    train = train[np.argsort(strata[train], kind="stable")]
    _classes, counts = np.unique(strata[train], return_counts=True)
    starts = np.cumsum(counts) - counts
    spare = counts - 1
    for split, ratio in taken.items():
        quota = share_out(counts, ratio, spare, rng)
        for start, size in zip(starts.tolist(), quota.tolist(), strict=True):
            result[train[start : start + size]] = SPLITS.index(split)
        starts, spare = starts + quota, spare - quota
    return result


def assign_group_splits(
    source: Codes,
    strata: Strata,
    groups: npt.NDArray[np.uint64],
    given: Collection[str],
    *,
    validation_ratio: float,
    test_ratio: float,
    seed: int,
) -> Codes:
    """Like `assign_splits`, but all training rows of a group go to one split.

    Groups are tried in random order, first where that brings a split nearer to its share of each class, then where it
    brings the split nearer to its size. The last group of the training rows that holds a class is not taken.
    """
    result = source.copy()
    wanted = {"validation": validation_ratio, "test": test_ratio}
    taken = {SPLITS.index(split): ratio for split, ratio in wanted.items() if split not in given}
    train = np.flatnonzero(source == 0)
    if not taken or not len(train):
        return result
    _names, group = np.unique(groups[train], return_inverse=True)
    _classes, stratum = np.unique(strata[train], return_inverse=True)
    classes, rows = int(stratum.max()) + 1, np.bincount(stratum)
    # One entry for each class of each group, those of a group side by side.
    entries, counts = np.unique(group.astype(np.int64) * classes + stratum, return_counts=True)
    held = entries % classes
    starts = np.searchsorted(entries, np.arange(int(group.max()) + 2) * classes)
    parts = [slice(start, end) for start, end in itertools.pairwise(starts.tolist())]
    holders = np.bincount(held, minlength=classes)
    missing: dict[int, npt.NDArray[np.float64]] = {s: (rows * ratio).astype(np.float64) for s, ratio in taken.items()}
    split_of = np.zeros(len(parts), np.uint8)
    order = np.random.default_rng(seed).permutation(len(parts)).tolist()

    def spare(g: int) -> bool:
        return not split_of[g] and bool((holders[held[parts[g]]] > 1).all())

    def take(g: int, split: int) -> None:
        split_of[g] = split
        holders[held[parts[g]]] -= 1
        missing[split][held[parts[g]]] -= counts[parts[g]]

    for by_class in (True, False):
        for g in order:
            if spare(g):
                gains = {s: _gain(missing[s], held[parts[g]], counts[parts[g]], by_class=by_class) for s in taken}
                best = max(gains, key=lambda split: gains[split])
                if gains[best] > 0:
                    take(g, best)
    for split in taken:
        left = [g for g in order if spare(g)]
        if left and not (split_of == split).any():
            take(min(left, key=lambda g: int(counts[parts[g]].sum())), split)
    result[train] = split_of[group]
    return result


def assign_input_splits(
    source: Codes,
    strata: Strata,
    inputs: npt.NDArray[np.uint64],
    given: Collection[str],
    **ratios: t.Any,
) -> Codes:
    """Like `assign_splits`, but training rows with equal ``inputs`` (rows,) go to one split."""
    train = np.flatnonzero(source == 0)
    _inputs, place, rows = np.unique(inputs[train], return_inverse=True, return_counts=True)
    shared = np.zeros(len(source), bool)
    shared[train] = rows[place] > 1
    result = source.copy()
    result[~shared] = assign_splits(source[~shared], strata[~shared], given, **ratios)
    result[shared] = assign_group_splits(source[shared], strata[shared], inputs[shared], given, **ratios)
    return result


def joined_groups(groups: npt.NDArray[np.uint64], inputs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The groups (rows,) where none holds the ``inputs`` (rows,) of another, else codes of what must stay together."""
    _groups, group = np.unique(groups, return_inverse=True)
    _inputs, first, place = np.unique(inputs, return_index=True, return_inverse=True)
    if (group[first][place] == group).all():
        return groups
    codes = np.arange(len(groups))
    while True:
        before = codes
        for key in (group, place):
            lowest = np.full(int(key.max()) + 1, len(groups))
            np.minimum.at(lowest, key, codes)
            codes = lowest[key]
        if (codes == before).all():
            return codes.astype(np.uint64)


def _gain(
    missing: npt.NDArray[np.float64], held: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], *, by_class: bool
) -> float:
    """How much closer, in rows, each split gets to its target counts if this group is added."""
    total = float(missing.sum())
    size = abs(total) - abs(total - float(rows.sum()))
    if size <= 0 or not by_class:
        return size
    return float((np.abs(missing[held]) - np.abs(missing[held] - rows)).sum())


def share_out(
    counts: npt.NDArray[np.int64], ratio: float, spare: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """How many rows each class gives, (classes,): its share rounded down, then one more where the remainder is largest.

    Ties are broken by chance; no class gives more than its ``spare`` rows; at least one row is given if there is one.
    """
    exact = counts * ratio
    quota: npt.NDArray[np.int64] = np.minimum(np.floor(exact + 1e-9).astype(np.int64), spare)
    missing = max(1, round(float(exact.sum()))) - int(quota.sum())
    order = np.lexsort((rng.random(len(counts)), np.floor(exact + 1e-9) - exact))
    can_give = order[(quota < spare)[order] & (quota <= exact)[order]]
    quota[can_give[: max(0, missing)]] += 1
    return quota
