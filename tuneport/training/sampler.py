"""The order in which an epoch takes the rows: it follows from the seed and the epoch alone."""

from __future__ import annotations

import heapq
import typing as t
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from tuneport.training.packing import Made, Packs, numbers

Order = npt.NDArray[t.Any]  # numbers of rows, (rows,)
DrawRows = Callable[[torch.Generator], Order]
Draw = DrawRows | Callable[[torch.Generator], "ShuffledPacks"]
CHUNK = 1 << 16  # items that are Python's objects at once: as such a row takes several times its 8 bytes


class EpochSampler(Sampler[t.Any]):
    """The numbers of ``size`` items, rows or packs of rows, as ``draw`` gives them for each epoch.

    A resume finds its place in an epoch by counting items; no row is read again. The generators that training
    draws from play no part, as their states are not those of the epoch's start.
    """

    def __init__(self, size: int, seed: int, draw: Draw) -> None:
        self.size, self.seed, self.draw = size, seed, draw
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[t.Any]:
        drawn = self.draw(torch.Generator().manual_seed(self.seed + self.epoch))
        return iter(drawn) if isinstance(drawn, ShuffledPacks) else _numbers(drawn)


def _numbers(drawn: Order) -> Iterator[int]:
    for start in range(0, len(drawn), CHUNK):
        yield from drawn[start : start + CHUNK].tolist()


def shuffled(rows: int) -> DrawRows:
    """Row numbers at random."""
    return lambda generator: _permutation(rows, generator)


def _permutation(rows: int, generator: torch.Generator) -> Order:
    return torch.randperm(rows, generator=generator).numpy()


def similar(lengths: npt.NDArray[np.int32], rows_per_step: int) -> DrawRows:
    """Row numbers at random, but so that those of a step are of similar length.

    In the order of transformers' `get_length_grouped_indices`: rows at random in groups of up to 50 steps, each group
    by length, and the longest row of all first.
    """
    steps = max(1, min(len(lengths) // (rows_per_step * 4), 50))
    size = steps * rows_per_step

    def draw(generator: torch.Generator) -> Order:
        found = _permutation(len(lengths), generator)
        for start in range(0, len(found), size):
            group = found[start : start + size]
            group[:] = group[np.argsort(-lengths[group], kind="stable")]
        longest = int(torch.argmax(torch.from_numpy(lengths[found[::size]]))) * size
        found[0], found[longest] = found[longest], found[0]
        return found

    return draw


@dataclass(frozen=True, kw_only=True)
class ShuffledPacks:
    """Packs of an epoch in their order, as tuples of row numbers, which there are only one at a time."""

    made: Made
    order: Order

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for number in _numbers(self.order):
            yield tuple(self.made[number].tolist())


def packed(packs: Packs) -> Draw:
    """Packs at random, made again each time of what rows fit together."""

    def draw(generator: torch.Generator) -> ShuffledPacks:
        rows = len(packs.rows)
        made = packs.made(_permutation(rows, generator).astype(numbers(rows)))
        return ShuffledPacks(made=made, order=_permutation(len(made), generator))

    return draw


def balanced(rows: Order, lengths: npt.NDArray[np.int32], *, batch: int, batches: int) -> Order:
    """The rows of each step, which are ``batches`` of ``batch`` rows, so that its batches have about as many tokens.

    Longest row first, each row goes to the batch that has the fewest tokens and is not full. Rows never move between
    steps; a short last step is left alone.
    """
    step, found = batch * batches, rows.copy()
    for start in range(0, len(found) - step + 1, step):
        waiting: list[tuple[int, int]] = [(0, number) for number in range(batches)]  # already a heap
        dealt: list[list[int]] = [[] for _ in waiting]
        own = found[start : start + step]
        tokens_of = dict(zip(own.tolist(), lengths[own].tolist(), strict=True))
        for row in sorted(tokens_of, key=tokens_of.__getitem__, reverse=True):
            tokens, number = heapq.heappop(waiting)
            dealt[number].append(row)
            if len(dealt[number]) < batch:
                heapq.heappush(waiting, (tokens + tokens_of[row], number))
        own[:] = [row for of_batch in dealt for row in of_batch]
    return found
