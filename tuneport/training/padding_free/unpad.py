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
    """The rows of a padded batch: where their tokens stand in it, and where in one row of them all."""

    lengths: tuple[int, ...]
    width: int
    starts: torch.Tensor  # of each row, among the tokens
    in_batch: torch.Tensor  # of each token, in the batch
    positions: torch.Tensor  # of each token, in its row
    bounds: torch.Tensor  # see `varlen`

    def packed(self, batch: torch.Tensor) -> torch.Tensor:
        """(rows, width, …) → (1, tokens, …)."""
        return batch.flatten(0, 1).index_select(0, self.in_batch)[None]

    def padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) → (rows, width, …), with zeros where there is no token."""
        size = (len(self.lengths) * self.width, *tokens.shape[2:])
        spread: torch.Tensor = tokens.new_zeros(size).index_copy(0, self.in_batch, tokens[0])
        return spread.view(len(self.lengths), self.width, *tokens.shape[2:])


def rows_of(lengths: Sequence[int], width: int, device: torch.device) -> Rows:
    """The rows of a batch that is padded to ``width`` on the right."""
    counts = torch.tensor(lengths)
    starts = counts.cumsum(0) - counts
    row = torch.arange(len(counts)).repeat_interleave(counts)
    positions = torch.arange(int(counts.sum())) - starts[row]
    return Rows(
        lengths=tuple(lengths),
        width=width,
        starts=starts.to(device, non_blocking=True),
        in_batch=(row * width + positions).to(device, non_blocking=True),
        positions=positions[None].to(device, non_blocking=True),
        bounds=bounds(lengths, device),
    )


class Unpadding:
    """A model that takes ``lengths`` beside a batch and, while ``enabled``, computes with that many tokens of each row.

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
    def measure(rows: Sequence[dict[str, t.Any]], batch: dict[str, t.Any]) -> tuple[int, ...]:
        """The ``lengths`` of a batch that was made of these rows."""
        return tuple(len(row["input_ids"]) for row in rows)

    @staticmethod
    def computed_tokens(lengths: Sequence[int]) -> int:
        """How many tokens are computed with."""
        return sum(lengths)

    @contextlib.contextmanager
    def tested(self) -> t.Iterator[None]:
        """Within this block nothing changes; see `LengthBuckets.tested`."""
        yield

    def _wrap(self, model: t.Any) -> None:
        plain = model.forward

        @functools.wraps(plain)
        def forward(*args: t.Any, lengths: Sequence[int] | None = None, **inputs: t.Any) -> t.Any:
            if lengths is None or not self.enabled:
                return plain(*args, **inputs)
            ids = inputs["input_ids"]
            self._rows = rows_of(lengths, ids.shape[1], ids.device)
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
        given["attention_mask"] = rows.bounds
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
        row, column = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        found = t.cast(t.Any, self.head).linear(
            hidden[0].index_select(0, rows.starts[row] + column), targets=labels[row, column + 1]
        )
        if torch.is_grad_enabled():
            return CausalLMOutput(loss=found / max(len(row), 1))
        per_token = found.new_full((*labels[:, 1:].shape, 2), -1.0)
        per_token[row, column] = found
        return CausalLMOutput(loss=found[:, 0].mean(), logits=t.cast(t.Any, per_token))
