"""What to do where the memory does not suffice: find a batch size that fits, or say what to change."""

from __future__ import annotations

import contextlib
import gc
import logging
import typing as t
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset as ArrowDataset
from transformers import Trainer

from tuneport.errors import UserError
from tuneport.training import forecast
from tuneport.training.loss import inputs_as_computed
from tuneport.training.packing import Packs, token_counts
from tuneport.training.simulate import Batch, Run

if t.TYPE_CHECKING:
    from tuneport.training.trainer import BestModelTrainer

log = logging.getLogger("tuneport.finetune")
LONGEST = 1024  # rows to choose a batch to try from
TOLERANCE = 1.15  # of a simulated step: what it takes may be as much less


@contextlib.contextmanager
def explained(batch_size: int) -> Iterator[None]:
    """Raise `UserError`, with what may be changed, where the block runs out of memory."""
    try:
        yield
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(
            f"per_device_train_batch_size={batch_size}: the memory does not suffice ({str(e).splitlines()[0]}). "
            "Lower it and raise gradient_accumulation_steps by the same factor, or set auto_find_batch_size=true, "
            "gradient_checkpointing=true or a smaller max_seq_length; where an evaluation failed, lower "
            "per_device_eval_batch_size."
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that an allocation failed, on the CPU or on an accelerator."""
    return isinstance(error, Exception) and (
        isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
    )


def fit_batch_size(trainer: BestModelTrainer, run: Run) -> None:
    """Lower the trainer's batch size until the longest training rows fit, and accumulate more batches in turn.

    The product of the two, so the effective batch, stays what it was. What cannot fit, by a simulated step, is not
    tried. A batch size is tried by a forward and a backward pass over the longest rows, beside as much memory as the
    optimizer takes for its state; random numbers are drawn as if nothing had been tried. All ranks take the smallest
    size that one of them can. Raises `UserError` where not even single rows fit.
    """
    arguments = trainer.args
    wanted, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    if arguments.activation_checkpointing:
        model: t.Any = trainer.model
        model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
    rows = longest_first(t.cast(t.Any, trainer.train_dataset))
    effective = wanted * accumulated
    sizes = candidates(wanted, effective)
    hopeless = _hopeless(trainer, run, rows, sizes) if arguments.process_index == 0 else 0
    for size in sizes[trainer.peers.share("batch sizes that need no try", hopeless) :]:
        batch = [row for i in range(size) for row in rows[i % len(rows)]]
        if _all_ranks(_fits(lambda batch=batch: _pass(trainer, batch)), trainer):  # type: ignore[misc]
            break
        log.info("auto_find_batch_size: batches of %d do not fit into memory", size)
    else:
        raise UserError(
            "auto_find_batch_size=true: the memory does not suffice for a single row. "
            "Set gradient_checkpointing=true, a smaller max_seq_length, or take a smaller model."
        )
    arguments.per_device_train_batch_size = size
    arguments.gradient_accumulation_steps = effective // size
    trainer.accelerator.gradient_accumulation_steps = arguments.gradient_accumulation_steps
    trainer._train_batch_size = arguments.train_batch_size
    log.info(
        "auto_find_batch_size: batches of %d, gradient_accumulation_steps=%d (asked for: %d and %d)",
        size,
        arguments.gradient_accumulation_steps,
        wanted,
        accumulated,
    )


def candidates(wanted: int, effective: int) -> list[int]:
    """The batch sizes to try, each at most half of the one before and a divisor of the effective batch."""
    found = [wanted]
    while found[-1] > 1:
        found.append(next(size for size in range(found[-1] // 2, 0, -1) if effective % size == 0))
    return found


def _hopeless(trainer: BestModelTrainer, run: Run, rows: list[list[dict[str, t.Any]]], sizes: list[int]) -> int:
    """How many of the sizes, from the first, a simulated step says are too much for the memory, never all of them.

    The need is a line through those of two sizes. Rows are taken to have as many tokens as the longest have on
    average, which without padding is what they take.
    """
    if len(sizes) == 1:
        return 0
    wanted = sizes[0]
    tokens = [sum(len(row["input_ids"]) for row in rows[i % len(rows)]) for i in range(wanted)]
    many, few = (Batch(rows=size, tokens=max(sum(tokens) // wanted, 1)) for size in sizes[:2])
    if forecast.is_ample(trainer, run, many):
        return 0
    try:
        more, less = forecast.needs(trainer, run, [many, few])
    except (RuntimeError, UserError) as e:
        log.info("auto_find_batch_size: every size is tried, as no step can be simulated (%s)", str(e).splitlines()[-1])
        return 0
    each = max(more - less, 0) / (many.tokens * (many.rows - few.rows))
    room = forecast.available(run) * TOLERANCE
    needed = [more - each * (many.rows * many.tokens - sum(tokens[:size])) for size in sizes]
    found = min(sum(need > room for need in needed), len(sizes) - 1)
    if found:
        log.info(
            "auto_find_batch_size: batches of %s would take %s GiB, of %.1f: they are not tried",
            ", ".join(map(str, sizes[:found])),
            ", ".join(f"{need / 2**30:.1f}" for need in needed[:found]),
            forecast.available(run) / 2**30,
        )
    return found


def longest_first(rows: ArrowDataset | Packs) -> list[list[dict[str, t.Any]]]:
    """At most 1,024 of the rows, or of the packs their rows, those with the most tokens and labels first."""
    if isinstance(rows, Packs):
        made = rows.made(np.arange(len(rows.rows)))
        tokens = np.add.reduceat(rows.tokens[made.rows], made.starts[:-1], dtype=np.int64)
        heaviest = np.argsort(tokens, kind="stable")[::-1][:LONGEST]
        return [rows[tuple(made[int(number)].tolist())] for number in heaviest]
    lengths = token_counts(rows, targets=True)
    return [[rows[int(i)]] for i in np.argsort(-lengths, kind="stable")[:LONGEST]]


def _fits(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        return False
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _pass(trainer: Trainer, rows: list[dict[str, t.Any]]) -> None:
    """A forward and a backward pass, as training makes them."""
    model = t.cast(torch.nn.Module, trainer.model).to(trainer.args.device)
    model.train()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            inputs = trainer._prepare_inputs(trainer.data_collator(rows))
            _state = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
            with inputs_as_computed(model, mixed=trainer.args.bf16 or trainer.args.fp16):
                with trainer.accelerator.autocast():
                    loss = t.cast(torch.Tensor, trainer.compute_loss(model, inputs))
                loss.backward()  # type: ignore[no-untyped-call]
    finally:
        model.zero_grad(set_to_none=True)


def _all_ranks(fits: bool, trainer: Trainer) -> bool:
    """Whether it fits on every rank."""
    if trainer.args.world_size == 1:
        return fits
    answer = torch.tensor(int(fits), device=trainer.args.device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MIN)
    return bool(answer.item())
