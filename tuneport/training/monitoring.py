"""What each training step took in and gave: rows and tokens are counted, losses and gradient norms must be numbers.

Nothing here waits for an accelerator in a step: it is asked at a logging step, before a checkpoint, and every
`CHECK_EVERY` steps.
"""

from __future__ import annotations

import dataclasses as dc
import math
import time
import typing as t
from collections.abc import Sequence

import torch
from torch import distributed
from transformers import Trainer

from tuneport.errors import UserError
from tuneport.training.batch_counts import CONTENTS, Contents, Counts, with_contents
from tuneport.training.padding_free.choose import LENGTHS

if t.TYPE_CHECKING:
    from tuneport.training.padding_free.choose import PaddingFree

CHECK_EVERY = 50  # steps after which losses are looked at, whatever logging_steps is
LISTED_ROWS = 20


@dc.dataclass(kw_only=True)
class ObservedStep:
    """The losses of an optimizer step by batch, and the norm of its gradient; they may still be on their way."""

    number: int
    batches: list[tuple[tuple[str, ...], torch.Tensor]] = dc.field(default_factory=list)
    gradient_norm: torch.Tensor | None = None

    @property
    def row_ids(self) -> list[str]:
        return [row for rows, _ in self.batches for row in rows]


class MonitoredTrainer(Trainer):
    """A Trainer that counts what it takes in, and stops where a loss, a gradient norm or a weight is not finite.

    It stops before a checkpoint is written, so the last one is always of finite weights.
    """

    def __init__(self, *, padding_free: PaddingFree | None = None, **kwargs: t.Any) -> None:
        super().__init__(**kwargs)
        self.padding_free = padding_free
        self.counts = Counts()
        self.evaluation_seconds = 0.0
        self.unchecked: list[ObservedStep] = []
        self.last: ObservedStep | None = None  # whose weights were not looked at

    @property
    def has_targets(self) -> bool:
        """Whether labels that are token ids are a sequence of their own."""
        return bool(t.cast(t.Any, self.model).config.is_encoder_decoder)

    def get_train_dataloader(self) -> t.Any:
        plain = self.data_collator
        self.data_collator = with_contents(plain, self.has_targets)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain  # evaluation has a loader of its own

    def training_step(self, model: t.Any, inputs: t.Any, *args: t.Any, **kwargs: t.Any) -> torch.Tensor:
        contents: Contents = inputs.pop(CONTENTS)
        self.counts.add(contents, self.padding_free, inputs.get(LENGTHS))
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        number = self.state.global_step + 1
        if not self.unchecked or self.unchecked[-1].number != number:
            self.last = ObservedStep(number=number)
            self.unchecked.append(self.last)
        self.unchecked[-1].batches.append((contents.row_ids, loss.detach()))
        return loss

    def _get_grad_norm(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        norm = t.cast(t.Any, super())._get_grad_norm(*args, **kwargs)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP's is in parts
        # With fp16 a step whose gradient overflows is left out, and the loss scaled down: nothing to stop for.
        if norm is not None and not self.args.fp16:
            self.unchecked[-1].gradient_norm = torch.as_tensor(norm).detach()
        return norm

    def _maybe_log_save_evaluate(self, *args: t.Any, **kwargs: t.Any) -> None:
        control, step = self.control, self.state.global_step
        keeps = control.should_evaluate or control.should_save
        if keeps or control.should_log or (self.unchecked and step - self.unchecked[0].number >= CHECK_EVERY):
            self._check_finite(weights=keeps)
        t.cast(t.Any, super())._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        started = time.monotonic()
        try:
            return t.cast(t.Any, super())._evaluate(*args, **kwargs)
        finally:
            self.evaluation_seconds += time.monotonic() - started

    def _check_finite(self, *, weights: bool) -> None:
        """Raise `UserError`, on all ranks, where one of them met what is not a number; it names the rows."""
        steps, self.unchecked = self.unchecked, []
        problem = first_problem(steps)
        if weights and (last := self.last) is not None:
            if problem is None and not all_finite(t.cast(torch.nn.Module, self.model)):
                rows = named(last.row_ids)
                problem = f"step {last.number}: the weights are not finite after these training rows: {rows}"
            self.last = None
        if found := _of_any_rank(problem, self.args.world_size, self.args.device):
            raise UserError(f"{found}. {self._remedy()}")

    def _remedy(self) -> str:
        args = self.args
        lower = f"learning_rate (now {args.learning_rate:g})"
        clip = "max_grad_norm (now off)" if not args.max_grad_norm else f"max_grad_norm (now {args.max_grad_norm:g})"
        exact = "" if not (args.bf16 or args.fp16) else ", take precision=32"
        return (
            f"Look at those rows; where they are in order, lower {lower} or {clip}, add warmup_steps{exact}. "
            "Checkpoints that were written are kept: resume_from_checkpoint=true goes on from the last one; to go on "
            "from its weights with other parameters, import it as the base model."
        )


def first_problem(steps: Sequence[ObservedStep]) -> str | None:
    """What is not finite in the first of the steps that has such a thing, with the rows; None where all is well.

    Waits for an accelerator once.
    """
    losses = [loss.float().reshape(()) for step in steps for _, loss in step.batches]
    norms = [step.gradient_norm.float().reshape(()) for step in steps if step.gradient_norm is not None]
    if not losses:
        return None
    device = losses[0].device
    values = iter(torch.stack([*losses, *(norm.to(device) for norm in norms)]).tolist())
    of_batches = [[(rows, next(values)) for rows, _ in step.batches] for step in steps]
    for step, batches in zip(steps, of_batches, strict=True):
        norm = next(values) if step.gradient_norm is not None else 0.0
        for rows, loss in batches:
            if not math.isfinite(loss):
                return f"step {step.number}: the loss is {loss} on these training rows: {named(rows)}"
        if not math.isfinite(norm):
            return f"step {step.number}: the gradient's norm is {norm} on these training rows: {named(step.row_ids)}"
    return None


def all_finite(model: torch.nn.Module) -> bool:
    """Whether all weights that are trained are finite; of sharded ones those that this process holds."""
    found: list[torch.Tensor] = []
    for weight in model.parameters():
        own: t.Any = getattr(weight, "ds_tensor", weight).detach()
        own = own.to_local() if hasattr(own, "to_local") else own
        if weight.requires_grad and own.numel():
            found.append(own)
    largest = torch._foreach_norm(found, math.inf) if found else []
    return not largest or bool(torch.stack([value.float() for value in largest]).isfinite().all())


def named(row_ids: Sequence[str]) -> str:
    """Rows by their ids, FILE:NUMBER, and how many there are beyond those listed."""
    rest = f" and {len(row_ids) - LISTED_ROWS} more" if len(row_ids) > LISTED_ROWS else ""
    return ", ".join(row_ids[:LISTED_ROWS]) + rest


def _of_any_rank(problem: str | None, world_size: int, device: torch.device) -> str | None:
    """The problem of the lowest rank that has one."""
    if world_size == 1:
        return problem
    found = torch.tensor(int(problem is not None), device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    if not found.item():
        return None
    gathered: list[str | None] = [None] * world_size
    distributed.all_gather_object(gathered, problem)
    return next(found for found in gathered if found)
