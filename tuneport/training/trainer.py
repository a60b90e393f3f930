"""The Trainer: it writes checkpoints, keeps the best, and resumes bit for bit as if never interrupted."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import random
import time
import typing as t
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from tuneport.artifacts import write_atomically
from tuneport.stage import Preempted
from tuneport.training.checkpoint.async_writer import HostCopy, Writer
from tuneport.training.checkpoint.checkpoint_folder import RUN_STATE, TRAINER_STATE, Checkpoint, CheckpointFolder
from tuneport.training.loss import LossByItem
from tuneport.training.monitoring import MonitoredTrainer
from tuneport.training.packing import Packs, token_counts
from tuneport.training.sampler import Draw, EpochSampler, balanced, packed, shuffled, similar

log = logging.getLogger("tuneport.finetune")


class EvaluationStopped(BaseException):
    """An evaluation is given up, as the process is to end: it is owed and made first thing after the resume."""


class BestModelTrainer(MonitoredTrainer, LossByItem):
    """A Trainer whose checkpoints are whole or absent, need no unpickling of code, and name no absolute path.

    ``checkpoints`` says where they stand. Evaluation adds ``scores_of_answers``, metrics of what a model answers, and
    takes the loss of tasks that count it by the token from their own metrics: transformers' is a mean of batches'
    means.
    """

    scores_of_answers: t.Callable[[t.Any], dict[str, float]] | None = None

    def __init__(self, *, checkpoints: CheckpointFolder, **kwargs: t.Any) -> None:
        super().__init__(**kwargs)
        self.checkpoints = checkpoints
        self.args.save_total_limit = None  # `checkpoints` deletes; transformers would delete the last one as well
        self.writer = Writer()
        self.host_copy = HostCopy()
        self.resumed_from: Checkpoint | None = None
        self.owes_evaluation = False
        self.rng_before_evaluation: dict[str, t.Any] | None = None
        self.order: EpochSampler | None = None
        self.add_callback(_GoOn(self))

    @property
    def is_sharded(self) -> bool:
        """Whether the weights or their optimizer's states are spread over the processes."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def train_from(self, checkpoint: Checkpoint | None) -> None:
        """Train from a checkpoint in ``checkpoints``, or from the start; every checkpoint is written on return."""
        self.resumed_from = checkpoint
        try:
            self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            self.writer.wait()
        finally:
            self.writer.join()  # after an error: what is being saved is saved

    # -- training -----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: t.Any = None) -> t.Any:
        rows: t.Any = train_dataset if train_dataset is not None else self.train_dataset
        self.order = EpochSampler(len(rows), self.args.seed, self._draw(rows))
        return self.order

    def _draw(self, rows: t.Any) -> Draw:
        if isinstance(rows, Packs):
            return packed(rows)
        args, step, size = self.args, rows_per_step(self.args), self.args.train_batch_size
        grouped = args.train_sampling_strategy == "group_by_length"
        draw = similar(list(rows["length"]), step) if grouped else shuffled(len(rows))
        unpadded = self.padding_free
        if args.world_size == 1 or unpadded is None:
            return draw
        tokens = token_counts(rows, targets=self.has_targets).tolist()

        def balanced_draw(generator: torch.Generator) -> t.Sequence[int]:
            found = draw(generator)  # where batches are padded, the longest row alone says what one takes
            return balanced(found, tokens, batch=size, batches=step // size) if unpadded.enabled else found

        return balanced_draw

    def _run_epoch(self, *args: t.Any, **kwargs: t.Any) -> None:
        if self.order is not None:
            self.order.epoch = kwargs["epoch"]
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # the checkpoint was the last one
            return
        t.cast(t.Any, super())._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: t.Any, **kwargs: t.Any) -> None:
        if "train_loss" in logs:  # of the whole training, not only since the resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
            if isinstance(items := self.train_dataset, Packs):
                logs["train_samples_per_second"] *= len(items.rows) / len(items)
        super().log(logs, *args, **kwargs)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluate(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        self.rng_before_evaluation = rng_state()
        try:
            metrics = super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.owes_evaluation = True
            self._save_checkpoint(self.model, None)
            self.writer.wait()
            raise Preempted(self.checkpoints.checkpoint(self.state.global_step).path) from None
        self.rng_before_evaluation = None
        return metrics

    def evaluation_loop(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        output = super().evaluation_loop(*args, **kwargs)
        metrics = t.cast(dict[str, float], output.metrics)
        if self.scores_of_answers is not None:
            metrics.update({f"eval_{k}": v for k, v in self.scores_of_answers(self.model).items()})
        if "eval_token_loss" in metrics:
            metrics["eval_loss"] = metrics.pop("eval_token_loss")
        return output

    def _load_best_model(self) -> None:
        self.writer.wait()
        self._barrier()
        if not self.is_sharded:  # else whoever saves the model loads it from its checkpoint
            super()._load_best_model()

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, t.Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)  # a pickle

    def _save_checkpoint(self, model: t.Any, trial: t.Any) -> None:
        """Copy all states and let a thread write them; returns as soon as the weights may change again."""
        self.writer.wait()
        self.store_flos()
        step, best = self.state.global_step, self.state.best_global_step
        if best:
            self.state.best_model_checkpoint = str(self.checkpoints.checkpoint(best).path)
        ranks = self._of_all_ranks()
        texts = self._texts([loss for _, loss in ranks])
        if self.args.should_save:
            self.checkpoints.begin(step)
        try:
            if self.is_sharded:
                self._save_shards(self.checkpoints.partial(step))
            if not self.args.should_save:
                return
            states = {} if self.is_sharded else self.host_copy.copy(self._states())
        except BaseException:
            self.checkpoints.abandon(step)
            raise
        self.writer.start(partial(self._write, step, best, states, texts, [rng for rng, _ in ranks]))

    def _save_shards(self, folder: Path) -> None:
        """DeepSpeed and FSDP: every rank writes its own part, while training waits."""
        self._barrier()
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._barrier()

    def _states(self) -> dict[str, t.Any]:
        """By file name, what is written: the weights, optimizer, schedule and loss scaling."""
        states = {
            "": self._weights(),
            "optimizer.pt": t.cast(t.Any, self.optimizer).state_dict(),
            "scheduler.pt": t.cast(t.Any, self.lr_scheduler).state_dict(),
        }
        if (scaler := getattr(self.accelerator, "scaler", None)) is not None:
            states["scaler.pt"] = scaler.state_dict()
        return states

    def _weights(self) -> dict[str, t.Any]:
        """The model's state; of a model with adapters only what is trained."""
        model: t.Any = self.model
        state: dict[str, t.Any] = model.state_dict()
        if not hasattr(model, "peft_config"):
            return state
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        return {name: tensor for name, tensor in state.items() if name in trained}

    def _texts(self, losses: list[float]) -> dict[str, str]:
        """By file name, the states that are JSON."""
        callbacks: list[t.Any] = [*self.callback_handler.callbacks, self.control]
        for exported in callbacks:
            if isinstance(exported, ExportableState):
                t.cast(t.Any, self.state.stateful_callbacks)[type(exported).__name__] = exported.state()
        run_state = {
            "rows_per_step": rows_per_step(self.args),
            "world_size": self.args.world_size,
            "owes_evaluation": self.owes_evaluation,
            "total_loss": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "losses": losses,
        }
        state = dc.asdict(self.state)
        return {TRAINER_STATE: json.dumps(_relative(state), indent=2, sort_keys=True), RUN_STATE: json.dumps(run_state)}

    def _of_all_ranks(self) -> list[tuple[dict[str, t.Any], float]]:
        """For each rank its random generators' states and the loss since the last log line."""
        own = (self.rng_before_evaluation or rng_state(), float(self._tr_loss))
        if self.args.world_size == 1:
            return [own]
        gathered: list[t.Any] = [None] * self.args.world_size
        distributed.all_gather_object(gathered, own)
        return gathered

    def _write(self, step: int, best: int | None, states: dict[str, t.Any], texts: dict[str, str], rng: t.Any) -> None:
        """In the writer's thread: every file of a checkpoint, then the checkpoint into its place."""
        try:
            folder = self.checkpoints.partial(step)
            for name, state in states.items():
                if name:
                    torch.save(state, folder / name)
                else:
                    self._save(str(folder), state_dict=state)
            for rank, state in enumerate(rng):
                torch.save(state, folder / ("rng_state.pth" if len(rng) == 1 else f"rng_state_{rank}.pth"))
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            self.checkpoints.publish(step, best)
        except BaseException:
            self.checkpoints.abandon(step)
            raise

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            distributed.barrier()


class _GoOn(TrainerCallback):
    """Restores what transformers leaves out of a resume, and raises the error of a save soon after it failed."""

    def __init__(self, trainer: BestModelTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        trainer, checkpoint = self.trainer, self.trainer.resumed_from
        if checkpoint is None:
            return
        t.cast(t.Any, state).compute_steps(args, state.max_steps)  # transformers keeps the earlier run's
        follow_schedule(getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler), state.max_steps)
        if best := state.best_global_step:
            state.best_model_checkpoint = str(trainer.checkpoints.checkpoint(best).path)
        saved = json.loads((checkpoint.path / RUN_STATE).read_text("utf-8"))
        losses = saved["losses"]
        same_ranks = len(losses) == args.world_size
        loss = losses[args.process_index] if same_ranks else sum(losses) / len(losses)
        trainer._tr_loss.fill_(loss)
        trainer._total_loss_scalar = saved["total_loss"]
        trainer._globalstep_last_logged = saved["last_logged_step"]
        if saved["owes_evaluation"]:
            trainer._load_rng_state(str(checkpoint.path))
            control.should_evaluate = control.should_save = True
            trainer._maybe_log_save_evaluate(
                trainer._tr_loss, None, trainer.model_wrapped, None, state.epoch, None, time.time()
            )
            trainer.writer.wait()  # the generators' states are read from this checkpoint again
            trainer._barrier()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        self.trainer.writer.raise_error()


def follow_schedule(schedule: t.Any, steps: int) -> None:
    """Let the next step have the rate that this run's schedule gives it, not the one that was saved.

    They differ where the run has another number of ``steps`` than the one that it goes on from: the rate that ended a
    finished run is often 0. A schedule that follows the metric goes on from what it has seen.
    """
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        return
    rates = [
        base * share(schedule.last_epoch) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    saved = schedule.get_last_lr()
    if rates == saved:
        return
    log.warning(
        "the learning rate follows the schedule of %d steps: step %d is trained with %g, where the earlier run's "
        "schedule had %g",
        steps,
        schedule.last_epoch + 1,
        rates[0],
        saved[0],
    )
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates  # what the log shows of the next step


def rows_per_step(arguments: TrainingArguments) -> int:
    """Rows that one optimizer step takes, over all processes."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def rng_state() -> dict[str, t.Any]:
    """The states of this process's random generators, as transformers reads them."""
    state: dict[str, t.Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        several = distributed.is_available() and distributed.is_initialized()
        state["cuda"] = torch.cuda.random.get_rng_state_all() if several else torch.cuda.random.get_rng_state()
    return state


def make_paths_relative(state_file: Path) -> None:
    """Let ``best_model_checkpoint`` be relative to the output folder, which moves when the step ends."""
    write_atomically(state_file, json.dumps(_relative(json.loads(state_file.read_text("utf-8"))), indent=2))


def _relative(state: dict[str, t.Any]) -> dict[str, t.Any]:
    if best := state["best_model_checkpoint"]:
        state["best_model_checkpoint"] = f"checkpoints/{Path(best).name}"
    return state
