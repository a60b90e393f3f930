"""How likely the labels of encoded rows are to a language model."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from dataclasses import dataclass

from tuneport.labels import IGNORED
from tuneport.serving.token_batches import TokenBatches

if t.TYPE_CHECKING:
    import pyarrow as pa
    import torch

CHUNK_TOKENS = 1024  # whose logits are held in 32 bits at once
LOGITS = 2**28  # of a batch, at most, unless one row has more


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Of the labels of one row."""

    negative_log_likelihood: float  # nats, summed over the tokens
    tokens: int  # with a label
    tokens_right: int  # the most likely ones to the model


def token_losses(logits: t.Any, labels: torch.Tensor) -> torch.Tensor:
    """Return (rows, tokens, 2): each label's loss in nats (-1 where there is no label), and 1 where it is first choice.

    ``logits`` are a model's (rows, tokens, vocabulary), alone or first of a tuple. A model whose logits at a place are
    of the next place's label (a decoder) has them shifted by the caller.
    """
    import torch

    logits = logits[0] if isinstance(logits, tuple) else logits
    found = torch.full((*labels.shape, 2), -1.0, device=labels.device)
    places = (labels != IGNORED).nonzero()
    for start in range(0, len(places), CHUNK_TOKENS):
        rows, columns = places[start : start + CHUNK_TOKENS].unbind(-1)
        chosen, truth = logits[rows, columns].float(), labels[rows, columns]
        found[rows, columns, 0] = torch.nn.functional.cross_entropy(chosen, truth, reduction="none")
        found[rows, columns, 1] = (chosen.argmax(-1) == truth).float()
    return found


def shifted(logits: t.Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder's logits (rows, width, vocabulary) and labels (rows, width), aligned: each is cut to width - 1.

    The logits at a token predict the token after it.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits[:, :-1], labels[:, 1:]


def likelihoods(
    model: t.Any,
    collate: Callable[[list[dict[str, t.Any]]], dict[str, t.Any]],
    encoded: pa.Table,
    batch_size: int | None = None,
) -> list[Likelihood]:
    """The likelihood of every encoded row, in their order; batches are of rows of similar length.

    A batch has as many rows as memory allows, and no more than ``batch_size``, where that is given; no other rows are
    read meanwhile.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch

    def compute(picked: list[int]) -> list[Likelihood]:
        rows = pa.concat_tables([encoded.slice(i, 1) for i in picked]).to_pylist()
        batch = {k: v.to(TokenBatches.device_of(model)) for k, v in collate(rows).items()}
        with torch.inference_mode():
            output = model(**batch)
        pair: tuple[t.Any, torch.Tensor] = (output.logits, batch["labels"])
        losses = token_losses(*(pair if model.config.is_encoder_decoder else shifted(*pair))).cpu()
        return [_of_row(row) for row in losses]

    counts = (pc.list_value_length(encoded[name]) for name in ("input_ids", "labels"))
    lengths = pc.max_element_wise(*counts).to_pylist()
    batches = TokenBatches.of_forward(model, batch_size)
    batches.tokens = min(batches.tokens, max(1, LOGITS // model.config.get_text_config().vocab_size))
    found: list[Likelihood] = batches(lengths, compute)
    return found


def _of_row(losses: torch.Tensor) -> Likelihood:
    known = losses[losses[:, 0] >= 0]
    return Likelihood(
        negative_log_likelihood=float(known[:, 0].double().sum()),
        tokens=len(known),
        tokens_right=int(known[:, 1].sum()),
    )
