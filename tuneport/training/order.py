"""The order in which an epoch takes the rows: it follows from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class Order(Sampler[int]):
    """Row numbers, shuffled anew each epoch; with ``lengths``, rows of similar length stand together.

    A resume finds its place in an epoch by counting row numbers; no row is read again. The generators that training
    draws from play no part, as their states are not those of the epoch's start.
    """

    def __init__(self, rows: int, seed: int, lengths: list[int] | None, rows_per_step: int) -> None:
        self.rows = rows
        self.seed = seed
        self.lengths = lengths
        self.rows_per_step = rows_per_step
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.lengths is not None:
            group: Any = get_length_grouped_indices
            return iter(group(self.lengths, self.rows_per_step, generator=generator))
        return iter(torch.randperm(self.rows, generator=generator).tolist())
