"""Put rows together into packs of so many tokens, which then are what batches are made of.

All is held in arrays: 4 bytes a row for its tokens, 4 for its place in the packs of an epoch, 8 a pack for its begin.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasets import Dataset as ArrowDataset
from torch.utils.data import Dataset

Lengths = npt.NDArray[np.int32]
Rows = npt.NDArray[t.Any]  # numbers of rows: 32 bits, where they suffice
CHUNK = 1 << 20  # rows that are placed at once


@dataclass(frozen=True, kw_only=True)
class Made(Sequence[Rows]):
    """Packs of rows, side by side in ``rows``; each begins where ``starts`` (packs + 1,) says."""

    rows: Rows
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @t.overload
    def __getitem__(self, number: int) -> Rows: ...
    @t.overload
    def __getitem__(self, number: slice) -> list[Rows]: ...
    def __getitem__(self, number: int | slice) -> Rows | list[Rows]:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        place = range(len(self))[number]
        return self.rows[self.starts[place] : self.starts[place + 1]]


class Packs(Dataset[t.Any]):
    """The rows of a dataset, asked for by packs: tuples of row numbers, at most ``max_seq_length`` tokens each.

    Of packs that are asked for together it gives the rows, in one list. Its length is the number of packs, which
    depends on the rows' lengths alone. A row of more tokens than that is a pack by itself.
    """

    def __init__(self, rows: ArrowDataset, max_seq_length: int, *, targets: bool) -> None:
        self.rows, self.max_seq_length, self.tokens = rows, max_seq_length, token_counts(rows, targets=targets)
        self._packs = len(self.made(np.arange(len(rows), dtype=numbers(len(rows)))))

    def __len__(self) -> int:
        return self._packs

    def __getitem__(self, pack: tuple[int, ...]) -> list[dict[str, t.Any]]:
        return self.__getitems__([pack])

    def __getitems__(self, packs: Sequence[tuple[int, ...]]) -> list[dict[str, t.Any]]:
        rows: list[dict[str, t.Any]] = self.rows.__getitems__([row for pack in packs for row in pack])
        return rows

    def made(self, order: Rows) -> Made:
        """All packs; of rows of one length those that come first in ``order`` are taken first."""
        return best_fit_decreasing(self.tokens, self.max_seq_length, order)


def numbers(rows: int) -> npt.DTypeLike:
    """The type that holds the numbers of so many rows."""
    return np.int32 if rows < 2**31 else np.int64


def best_fit_decreasing(lengths: Lengths, capacity: int, order: Rows | None = None) -> Made:
    """The rows of ``lengths`` in as few packs as this gets them into (D. S. Johnson, 1973).

    Longest first, of one length in ``order``, each goes into the pack with the least room that still fits it, else into
    a new one. Rows of one length are placed together: the pack that is best for one is the best for the next, too,
    until nothing more of that length fits, so packs of one room take as many each. That makes as many array operations
    as there are lengths and rooms, whatever the number of rows.
    """
    order = np.arange(len(lengths), dtype=numbers(len(lengths))) if order is None else order
    rows = _longest_first(lengths, order)
    pack_of, slots = np.empty(len(rows), numbers(len(rows))), np.empty(len(rows), np.int32)
    filling = _Filling(capacity)
    start = 0
    for length, count in _counted(lengths):
        end = start + count
        for packs, each in filling.take(length, count):
            taken = np.repeat(packs, each)[: end - start]
            pack_of[start : start + len(taken)] = taken
            within = np.arange(len(taken)) % each
            slots[start : start + len(taken)] = filling.held[taken] + within
            filling.held[packs] += np.bincount(np.arange(len(taken)) // each, minlength=len(packs))
            start += len(taken)
    starts = np.concatenate([[0], np.cumsum(filling.held[: filling.count], dtype=np.int64)])
    placed = np.empty_like(rows)
    for begin in range(0, len(rows), CHUNK):
        part = slice(begin, begin + CHUNK)
        placed[starts[pack_of[part]] + slots[part]] = rows[part]
    return Made(rows=placed, starts=starts)


def _longest_first(lengths: Lengths, order: Rows) -> Rows:
    longest = int(lengths.max(initial=0))
    shorter = lengths[order]
    np.subtract(longest, shorter, out=shorter)
    keys = shorter.astype(np.uint16) if longest < 1 << 16 else shorter  # sorted by digits, in less time
    del shorter
    return order[np.argsort(keys, kind="stable")]


def _counted(lengths: Lengths) -> Iterator[tuple[int, int]]:
    """Each length that there is, the longest first, with how many rows have it."""
    counts = np.bincount(lengths)
    for length in np.flatnonzero(counts)[::-1].tolist():
        yield length, int(counts[length])


class _Filling:
    """Packs with the room that is left in each; ``held`` (packs,): how many rows each holds."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        self.held = np.zeros(1024, np.int32)
        self.by_room: dict[int, list[Rows]] = {}  # packs, the last one first to be taken
        self.rooms = 0  # a bit for each room that some pack has left, so that the least sufficient is found at once

    def take(self, length: int, count: int) -> Iterator[tuple[Rows, int]]:
        """Place so many rows: packs in the order in which they take rows, and how many each takes, the last one perhaps
        fewer."""
        while count:
            fitting = self.rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else max(self.capacity, length)
            each = room // length if length else count
            most = min(-(-count // each), max(1, CHUNK // each))
            packs = self._top(room, most) if fitting else self._new(most)
            placed = min(count, each * len(packs))
            yield packs, each
            whole, rest = divmod(placed, each)
            self._leave(room - each * length, packs[:whole])
            if rest:
                self._leave(room - rest * length, packs[whole:])
            count -= placed

    def _top(self, room: int, most: int) -> Rows:
        """Up to so many packs with this room, the last ones first; they are not among those with it any more."""
        taken: list[Rows] = []
        waiting = self.by_room[room]
        while most and waiting:
            packs = waiting.pop()
            if len(packs) > most:
                waiting.append(packs[:-most])
                packs = packs[-most:]
            taken.append(packs[::-1])
            most -= len(packs)
        if not waiting:
            del self.by_room[room]
            self.rooms ^= 1 << room
        return np.concatenate(taken)

    def _new(self, packs: int) -> Rows:
        first, self.count = self.count, self.count + packs
        if self.count > len(self.held):
            self.held = np.concatenate([self.held, np.zeros(max(self.count, 2 * len(self.held)), np.int32)])
        return np.arange(first, self.count, dtype=np.int32 if self.count < 2**31 else np.int64)

    def _leave(self, room: int, packs: Rows) -> None:
        if len(packs):
            self.by_room.setdefault(room, []).append(packs)
            self.rooms |= 1 << room


def token_counts(rows: ArrowDataset, *, targets: bool) -> Lengths:
    """The tokens of each row, (rows,); with ``targets``, labels that are tokens of their own count as well."""
    lists = [name for name, feature in rows.features.items() if hasattr(feature, "feature")]
    names = [name for name in lists if name == "input_ids" or (targets and name == "labels")]
    found: Lengths = np.zeros(len(rows), np.int32)
    for name in names:
        start = 0
        for chunk in rows.data.column(name).chunks:
            found[start : start + len(chunk)] += chunk.value_lengths().to_numpy()
            start += len(chunk)
    return found
