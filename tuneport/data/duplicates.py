"""Find rows with equal inputs by 64-bit hashes of their identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Rows that repeat an earlier one; ``originals`` holds the first such row of each."""

    rows: Indices
    originals: Indices

    def of(self, chosen: npt.NDArray[np.bool_]) -> Duplicates:
        """Those among them that ``chosen`` (rows,) says."""
        return Duplicates(rows=self.rows[chosen], originals=self.originals[chosen])


def identity_hash(identity: str) -> int:
    """64 bits that stand for a row's inputs; among a million rows two collide with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")


def find_duplicates(identities: npt.NDArray[np.uint64]) -> Duplicates:
    """Every row whose identity (rows,) an earlier row has, in order; takes 16 bytes a row while it runs."""
    order = np.argsort(identities, kind="stable")
    ordered = identities[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    first = np.searchsorted(ordered, ordered[repeats], side="left")
    rows, originals = order[repeats], order[first]
    in_order = np.argsort(rows)
    return Duplicates(rows=rows[in_order], originals=originals[in_order])


def repeated_rows(
    inputs: Duplicates, contents: npt.NDArray[np.uint64], sources: npt.NDArray[np.uint8]
) -> tuple[Duplicates, int]:
    """Which of the rows that repeat another one's inputs are duplicates, and how many of them only by their inputs.

    Where ``contents`` (rows,), hashes of inputs and reference, are given, those are that repeat these as well, or the
    inputs of a row that was given for another split, which a model must not have seen.
    """
    if not len(contents):
        return inputs, 0
    elsewhere = sources[inputs.rows] != sources[inputs.originals]
    equal = np.isin(inputs.rows, find_duplicates(contents).rows)
    return inputs.of(elsewhere | equal), int((elsewhere & ~equal).sum())
