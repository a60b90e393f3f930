"""The loss of a language model from the hidden states of labelled tokens alone.

The head's logits are made for some tokens at a time, and of each such chunk the gradients at once, so that neither the
logits of a batch nor anything of their size is ever in memory.
"""

from __future__ import annotations

import dataclasses as dc
import typing as t

import torch
from torch.nn import functional

LOGITS = {"cuda": 2**27}  # how many are held at once, in 32 bits
LOGITS_ELSEWHERE = 2**24


@dc.dataclass(frozen=True, kw_only=True)
class Head:
    """What comes after a language model's hidden states: ``linear``, a factor, a soft cap."""

    linear: torch.nn.Linear
    factor: float = 1.0
    cap: float | None = None


def head_of(model: t.Any) -> Head | None:
    """The head of a decoder, where its kind is known here; a self-test tells whether it does the same as the model."""
    linear = model.get_output_embeddings()
    if type(linear) is not torch.nn.Linear:  # none, quantized or adapted
        return None
    config = model.config
    factor = getattr(config, "logit_scale", None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    return Head(linear=linear, factor=factor / scaling, cap=getattr(config, "final_logit_softcapping", None))


def summed_loss(head: Head, hidden: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """The cross-entropies of (tokens, size) hidden states and their targets, summed; for a backward pass, too.

    ``smoothing``: the share of each target's weight that goes to all classes alike, see `label_smoothing`.
    """
    apply: t.Any = _SummedCrossEntropy.apply
    return t.cast(torch.Tensor, apply(hidden, head.linear.weight, head.linear.bias, (targets, head, smoothing)))


@torch.no_grad()
def losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(tokens, 2): each target's cross-entropy, and 1 where it is the likeliest token."""
    found = torch.empty(len(targets), 2, device=hidden.device)
    for chunk in _chunks(head, hidden):
        logits, _ = _logits(head, hidden[chunk], head.linear.weight, head.linear.bias)
        found[chunk, 0] = functional.cross_entropy(logits, targets[chunk], reduction="none")
        found[chunk, 1] = (logits.argmax(-1) == targets[chunk]).float()
    return found


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: t.Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        fixed: tuple[torch.Tensor, Head, float],
    ) -> torch.Tensor:
        targets, head, smoothing = fixed
        wanted = ctx.needs_input_grad[:3]
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden, dtype=torch.float32) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        of_bias = torch.zeros_like(t.cast(torch.Tensor, bias), dtype=torch.float32) if wanted[2] else None
        for chunk in _chunks(head, hidden):
            logits, dtype = _logits(head, hidden[chunk], weight, bias)
            slope = None if head.cap is None else 1 - (logits / head.cap) ** 2
            logits = functional.log_softmax(logits, -1)
            target = targets[chunk, None]
            total -= (1 - smoothing) * logits.gather(-1, target).sum()
            if smoothing:
                total -= smoothing * logits.mean(-1).sum()
            error = logits.exp_()
            error.scatter_add_(-1, target, torch.full_like(target, smoothing - 1, dtype=error.dtype))
            if smoothing:
                error -= smoothing / error.shape[-1]
            if slope is not None:
                error *= slope
            if head.factor != 1.0:
                error *= head.factor
            if of_bias is not None:
                of_bias += error.sum(0)
            error = error.to(dtype)
            with torch.autocast(hidden.device.type, enabled=False):
                if of_hidden is not None:
                    of_hidden[chunk] = error @ weight.to(dtype)
                if of_weight is not None:
                    _add_product(of_weight, error.t(), hidden[chunk].to(dtype))
        ctx.gradients = (of_hidden, of_weight, of_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: t.Any, gradient: torch.Tensor) -> t.Any:
        found, ctx.gradients = ctx.gradients, None  # changed in place: the head's is as large as the head
        scaled = [
            None if own is None else own.mul_(gradient).to(dtype) for own, dtype in zip(found, ctx.dtypes, strict=True)
        ]
        return *scaled, None


def _chunks(head: Head, hidden: torch.Tensor) -> t.Iterator[slice]:
    size = max(1, LOGITS.get(hidden.device.type, LOGITS_ELSEWHERE) // head.linear.out_features)
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def _logits(
    head: Head, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.dtype]:
    """Logits in 32 bits, and the type that gradients are multiplied in: that of the product, but for fp16's range."""
    logits = functional.linear(hidden, weight, bias)
    dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    logits = logits.float()
    if head.factor != 1.0:
        logits = logits * head.factor
    if head.cap is not None:
        logits = torch.tanh(logits / head.cap) * head.cap
    return logits, dtype


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
