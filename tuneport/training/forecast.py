"""How much memory the steps of this training will take on this machine, before the first: simulated, where a bound says
that it may matter.
"""

from __future__ import annotations

import copy
import dataclasses as dc
import typing as t
from collections.abc import Sequence

from tuneport.training.machine import available_memory
from tuneport.training.padding_free import choose
from tuneport.training.rank_memory import per_rank
from tuneport.training.simulate import Batch, Run, simulate

if t.TYPE_CHECKING:
    from tuneport.training.trainer import BestModelTrainer

# Numbers that a layer keeps of a token, at most, in so many hidden and intermediate sizes; more than any model has.
HIDDEN, INTERMEDIATE = 24, 8
AMPLE = 0.5  # of the memory: what takes less by this bound is not simulated


def available(run: Run) -> int:
    """Bytes that this process can have."""
    return available_memory(run.options.number_of_gpu_to_use_finetuning)


def is_ample(trainer: BestModelTrainer, run: Run, batch: Batch) -> bool:
    """Whether a batch surely fits, which costs nothing to say."""
    model: t.Any = trainer.model
    inner = choose.plain(model)
    return at_most(inner, batch.rows * batch.tokens) < AMPLE * available(run)


def needs(trainer: BestModelTrainer, run: Run, batches: Sequence[Batch]) -> list[int]:
    """Bytes that a step of each batch takes on this process's device, activations kept or not as the trainer does.

    Raises RuntimeError or `UserError` where a model's code asks what tensors without contents cannot answer.
    """
    as_it_is = copy.copy(run.options)
    as_it_is.gradient_checkpointing = "true" if trainer.args.activation_checkpointing else "false"
    found = simulate(dc.replace(run, options=as_it_is), batches)
    return [per_rank(step, run.options, trainer.args.world_size).total for step in found]


def at_most(model: t.Any, tokens: int) -> int:
    """Bytes that a training step surely does not exceed: weights with all that belongs to them, and activations."""
    config = model.config.get_text_config()
    hidden = getattr(config, "hidden_size", 0)
    wide = max(getattr(config, "intermediate_size", 0) or 0, 4 * hidden)
    layers = max(getattr(config, "num_hidden_layers", 0), 1) * (2 if model.config.is_encoder_decoder else 1)
    heads = getattr(config, "num_attention_heads", 0) or 0
    scores = heads * tokens  # of an attention that keeps them
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    logits = 4 * config.vocab_size if model.can_generate() else 0
    of_token = layers * (HIDDEN * hidden + INTERMEDIATE * wide + 3 * scores) + logits
    return int(4 * (5 * weights + tokens * of_token))
