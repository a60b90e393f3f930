"""The order in which an epoch takes the rows: it follows from the seed and the epoch alone."""

from __future__ import annotations

import heapq
import typing as t
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

if t.TYPE_CHECKING:
    from tuneport.training.packing import Packs

Draw = Callable[[torch.Generator], Sequence[t.Any]]


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
        return iter(self.draw(torch.Generator().manual_seed(self.seed + self.epoch)))


def shuffled(rows: int) -> Draw:
    """Row numbers at random."""
    return lambda generator: torch.randperm(rows, generator=generator).tolist()


def similar(lengths: list[int], rows_per_step: int) -> Draw:
    """Row numbers at random, but so that those of a step are of similar length."""
    group: t.Any = get_length_grouped_indices
    return lambda generator: group(lengths, rows_per_step, generator=generator)


def packed(packs: Packs) -> Draw:
    """Packs at random, made again each time of what rows fit together."""

    def draw(generator: torch.Generator) -> list[tuple[int, ...]]:
        made = packs.made(torch.randperm(len(packs.rows), generator=generator).numpy().astype(np.int64))
        return [made[number] for number in torch.randperm(len(made), generator=generator).tolist()]

    return draw


def balanced(rows: Sequence[int], lengths: Sequence[int], *, batch: int, batches: int) -> list[int]:
    """The rows of each step, which are ``batches`` of ``batch`` rows, so that its batches have about as many tokens.

    Longest row first, each row goes to the batch that has the fewest tokens and is not full. Rows never move between
    steps; a short last step is left alone.
    """
    step, found = batch * batches, list(rows)
    for start in range(0, len(found) - step + 1, step):
        waiting: list[tuple[int, int]] = [(0, number) for number in range(batches)]  # already a heap
        dealt: list[list[int]] = [[] for _ in waiting]
        for row in sorted(found[start : start + step], key=lengths.__getitem__, reverse=True):
            tokens, number = heapq.heappop(waiting)
            dealt[number].append(row)
            if len(dealt[number]) < batch:
                heapq.heappush(waiting, (tokens + lengths[row], number))
        found[start : start + step] = [row for own in dealt for row in own]
    return found
