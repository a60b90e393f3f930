"""What training batches hold, counted."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Callable

import torch
from torch import distributed

from tuneport.labels import IGNORED

if t.TYPE_CHECKING:
    from tuneport.training.padding_free.choose import PaddingFree


CONTENTS = "contents"  # what a training batch says of itself, beside its tensors
Batch = dict[str, t.Any]


@dc.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a batch holds. It travels with the batch, as the collator may run in another process."""

    row_ids: tuple[str, ...]
    tokens: int  # without padding; of the targets, too, where they are a sequence of their own
    computed_tokens: int  # tokens and padding
    squared_lengths: int  # the sum of the rows' squared numbers of tokens: what attention costs
    unlabelled: int  # tokens that predict none with a label, where labels are of the next token


@dc.dataclass(kw_only=True)
class Counts:
    """What training took in since it was last asked."""

    rows: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    squared_lengths: int = 0
    without_logits: int = 0  # tokens that a language model's head is not given

    def add(self, contents: Contents, padding_free: PaddingFree | None = None, lengths: t.Any = None) -> None:
        self.rows += len(contents.row_ids)
        self.tokens += contents.tokens
        self.computed_tokens += (
            contents.computed_tokens
            if padding_free is None
            else padding_free.computed_tokens(contents.computed_tokens, lengths)
        )
        self.squared_lengths += contents.squared_lengths
        self.without_logits += contents.unlabelled if padding_free is not None and padding_free.skips_unlabelled else 0


def with_contents(collate: Callable[[list[Batch]], Batch], own_targets: bool) -> Callable[[list[Batch]], Batch]:
    """Return the collator with `Contents` in each of its batches.

    ``own_targets``: labels that are token ids are a sequence of their own, as in encoder–decoders.
    """
    return _WithContents(collate, own_targets)


@dc.dataclass(frozen=True)
class _WithContents:
    collate: Callable[[list[Batch]], Batch]
    own_targets: bool

    def __call__(self, rows: list[Batch]) -> Batch:
        batch = self.collate(rows)
        lengths, labels = [len(row["input_ids"]) for row in rows], batch.get("labels")
        labelled = 0 if labels is None or labels.dim() < 2 else int(labels[:, 1:].ne(IGNORED).sum())
        if not self.own_targets or labels is None or labels.dim() < 2 or labels.is_floating_point():
            labels = None  # no tokens of their own
        contents = Contents(
            row_ids=tuple(row["row_id"] for row in rows),
            tokens=sum(lengths) + (0 if labels is None else sum(len(row["labels"]) for row in rows)),
            computed_tokens=batch["input_ids"].numel() + (0 if labels is None else labels.numel()),
            squared_lengths=sum(length**2 for length in lengths),
            unlabelled=sum(lengths) - labelled,
        )
        return batch | {CONTENTS: contents}


def summed(counts: Counts, world_size: int, device: torch.device) -> Counts:
    """The counts of all ranks together."""
    if world_size == 1:
        return counts
    values = torch.tensor(dc.astuple(counts), dtype=torch.int64, device=device)
    distributed.all_reduce(values)
    return Counts(**dict(zip(dc.asdict(counts), values.tolist(), strict=True)))
