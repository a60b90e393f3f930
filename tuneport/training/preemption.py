"""Leave in good order when a signal asks for it: a checkpoint first, whatever the training is doing."""

from __future__ import annotations

import logging
import signal
import types
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneport.stage import Preempted, Terminated, handled
from tuneport.training.trainer import BestModelTrainer, EvaluationStopped

log = logging.getLogger("tuneport.finetune")


class Preemption(TrainerCallback):
    """After a signal: writes a checkpoint at the end of the step, then raises `Preempted`.

    An evaluation that is due or under way could outlast the grace period. It is given up and owed, so that a resume
    makes it first and nothing differs from a training that was never stopped.
    """

    def __init__(self, trainer: BestModelTrainer) -> None:
        self.trainer = trainer
        self.asked = False
        self.stopping = False

    def handle(self, number: int, frame: types.FrameType | None) -> None:
        """The signal's handler; the second signal waits for nothing."""
        if self.asked:
            raise Terminated
        self.asked = True
        log.warning("%s: saving a checkpoint, then stopping", signal.Signals(number).name)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        if not self._all_asked(args):
            return
        # Where an epoch ends as well, its log line comes before the checkpoint.
        at_epoch_end = float(state.epoch or 0).is_integer() and not control.should_training_stop
        self._stop(control, save=not at_epoch_end)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        if self.stopping or self._all_asked(args):
            self._stop(control, save=True)

    def _stop(self, control: TrainerControl, *, save: bool) -> None:
        self.stopping = self.trainer.is_stopping = True
        self.trainer.owes_evaluation |= control.should_evaluate
        control.should_evaluate = False
        control.should_save = save

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        if self._all_asked(args):
            raise EvaluationStopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any) -> None:
        if self.stopping:
            self.trainer.wait_until_written()
            raise Preempted(self.trainer.checkpoints.checkpoint(state.global_step).path)

    def _all_asked(self, arguments: TrainingArguments) -> bool:
        """Whether any process got the signal: all must stop at the same step."""
        if arguments.world_size == 1:
            return self.asked
        asked = torch.tensor(int(self.asked), device=arguments.device)
        distributed.all_reduce(asked, op=distributed.ReduceOp.MAX)
        return bool(asked.item())


@contextmanager
def preemptible(trainer: BestModelTrainer) -> Iterator[None]:
    """While entered, SIGTERM and SIGUSR1 end the training with a checkpoint."""
    preemption = Preemption(trainer)
    trainer.add_callback(preemption)
    with handled(preemption.handle):
        yield
