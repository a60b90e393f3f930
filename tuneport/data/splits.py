"""Assign rows to training, validation and test: seeded, shuffled, stratified; nothing that is given is taken away."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "validation", "test")
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


def share_out(
    counts: npt.NDArray[np.int64], ratio: float, spare: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """How many rows each class gives: its share rounded down, then one more where the remainder is largest.

    Ties are broken by chance; no class gives more than its ``spare`` rows; at least one row is given if there is one.
    """
    exact = counts * ratio
    quota: npt.NDArray[np.int64] = np.minimum(np.floor(exact + 1e-9).astype(np.int64), spare)
    missing = max(1, round(float(exact.sum()))) - int(quota.sum())
    order = np.lexsort((rng.random(len(counts)), np.floor(exact + 1e-9) - exact))
    can_give = order[(quota < spare)[order] & (quota <= exact)[order]]
    quota[can_give[: max(0, missing)]] += 1
    return quota
