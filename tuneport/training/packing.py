"""Put rows together into packs of so many tokens, which then are what batches are made of."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from datasets import Dataset as ArrowDataset
from torch.utils.data import Dataset

Lengths = npt.NDArray[np.int64]


class Packs(Dataset[t.Any]):
    """The rows of a dataset, asked for by packs: tuples of row numbers, at most ``max_seq_length`` tokens each.

    Of packs that are asked for together it gives the rows, in one list. Its length is the number of packs, which
    depends on the rows' lengths alone. A row of more tokens than that is a pack by itself.
    """

    def __init__(self, rows: ArrowDataset, max_seq_length: int, *, targets: bool) -> None:
        self.rows, self.max_seq_length, self.tokens = rows, max_seq_length, token_counts(rows, targets=targets)
        self._packs = len(self.made(np.arange(len(rows))))

    def __len__(self) -> int:
        return self._packs

    def __getitem__(self, pack: tuple[int, ...]) -> list[dict[str, t.Any]]:
        return self.__getitems__([pack])

    def __getitems__(self, packs: Sequence[tuple[int, ...]]) -> list[dict[str, t.Any]]:
        rows: list[dict[str, t.Any]] = self.rows.__getitems__([row for pack in packs for row in pack])
        return rows

    def made(self, order: Lengths) -> list[tuple[int, ...]]:
        """All packs; of rows of one length those that come first in ``order`` are taken first."""
        packs = best_fit_decreasing(self.tokens[order], self.max_seq_length)
        return [tuple(order[pack].tolist()) for pack in packs]


def best_fit_decreasing(lengths: Lengths, capacity: int) -> list[list[int]]:
    """The places of ``lengths`` in as few packs as this gets them into (D. S. Johnson, 1973).

    Longest first, each goes into the pack with the least room that still fits it, else into a new one. ``rooms`` has a
    bit set for each room that some pack has left, so the least sufficient room is its lowest set bit from ``length``
    on: the whole takes time linear in the rows.
    """
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # packs, by the room that is left in them
    rooms = 0  # a bit for each room that there is
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            packs[pack].append(place)
        else:
            room, pack = max(capacity, length), len(packs)
            packs.append([place])
        by_room.setdefault(room - length, []).append(pack)
        rooms |= 1 << (room - length)
    return packs


def token_counts(rows: ArrowDataset, *, targets: bool) -> Lengths:
    """The tokens of each row; with ``targets``, labels that are tokens of their own count as well."""
    lists = [name for name, feature in rows.features.items() if hasattr(feature, "feature")]
    names = [name for name in lists if name == "input_ids" or (targets and name == "labels")]
    columns = [rows.data.column(name).chunks for name in names]
    lengths = [np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks]) for chunks in columns]
    found: Lengths = np.sum(lengths, axis=0, dtype=np.int64)
    return found
