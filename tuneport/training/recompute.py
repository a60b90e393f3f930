"""gradient_checkpointing=auto: activations are computed again where a step would not fit into memory otherwise."""

from __future__ import annotations

import logging
import typing as t

from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.training import forecast
from tuneport.training.padding_free import choose
from tuneport.training.parameters import TrainingParams
from tuneport.training.simulate import Batch, Run

if t.TYPE_CHECKING:
    from tuneport.training.trainer import BestModelTrainer

log = logging.getLogger("tuneport.finetune")


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
    inner = choose.plain(model)
    rows = min(options.per_device_train_batch_size, prepared.info.splits["train"])
    tokens = _longest(prepared, options)
    batch = Batch(rows=rows, tokens=tokens)
    if not inner.supports_gradient_checkpointing or forecast.is_ample(trainer, run, batch):
        return False
    try:
        (total,) = forecast.needs(trainer, run, [batch])
    except (RuntimeError, UserError) as e:  # a model's code may ask what tensors without contents cannot answer
        log.warning(
            "gradient_checkpointing: off, as a step of this model cannot be simulated (%s); where memory does not "
            "suffice, set gradient_checkpointing=true",
            str(e).splitlines()[-1],
        )
        return False
    available = forecast.available(run)
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
