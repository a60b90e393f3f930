"""gradient_checkpointing=auto: activations are computed again where a step would not fit into memory otherwise."""

from __future__ import annotations

import logging
import typing as t

from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.training.machine import available_memory
from tuneport.training.parameters import TrainingParams
from tuneport.training.rank_memory import per_rank
from tuneport.training.simulate import Batch, Run, simulate

if t.TYPE_CHECKING:
    from tuneport.training.trainer import BestModelTrainer

log = logging.getLogger("tuneport.finetune")
# Numbers that a layer keeps of a token, at most, in so many hidden and intermediate sizes; more than any model has.
HIDDEN, INTERMEDIATE = 24, 8
AMPLE = 0.5  # of the memory: what takes less by this bound is not simulated


def where_needed(trainer: BestModelTrainer, run: Run) -> None:
    """Let the trainer recompute activations where its longest rows would not fit; says so in one line.

    The first process decides for all.
    """
    if run.options.gradient_checkpointing != "auto":
        return
    needed = trainer.args.process_index == 0 and _needed(trainer, run)
    trainer.args.activation_checkpointing = bool(trainer.peers.share("whether to recompute activations", needed))


def _needed(trainer: BestModelTrainer, run: Run) -> bool:
    options, prepared = run.options, Prepared(run.prepared)
    model: t.Any = trainer.model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    rows = min(options.per_device_train_batch_size, prepared.info.splits["train"])
    tokens = _longest(prepared, options)
    available = available_memory(options.number_of_gpu_to_use_finetuning)
    if not inner.supports_gradient_checkpointing or at_most(inner, rows * tokens) < AMPLE * available:
        return False
    try:
        (step,) = simulate(run, [Batch(rows=rows, tokens=tokens)])
    except (RuntimeError, UserError) as e:  # a model's code may ask what tensors without contents cannot answer
        log.warning(
            "gradient_checkpointing: off, as a step of this model cannot be simulated (%s); where memory does not "
            "suffice, set gradient_checkpointing=true",
            str(e).splitlines()[-1],
        )
        return False
    total = per_rank(step, options, trainer.args.world_size).total
    if total <= available:
        return False
    log.info(
        "gradient_checkpointing: on, as a step of %d × %d tokens would take %.1f GiB without, of %.1f GiB",
        rows,
        tokens,
        total / 2**30,
        available / 2**30,
    )
    return True


def _longest(prepared: Prepared, options: TrainingParams) -> int:
    import pyarrow.compute as pc

    return prepared.info.max_seq_length if options.packing else int(pc.max(prepared.encoded("train")["length"]).as_py())


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
