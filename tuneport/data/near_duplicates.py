"""Find rows whose texts are nearly equal: MinHash bands propose pairs, the exact Jaccard index of the shingles decides.

A text's shingles are its runs of `SHINGLE` characters, lower case, single spaces. A row of several texts is a
near duplicate of another only if each of its texts is. The method is that of Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
PENDING_ROWS, PENDING_CHARACTERS = 1000, 1 << 18  # that are hashed at once

Indices = npt.NDArray[np.int64]
Shingles = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Pairs of nearly equal rows, the earlier one in ``originals``; ``checked`` of the rows were compared."""

    rows: Indices
    originals: Indices
    checked: int

    def of(self, chosen: npt.NDArray[np.bool_]) -> NearDuplicates:
        """Those pairs that ``chosen`` (pairs,) says."""
        return replace(self, rows=self.rows[chosen], originals=self.originals[chosen])


def shingles(identities: Sequence[str]) -> list[Shingles]:
    """Sorted hashes of each identity's shingles; the upper 4 bits number the text, as texts are separated by NUL."""
    texts, keys = [], []  # a key: the identity's place, and in the lowest 4 bits the number of the text
    for place, identity in enumerate(identities):
        for number, text in enumerate(identity.split("\0", MOST_TEXTS - 1)):
            texts.append(" ".join(text.lower().split()))
            keys.append(place << 4 | number)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    counts = np.maximum(1, lengths - SHINGLE + 1)
    of_text = np.repeat(np.arange(len(texts)), counts)
    within = np.arange(len(of_text)) - np.repeat(counts.cumsum() - counts, counts)
    starts = np.repeat(lengths.cumsum() - lengths, counts) + within
    characters = np.frombuffer("".join((*texts, "\0" * SHINGLE)).encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = np.zeros(len(of_text), np.uint64)
    for offset in range(SHINGLE):
        longer = hashes * np.uint64(0x9E3779B97F4A7C15) + characters[starts + offset] + np.uint64(1)
        hashes = np.where(offset < lengths[of_text], longer, hashes)
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    # One sorting for all identities: their place, the number of the text and the hash are one number.
    found = np.sort(np.array(keys, np.uint64)[of_text] << np.uint64(28) | hashes >> np.uint64(36))
    is_first = np.append(True, found[1:] != found[:-1])  # np.unique hashes: 100 times as long
    found = found[is_first]
    ends = np.searchsorted(found, np.arange(1, len(identities), dtype=np.uint64) << np.uint64(32))
    return np.split(found.astype(np.uint32), ends)


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


def sample_rows(rows: int, seed: int) -> Indices:
    """Which of so many rows to compare where there is no need to compare all: some, with equal chance, in order."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, SAMPLE_ROWS), replace=False)
    return np.sort(chosen).astype(np.int64)


class NearDuplicateIndex:
    """Rows to compare: band hashes in memory, shingles in a scratch file.

    At the default threshold of 0.8 a row takes 104 bytes of memory, and 4 bytes of disk for each character of its text.
    """

    def __init__(self, scratch: Path, threshold: float) -> None:
        self.threshold = threshold
        self.length = rows_per_band(threshold)
        self.bands = PERMUTATIONS // self.length
        self.rows = array("q")
        self.offsets = array("q")
        self.sizes = array("I")
        self.hashes = array("I")
        self.pending: list[str] = []
        self.characters = 0  # of the pending ones
        self.file = scratch.open("w+b")
        self.end = 0
        mixing = np.random.default_rng(1).integers(1, 2**63, self.length, dtype=np.uint64)
        self.mixing = mixing * np.uint64(2) + np.uint64(1)

    def add(self, row: int, identity: str) -> None:
        """Take in a row by its number; numbers must grow."""
        self.rows.append(row)
        self.pending.append(identity)
        self.characters += len(identity)
        if len(self.pending) == PENDING_ROWS or self.characters >= PENDING_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if not self.pending:
            return
        found = shingles(self.pending)
        self.file.seek(self.end)  # a process that was lost may have written to the same file
        for row in found:
            self.offsets.append(self.end)
            self.sizes.append(len(row))
            self.end += row.nbytes
        whole = np.concatenate(found)
        self.file.write(whole.tobytes())
        self.hashes.frombytes(self._bands(whole, [len(row) for row in found]).tobytes())
        self.pending.clear()
        self.characters = 0

    def _bands(self, found: Shingles, sizes: list[int]) -> npt.NDArray[np.uint32]:
        """(rows, bands): hashes of the parts of the rows' MinHash signatures."""
        from rensa import RMinHash

        ends = np.cumsum([0, *sizes], dtype=np.uint64)
        signatures = RMinHash.digest_matrix_from_flat_token_hashes(found.astype(np.uint64), ends, PERMUTATIONS, 1)
        values = np.array(signatures.to_rows(), np.uint64)[:, : self.bands * self.length]
        mixed = (values.reshape(-1, self.bands, self.length) * self.mixing).sum(axis=2, dtype=np.uint64)
        hashes: npt.NDArray[np.uint32] = ((mixed * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)).astype(np.uint32)
        return hashes

    def close(self) -> None:
        """Remove the scratch file."""
        self.file.close()
        Path(self.file.name).unlink()

    def find(self, skip: Indices, *, remove: bool) -> NearDuplicates:
        """Compare the rows but those of ``skip``; uses up the index.

        With ``remove``, a near duplicate of an earlier row that is kept is dropped and paired with that row, so no two
        kept rows are near duplicates. Without, all pairs are returned.
        """
        self._flush()
        self.file.flush()
        rows = np.frombuffer(self.rows, np.int64)
        buckets = self._number_buckets()
        wanted = ~np.isin(rows, skip)
        candidates = np.flatnonzero(wanted & (buckets > 0).any(axis=1))
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
        return NearDuplicates(rows=found[:, 0], originals=found[:, 1], checked=int(wanted.sum()))

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
