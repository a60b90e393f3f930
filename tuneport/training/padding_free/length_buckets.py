"""Compute a padded batch in length buckets: rows of similar length together, each bucket as wide as its longest row.

For models whose attention needs rows of one length. The batch's rows, loss and gradients stay the same.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import functools
import typing as t
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers.utils.generic import ModelOutput

from tuneport.labels import IGNORED
from tuneport.modeling.likelihood import shifted, token_losses

Batch = dict[str, t.Any]
Size = tuple[int, int, int]  # of a row: its tokens, those of a target that stands apart, and its labels

# What one more part costs, in tokens: an accelerator's kernels are started one by one.
COST_OF_BUCKET = 32
COST_OF_BUCKET_ACCELERATED = 4096


def buckets(sizes: Sequence[Size], cost_of_bucket: int) -> list[list[int]]:
    """Group rows of similar length so that the fewest tokens are computed, padding included; returns row numbers.

    Each bucket costs ``cost_of_bucket`` tokens beside its own. The rows are sorted by length, and the best cuts follow
    by dynamic programming over the sorted rows, which is exact.
    """
    order = sorted(range(len(sizes)), key=lambda row: sizes[row])
    inputs, targets = (np.array([sizes[row][place] for row in order]) for place in range(2))
    least, begins = np.zeros(len(order) + 1, dtype=np.int64), [0] * len(order)
    for end in range(1, len(order) + 1):  # the first `end` rows, by where their last part begins
        widths = inputs[end - 1] + np.maximum.accumulate(targets[:end][::-1])[::-1]
        costs = least[:end] + np.arange(end, 0, -1) * widths + cost_of_bucket
        begins[end - 1] = int(costs.argmin())
        least[end] = costs.min()
    found, end = [], len(order)
    while end:
        start = begins[end - 1]
        found.append(order[start:end])
        end = start
    return found


@dc.dataclass(frozen=True, kw_only=True)
class Measure:
    """What a batch's rows are told the model by: their sizes."""

    apart: bool  # whether labels are a sequence of their own
    shifted: bool  # whether labels are of the next token

    def __call__(self, rows: Sequence[Batch], batch: Batch) -> tuple[Size, ...]:
        inputs, labels = [len(row["input_ids"]) for row in rows], batch.get("labels")
        if not _by_token(labels):
            return tuple((size, 0, 1) for size in inputs)
        known = t.cast(torch.Tensor, labels).ne(IGNORED)
        labelled = known[:, int(self.shifted) :].sum(1).tolist()
        last = (
            (known * torch.arange(1, known.shape[1] + 1, device=known.device)).amax(1).tolist()
            if self.apart
            else [0] * len(rows)
        )
        return tuple(zip(inputs, last, labelled, strict=True))


class LengthBuckets:
    """A model that takes ``lengths``, as `Measure` gives them, and while ``enabled`` computes in length buckets.

    Without ``lengths``, or while not enabled, the model is as it was.
    """

    def __init__(self, model: t.Any) -> None:
        self.enabled = False
        self.gives_losses = bool(model.can_generate())  # in the place of logits, as `likelihood.token_losses`
        apart = self.gives_losses and bool(model.config.is_encoder_decoder)
        self.shifted = self.gives_losses and not apart
        self.measure = Measure(apart=apart, shifted=self.shifted)
        self._cost_of_bucket = COST_OF_BUCKET_ACCELERATED if torch.accelerator.is_available() else COST_OF_BUCKET
        self._wrap(model)

    def computed_tokens(self, lengths: Sequence[Size]) -> int:
        """How many tokens are computed with, padding among them."""
        return sum(
            len(part) * (max(lengths[row][0] for row in part) + max(lengths[row][1] for row in part))
            for part in buckets(lengths, self._cost_of_bucket)
        )

    @contextlib.contextmanager
    def tested(self) -> t.Iterator[None]:
        """Within this block, rows are grouped by their exact length, for the self-test."""
        kept, self._cost_of_bucket = self._cost_of_bucket, 0
        try:
            yield
        finally:
            self._cost_of_bucket = kept

    def _wrap(self, model: t.Any) -> None:
        plain = model.forward

        @functools.wraps(plain)
        def forward(*args: t.Any, lengths: Sequence[Size] | None = None, **inputs: t.Any) -> t.Any:
            if lengths is None or not self.enabled:
                return plain(*args, **inputs)
            return self._in_parts(plain, lengths, inputs)

        model.forward = forward

    def _in_parts(self, forward: Callable[..., t.Any], sizes: Sequence[Size], inputs: Batch) -> Batch:
        device = inputs["input_ids"].device
        chosen = buckets(sizes, self._cost_of_bucket)
        outputs = [self._part(forward, sizes, rows, inputs) for rows in chosen]
        order = [row for part in chosen for row in part]
        back = torch.tensor(sorted(range(len(order)), key=order.__getitem__)).to(device, non_blocking=True)
        found: Batch = ModelOutput()  # type: ignore[no-untyped-call]
        shares = [sum(sizes[row][2] for row in part) for part in chosen]
        if outputs[0].get("loss") is not None:
            weighed = [output["loss"] * share for output, share in zip(outputs, shares, strict=True) if share]
            found["loss"] = sum(weighed) / sum(shares) if weighed else outputs[0]["loss"]
        for name in ("logits", "start_logits", "end_logits"):
            if outputs[0].get(name) is not None:
                found[name] = _together([output[name] for output in outputs]).index_select(0, back)
        return found

    def _part(self, forward: Callable[..., t.Any], sizes: Sequence[Size], rows: list[int], inputs: Batch) -> Batch:
        picked = torch.tensor(rows).to(inputs["input_ids"].device, non_blocking=True)
        width, targets, _ = (max(sizes[row][place] for row in rows) for place in range(3))
        own: Batch = {}
        for name, value in inputs.items():
            if not torch.is_tensor(value) or value.dim() == 0:
                own[name] = value
                continue
            own[name] = value.index_select(0, picked)
            if name == "labels" and _by_token(value):
                own[name] = own[name][:, : targets if self.measure.apart else width].contiguous()
            elif name in ("input_ids", "attention_mask", "token_type_ids"):
                own[name] = own[name][:, :width].contiguous()
        output = forward(**own)
        if not self.gives_losses or "labels" not in own:
            return {name: output.get(name) for name in ("loss", "logits", "start_logits", "end_logits")}
        if torch.is_grad_enabled():
            return {"loss": output["loss"]}  # nobody asks for its logits
        pair = (output["logits"], own["labels"])
        return {"loss": output["loss"], "logits": token_losses(*(shifted(*pair) if self.shifted else pair))}


def _by_token(labels: torch.Tensor | None) -> bool:
    """Whether labels are of tokens, (rows, width) of int64; several numbers a row are floats."""
    return labels is not None and labels.dim() == 2 and not labels.is_floating_point()


def _together(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Buckets (rows, width, …) one after another, padded with -1 to the widest one."""
    if tensors[0].dim() == 1 or len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(tensors)
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat(
        [
            torch.nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, width - tensor.shape[1]), value=-1)
            for tensor in tensors
        ]
    )
