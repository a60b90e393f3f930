"""Find rows whose texts are nearly equal: MinHash bands propose pairs, the exact Jaccard index of the shingles decides.

A text's shingles are its runs of `SHINGLE` characters, lower case, single spaces. A row of several texts is a
near copy of another only if each of its texts is. The method is that of Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.
"""

from __future__ import annotations

import os
import random
import typing as t
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHINGLE = 5  # characters
PERMUTATIONS = 128
MISSED = 0.01  # largest probability that a pair just at the threshold is not proposed
MOST_ROWS_PER_BAND = 16
MOST_TEXTS = 16  # of a row; the last of more is all the rest
BUCKET = 32  # rows that a bucket of alike rows proposes to each further one
SAMPLE_ROWS = 10_000

Indices = npt.NDArray[np.int64]
Shingles = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class NearCopies:
    """Pairs of nearly equal rows, the earlier one in ``originals``; ``checked`` of the rows were compared."""

    rows: Indices
    originals: Indices
    checked: int


def shingles(identity: str) -> Shingles:
    """Sorted hashes of an identity's shingles; the upper 4 bits number the text, as texts are separated by NUL."""
    found = []
    for number, text in enumerate(identity.split("\0", MOST_TEXTS - 1)):
        characters = np.frombuffer(" ".join(text.lower().split()).encode("utf-32-le"), np.uint32).astype(np.uint64)
        count = max(1, len(characters) - SHINGLE + 1)
        hashes = np.zeros(count, np.uint64)
        for offset in range(min(SHINGLE, len(characters))):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + characters[offset : offset + count] + np.uint64(1)
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0xD6E8FEB86659FD93)
        found.append(np.unique((hashes >> np.uint64(36)).astype(np.uint32) | np.uint32(number << 28)))
    return np.concatenate(found)


def similarity(a: Shingles, b: Shingles) -> float:
    """The Jaccard index of two rows' shingles, of their most different texts where they have several."""
    shared = np.bincount(np.intersect1d(a, b, assume_unique=True) >> 28, minlength=MOST_TEXTS)
    total = np.bincount(a >> 28, minlength=MOST_TEXTS) + np.bincount(b >> 28, minlength=MOST_TEXTS)
    present = total > 0
    return float((shared[present] / (total - shared)[present]).min())


def rows_per_band(threshold: float) -> int:
    """The longest band that misses a pair at the threshold with a probability of at most `MISSED`."""
    fit = [
        rows for rows in range(1, MOST_ROWS_PER_BAND + 1) if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSED
    ]
    return max(fit)


class NearCopyIndex:
    """Rows to compare: band hashes in memory, shingles in a scratch file.

    With ``most`` rows at most, drawn with equal chance from all that are added. At the default threshold of 0.8 a row
    takes 104 bytes of memory, and 4 bytes of disk for each character of its text.
    """

    def __init__(self, scratch: Path, threshold: float, seed: int, most: int | None = None) -> None:
        from datasketch import MinHash

        self.threshold, self.most = threshold, most
        self.seen = 0
        self.length = rows_per_band(threshold)
        self.bands = PERMUTATIONS // self.length
        self.rows = array("q")
        self.offsets = array("q")
        self.sizes = array("I")
        self.hashes = array("I")
        self.random = random.Random(seed)
        self.empty: t.Any = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
        self.file = scratch.open("w+b")
        self.end = 0
        mixing = np.random.default_rng(1).integers(1, 2**63, self.length, dtype=np.uint64)
        self.mixing = mixing * np.uint64(2) + np.uint64(1)

    def add(self, identity: str) -> None:
        """Take in the next row."""
        row, self.seen = self.seen, self.seen + 1
        slot = len(self.rows)
        if self.most is not None and slot >= self.most:
            slot = self.random.randrange(self.seen)
            if slot >= self.most:
                return
        found = shingles(identity)
        self.file.write(found.tobytes())
        entry = (row, self.end, len(found), self._bands(found))
        self.end += found.nbytes
        if slot == len(self.rows):
            self.rows.append(entry[0])
            self.offsets.append(entry[1])
            self.sizes.append(entry[2])
            self.hashes.extend(entry[3])
        else:
            self.rows[slot], self.offsets[slot], self.sizes[slot] = entry[:3]
            self.hashes[slot * self.bands : (slot + 1) * self.bands] = entry[3]

    def _bands(self, found: Shingles) -> array[int]:
        signature = self.empty.copy()
        signature.update_batch(found.tolist())
        values = np.asarray(signature.hashvalues, np.uint64)[: self.bands * self.length]
        mixed = (values.reshape(self.bands, self.length) * self.mixing).sum(axis=1, dtype=np.uint64)
        return array("I", ((mixed * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)).astype(np.uint32).tobytes())

    def close(self) -> None:
        """Remove the scratch file."""
        self.file.close()
        Path(self.file.name).unlink()

    def find(self, skip: Indices, *, remove: bool) -> NearCopies:
        """Compare the rows but those of ``skip``; uses up the index.

        With ``remove`` a row is paired with the first earlier row that stays, and then stays not itself: no two rows
        that stay are near copies, and each row that goes is one of a row that stays. Without, all pairs are returned.
        """
        self.file.flush()
        rows = np.frombuffer(self.rows, np.int64)
        buckets = self._number_buckets()
        wanted = ~np.isin(rows, skip)
        candidates = np.flatnonzero(wanted & (buckets > 0).any(axis=1))
        candidates = candidates[np.argsort(rows[candidates])]
        members: dict[int, list[int]] = {}
        pairs: list[tuple[int, int]] = []
        for slot in candidates.tolist():
            own = [members.setdefault(bucket, []) for bucket in buckets[slot].tolist() if bucket]
            matches = self._matches(slot, {other for bucket in own for other in bucket}, first=remove)
            pairs += [(int(rows[slot]), int(rows[other])) for other in matches]
            if remove and matches:
                continue
            for bucket in own:
                if len(bucket) < BUCKET:
                    bucket.append(slot)
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return NearCopies(rows=found[:, 0], originals=found[:, 1], checked=int(wanted.sum()))

    def _number_buckets(self) -> npt.NDArray[np.uint32]:
        """In place of each band hash, the number of the bucket of rows that share it; 0 where no other row does."""
        hashes = np.frombuffer(self.hashes, np.uint32).reshape(-1, self.bands)
        first = 1
        for band in hashes.T:
            order = np.argsort(band)
            ordered = band[order]
            same = np.zeros(len(band) + 1, bool)
            same[1:-1] = ordered[1:] == ordered[:-1]
            starts = same[1:] & ~same[:-1]
            numbers = first + np.cumsum(starts) - 1
            band[order] = np.where(same[1:] | same[:-1], numbers, 0)
            first += int(starts.sum())
        return hashes

    def _matches(self, slot: int, others: set[int], *, first: bool) -> list[int]:
        matches: list[int] = []
        if not others:
            return matches
        own = self._read(slot)
        for other in sorted(others, key=self.rows.__getitem__):
            few, many = sorted((self.sizes[slot], self.sizes[other]))
            if few >= self.threshold * many * 0.5 and similarity(own, self._read(other)) >= self.threshold:
                matches.append(other)
                if first:
                    break
        return matches

    def _read(self, slot: int) -> Shingles:
        data = os.pread(self.file.fileno(), 4 * self.sizes[slot], self.offsets[slot])
        return np.frombuffer(data, np.uint32)
