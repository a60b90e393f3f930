"""Label smoothing (arXiv 1512.00567): of each label's weight in the loss, a share goes to all classes alike.

With a share of ε the loss is (1 - ε)·nll + ε·(mean over classes of -log p), which is nll + ε·(the label's logit - the
mean of all logits). So a model keeps its own loss, and the second term is added to it.
"""

from __future__ import annotations

import functools
import typing as t

import torch

from tuneport.labels import IGNORED


def smooth(model: t.Any, factor: float) -> None:
    """Smooth a model's loss wherever gradients are computed, so in training; in evaluation it stays the plain one."""
    if not factor:
        return
    plain = model.forward
    of_next_token = model.can_generate() and not model.config.is_encoder_decoder

    @functools.wraps(plain)
    def forward(*args: t.Any, **inputs: t.Any) -> t.Any:
        output, labels = plain(*args, **inputs), inputs.get("labels")
        if labels is None or not torch.is_grad_enabled():
            return output
        logits = output["logits"]
        if of_next_token:
            logits, labels = logits[:, :-1], labels[:, 1:]
        output["loss"] = output["loss"] + factor * _above_mean(logits, labels)
        return output

    model.forward = forward
    model.register_forward_hook(functools.partial(_smooth_spans, factor), with_kwargs=True)


def _smooth_spans(factor: float, model: t.Any, args: t.Any, inputs: dict[str, t.Any], output: t.Any) -> t.Any:
    """After a task's own hooks: the classes of a span's start and end are the tokens of its row, without padding."""
    if inputs.get("start_positions") is None or not torch.is_grad_enabled():
        return output
    terms = [
        _above_mean(output[f"{kind}_logits"], inputs[f"{kind}_positions"], inputs["attention_mask"].bool())
        for kind in ("start", "end")
    ]
    output["loss"] = output["loss"] + factor * sum(terms) / len(terms)
    return output


def _above_mean(logits: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
    """How far labels' logits are above the mean over classes, on average; ``logits`` are (…, classes), labels (…).

    ``classes``: which of them there are, where that differs by row.
    """
    known = labels != IGNORED
    of_label = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0].float()
    if classes is None:
        mean = logits.mean(-1, dtype=torch.float32)
    else:
        mean = logits.float().masked_fill(~classes, 0.0).sum(-1) / classes.sum(-1)
    return ((of_label - mean) * known).sum() / known.sum().clamp(min=1)
