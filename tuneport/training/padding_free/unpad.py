"""Let a transformers model compute with the tokens of a padded batch alone.

Batches, heads, losses and metrics keep their shapes: the trunk of a model, which is all of it but the head, takes a
padded batch's tokens in one row, and its outputs are spread over the padded positions again. So no task knows of it.
Of a decoder that learns to write, only the hidden states of labelled tokens go on to the head.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import functools
import inspect
import typing as t
from collections.abc import Sequence

import torch
from transformers.modeling_outputs import CausalLMOutput

from tuneport.labels import IGNORED
from tuneport.training.padding_free import chunked_cross_entropy
from tuneport.training.padding_free.varlen_attention import bounds


@dc.dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a padded batch: where their tokens stand in it, and where in one row of them all.

    The collator makes it, from what it knows on the CPU: a forward pass that asked the tensors would wait for the GPU.
    """

    lengths: tuple[int, ...]
    width: int
    in_batch: torch.Tensor  # of each token, its place in the batch
    positions: torch.Tensor  # (1, tokens): of each token, in its row
    labelled: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # of each label: row, column, token before

    def to(self, device: t.Any, non_blocking: bool = True) -> Rows:
        """The same on a device; called wherever a batch is moved."""
        moved = [part.to(device, non_blocking=non_blocking) for part in (self.in_batch, self.positions)]
        labelled = self.labelled and tuple(part.to(device, non_blocking=non_blocking) for part in self.labelled)
        return dc.replace(self, in_batch=moved[0], positions=moved[1], labelled=t.cast(t.Any, labelled))

    def packed(self, batch: torch.Tensor) -> torch.Tensor:
        """(rows, width, …) → (1, tokens, …)."""
        return batch.flatten(0, 1).index_select(0, self.in_batch)[None]

    def padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) → (rows, width, …), with zeros where there is no token."""
        size = (len(self.lengths) * self.width, *tokens.shape[2:])
        spread: torch.Tensor = tokens.new_zeros(size).index_copy(0, self.in_batch, tokens[0])
        return spread.view(len(self.lengths), self.width, *tokens.shape[2:])


def rows_of(lengths: Sequence[int], width: int, labels: torch.Tensor | None = None) -> Rows:
    """The rows of a batch that is padded to ``width`` on the right.

    ``labels``: (rows, width), of a decoder that learns to write; each is predicted at the token before it.
    """
    counts = torch.tensor(lengths)
    starts = counts.cumsum(0) - counts
    row = torch.arange(len(counts)).repeat_interleave(counts)
    positions = torch.arange(int(counts.sum())) - starts[row]
    labelled = None
    if labels is not None:
        of_row, column = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        labelled = (of_row, column, starts[of_row] + column)
    return Rows(
        lengths=tuple(lengths),
        width=width,
        in_batch=row * width + positions,
        positions=positions[None],
        labelled=labelled,
    )


@dc.dataclass(frozen=True, kw_only=True)
class Measure:
    """What a model is told of a batch beside its tensors: its `Rows`."""

    gives_losses: bool

    def __call__(self, rows: Sequence[dict[str, t.Any]], batch: dict[str, t.Any]) -> Rows:
        lengths = [len(row["input_ids"]) for row in rows]
        return rows_of(lengths, batch["input_ids"].shape[1], batch.get("labels") if self.gives_losses else None)


class Unpadding:
    """A model that takes ``lengths``, a batch's `Rows`, beside it and, while ``enabled``, computes with their tokens.

    Without ``lengths``, or while not enabled, the model is as it was.
    """

    def __init__(self, model: t.Any, label_smoothing: float = 0.0) -> None:
        self.enabled = False
        self.label_smoothing = label_smoothing  # of the losses of labelled tokens; else the model smooths its own
        self.shifted = True  # what gives losses here is a decoder: its logits are of the next token
        self.trunk = model.base_model
        self.head = chunked_cross_entropy.head_of(model) if model.can_generate() else None
        self._rows: Rows | None = None
        self._stays_packed = False
        self.measure = Measure(gives_losses=self.gives_losses)
        self._names = list(inspect.signature(self.trunk.forward).parameters)
        self.trunk.register_forward_pre_hook(self._pack, with_kwargs=True)
        self.trunk.register_forward_hook(self._pad)
        if (pooler := getattr(self.trunk, "pooler", None)) is not None:
            pooler.register_forward_pre_hook(self._pad_for_pooler)
        if self.head is not None:
            self._let_head_give_losses(self.head)
        self._wrap(model)

    @property
    def gives_losses(self) -> bool:
        """Whether the model gives losses of labelled tokens in the place of logits, as `likelihood.token_losses`."""
        return self.head is not None

    @staticmethod
    def computed_tokens(lengths: Rows) -> int:
        """How many tokens are computed with."""
        return sum(lengths.lengths)

    @contextlib.contextmanager
    def tested(self) -> t.Iterator[None]:
        """Within this block nothing changes; see `LengthBuckets.tested`."""
        yield

    def _wrap(self, model: t.Any) -> None:
        plain = model.forward

        @functools.wraps(plain)
        def forward(*args: t.Any, lengths: Rows | None = None, **inputs: t.Any) -> t.Any:
            if lengths is None or not self.enabled:
                return plain(*args, **inputs)
            self._rows = lengths.to(inputs["input_ids"].device)
            try:
                if self.head is not None and inputs.get("labels") is not None:
                    return self._learn_labelled(self._rows, **inputs)
                return plain(*args, **inputs)
            finally:
                self._rows = None

        model.forward = forward

    def _pack(self, trunk: t.Any, args: tuple[t.Any, ...], kwargs: dict[str, t.Any]) -> t.Any:
        rows = self._rows
        if rows is None:
            return None
        given = dict(zip(self._names, args, strict=False)) | kwargs
        for name in ("input_ids", "token_type_ids"):
            if given.get(name) is not None:
                ids, given[name] = given[name], rows.packed(given[name])
                if name == "input_ids":
                    given["position_ids"] = self._positions(rows, ids)
        given["attention_mask"] = bounds(rows.lengths, rows.in_batch.device)
        if "use_cache" in self._names:
            given["use_cache"] = False
        return (), given

    def _positions(self, rows: Rows, ids: torch.Tensor) -> torch.Tensor:
        embeddings: t.Any = getattr(self.trunk, "embeddings", None)
        if hasattr(embeddings, "create_position_ids_from_input_ids"):  # RoBERTa and its like count from their padding
            return rows.packed(embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx))
        return rows.positions

    def _pad(self, trunk: t.Any, args: t.Any, output: t.Any) -> t.Any:
        rows = self._rows
        if rows is None or self._stays_packed:
            return None
        if isinstance(output, tuple):
            return (rows.padded(output[0]), *output[1:])
        output.last_hidden_state = rows.padded(output.last_hidden_state)
        return output

    def _pad_for_pooler(self, pooler: t.Any, args: tuple[t.Any, ...]) -> t.Any:
        rows = self._rows
        return None if rows is None or args[0].dim() != 3 else (rows.padded(args[0]), *args[1:])

    def _let_head_give_losses(self, head: chunked_cross_entropy.Head) -> None:
        """Let the head's own forward compute the losses.

        It runs inside the head's call so that FSDP and ZeRO-3 gather the head's weights exactly once.
        """
        plain = head.linear.forward

        @functools.wraps(plain)
        def forward(hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
            if targets is None:
                return plain(hidden)
            if torch.is_grad_enabled():
                return chunked_cross_entropy.summed_loss(head, hidden, targets, self.label_smoothing)
            return chunked_cross_entropy.losses(head, hidden, targets)

        t.cast(t.Any, head.linear).forward = forward

    def _learn_labelled(self, rows: Rows, *, labels: torch.Tensor, **inputs: t.Any) -> CausalLMOutput:
        """The mean loss; without gradients also (rows, width - 1, 2) as `likelihood.token_losses` gives it."""
        self._stays_packed = True
        try:
            hidden = self.trunk(**inputs)[0]
        finally:
            self._stays_packed = False
        row, column, before = t.cast(t.Any, rows.labelled)
        found = t.cast(t.Any, self.head).linear(hidden[0].index_select(0, before), targets=labels[row, column + 1])
        if torch.is_grad_enabled():
            return CausalLMOutput(loss=found / max(len(row), 1))
        per_token = found.new_full((*labels[:, 1:].shape, 2), -1.0)
        per_token[row, column] = found
        return CausalLMOutput(loss=found[:, 0].mean(), logits=t.cast(t.Any, per_token))
