"""The Trainer: it writes checkpoints, keeps the best, and resumes bit for bit as if never interrupted."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import math
import random
import threading
import time
import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from tuneport.artifacts import write_atomically
from tuneport.digests import HashedFile, known
from tuneport.errors import UserError
from tuneport.json_yaml import read_json, to_json
from tuneport.stage import Preempted
from tuneport.training.checkpoint import fsdp_shards
from tuneport.training.checkpoint.async_writer import HostCopy, Writer
from tuneport.training.checkpoint.checkpoint_folder import RUN_STATE, TRAINER_STATE, Checkpoint, CheckpointFolder
from tuneport.training.distributed import contents, sharding
from tuneport.training.distributed.deferred_writes import deferred
from tuneport.training.distributed.waiting import Peers
from tuneport.training.loss import LossByItem
from tuneport.training.monitoring import MonitoredTrainer
from tuneport.training.packing import Packs, token_counts
from tuneport.training.predictions import LeanEvaluation
from tuneport.training.sampler import Draw, EpochSampler, Order, balanced, packed, shuffled, similar

log = logging.getLogger("tuneport.finetune")

PART = "its part of a checkpoint"
SCHEDULE = "scheduler.pt"  # transformers' own name


class EvaluationStopped(BaseException):
    """An evaluation is given up, as the process is to end: it is owed and made first thing after the resume."""


class BestModelTrainer(MonitoredTrainer, LossByItem, LeanEvaluation):
    """A Trainer whose checkpoints are whole or absent, need no unpickling of code, and name no absolute path.

    ``checkpoints`` says where they stand; ``saves_states``, whether they have what only a resume needs: the last one of
    a training that a signal stops (``is_stopping``) always has. ``read_once``: rank 0 alone has the weights that FSDP
    will shard. No process waits in a collective for what another writes or reads, which may take longer than any
    timeout: it waits by ``peers``, in one only by `fsdp_shards`. Evaluation adds ``scores_of_answers``,
    metrics of what a model answers, and takes the loss of tasks that count it by the token from their own metrics:
    transformers' is a mean of batches' means.
    """

    scores_of_answers: t.Callable[[t.Any], dict[str, float]] | None = None

    def __init__(
        self,
        *,
        checkpoints: CheckpointFolder,
        peers: Peers,
        saves_states: bool = True,
        read_once: bool = False,
        **kwargs: t.Any,
    ) -> None:
        super().__init__(**kwargs)
        self.read_once = read_once
        self.saves_states = saves_states
        self.is_stopping = False
        self.checkpoints = checkpoints
        self.peers = peers
        self.args.save_total_limit = None  # `checkpoints` deletes; transformers would delete the last one as well
        self.writer = Writer()
        self.host_copy = HostCopy()
        self.weights_written = threading.Event()  # of the checkpoint that is under way
        self.weights_written.set()
        self.begun: tuple[int, bool] | None = None  # the step of a checkpoint under way, and whether it is resumable
        self.resumed_from: Checkpoint | None = None
        self.owes_evaluation = False
        self.rng_before_evaluation: dict[str, t.Any] | None = None
        self.order: EpochSampler | None = None
        self.unsharded: dict[str, torch.Tensor] | None = None  # the weights, until rank 0's are spread
        self.writers: t.Any = None  # the processes, as they write shards
        self.add_callback(_GoOn(self))

    @property
    def is_sharded(self) -> bool:
        """Whether the weights or their optimizer's states are spread over the processes."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    @property
    def is_in_shards(self) -> bool:
        """Whether each process writes its own shards of FSDP's weights, which no process has whole."""
        return self.is_fsdp_enabled and sharding.SHARDS in str(self.accelerator.state.fsdp_plugin.state_dict_type)

    def train_from(self, checkpoint: Checkpoint | None) -> None:
        """Train from a checkpoint in ``checkpoints``, or from the start; on return the last one may be under way."""
        self.resumed_from = checkpoint
        self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    @contextmanager
    def checkpoints_written(self) -> Iterator[None]:
        """Around a training and what follows it: every checkpoint is written on leaving; a half one is deleted."""
        try:
            yield
            self.wait_until_written()
        except BaseException:
            self.peers.hurry()
            raise
        finally:
            self._give_up_checkpoint()
            self.writer.join()  # after an error: what is being saved is saved

    @contextmanager
    def best_checkpoint(self) -> Iterator[Path]:
        """In rank 0: the folder of the best weights, which are whole and stay there while it is entered.

        Of the last checkpoint, other files may still be being written.
        """
        if self.is_sharded:
            self.writer.wait()  # it may bring other machines' shards
        self.weights_written.wait()
        with self.checkpoints.in_place(int(self.state.best_global_step or 0)) as folder:
            if not folder.is_dir():
                self.writer.wait()  # raises why the checkpoint was given up
            yield folder

    def wait_until_written(self) -> None:
        """Wait until every process's part of the last checkpoint is written, and the whole sealed."""
        self.writer.wait()
        self.peers.meet("the last checkpoint is written")

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
        draw = similar(rows.data.column("length").to_numpy(), step) if grouped else shuffled(len(rows))
        unpadded = self.padding_free
        if args.world_size == 1 or unpadded is None:
            return draw
        tokens = token_counts(rows, targets=self.has_targets)

        def balanced_draw(generator: torch.Generator) -> Order:
            found = draw(generator)  # where batches are padded, the longest row alone says what one takes
            return balanced(found, tokens, batch=size, batches=step // size) if unpadded.enabled else found

        return balanced_draw

    def create_optimizer(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Also keep the weights, which FSDP shards next."""
        if self.read_once:
            self.unsharded = contents.whole(t.cast(t.Any, self.model)) if self.args.process_index == 0 else {}
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Also spread the weights over FSDP's shards, which are made by now; a checkpoint is read next."""
        if self.unsharded is not None:
            contents.fill(t.cast(t.Any, self.model), self.unsharded)
            self.unsharded = None
        return super().create_scheduler(*args, **kwargs)

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
        if self._begins_before_evaluation():
            self._begin_checkpoint(resumable=self.saves_states)
        try:
            metrics = super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.owes_evaluation = self.is_stopping = True
            self._save_checkpoint(self.model, None)
            self.wait_until_written()
            raise Preempted(self.checkpoints.checkpoint(self.state.global_step).path) from None
        self.rng_before_evaluation = None
        return metrics

    def evaluation_loop(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        """Add the scores of answers.

        Raises `UserError` where the metric that chooses the best checkpoint is undefined on the validation rows from
        the first evaluation on.
        """
        output = super().evaluation_loop(*args, **kwargs)
        metrics = t.cast(dict[str, float], output.metrics)
        if self.scores_of_answers is not None:
            metrics.update({f"eval_{k}": v for k, v in self.scores_of_answers(self.model).items()})
        if "eval_token_loss" in metrics:
            metrics["eval_loss"] = metrics.pop("eval_token_loss")
        name = self.args.metric_for_best_model
        if f"eval_{name}" not in metrics and self.state.best_metric is None:
            raise UserError(
                f"metric_for_best_model={name}: cannot be computed on the validation rows, as they hold nothing that "
                "it counts. Give validation rows that do, or set metric_for_best_model=loss."
            )
        metrics.setdefault(f"eval_{name}", math.nan)  # which is no better than any
        return output

    def _load_best_model(self) -> None:
        """Nothing: it is saved from its checkpoint's files."""

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, t.Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)  # a pickle

    def _save_checkpoint(self, model: t.Any, trial: t.Any) -> None:
        """Let a thread write a checkpoint; returns as soon as the weights may change again.

        Each process writes, reads for their digests and reports its own files; rank 0 seals the checkpoint.
        """
        step, best = self.state.global_step, self.state.best_global_step
        resumable = self.saves_states or self.is_stopping
        if self.begun != (step, resumable):
            self._begin_checkpoint(resumable=resumable)
        self.store_flos()
        if best:
            self.state.best_model_checkpoint = str(self.checkpoints.checkpoint(best).path)
        losses = self.peers.gather("the loss since the last log line", float(self._tr_loss))
        texts = self._texts(losses)
        if not resumable:
            del texts[RUN_STATE]
        rng = (self.rng_before_evaluation or rng_state()) if resumable else None
        own = self._save_shards(self.checkpoints.partial(step)) if self.is_sharded else []
        self.begun = None
        if self.args.should_save:
            self.writer.go_on(partial(self._seal, step, best, texts, rng))
        else:
            self.writer.start(partial(self._write_part, step, rng, own))

    def _begin_checkpoint(self, *, resumable: bool) -> None:
        """Copy the states and let a thread write them; `_save_checkpoint` adds the rest.

        After the last step nothing changes them any more, and CPUs write them as they are.
        """
        self.wait_until_written()
        step = self.state.global_step
        if self.args.should_save:
            self.checkpoints.begin(step)
        elif self.checkpoints.store is not None and self.args.local_process_index == 0:  # this machine's own disk
            self.checkpoints.tidy()
            self.checkpoints.begin(step)
        self.begun = (step, resumable)
        if not self.args.should_save or self.is_sharded:
            return
        states = self._states() if resumable else {"": self._weights()}
        if not (self._is_trained() and self.args.device.type == "cpu"):
            states = self.host_copy.copy(states)
        self.weights_written.clear()
        self.writer.start(partial(self._write_states, step, states))

    def _begins_before_evaluation(self) -> bool:
        """Whether a checkpoint follows the evaluation that is due, of states that the evaluation does not change."""
        follows_metric = isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        return bool(self.control.should_save) and not self.is_sharded and not follows_metric

    def _is_trained(self) -> bool:
        """Whether no step follows in this process."""
        ended = self.control.should_training_stop or self.state.global_step >= self.state.max_steps
        return bool(self.is_stopping or ended)

    def _give_up_checkpoint(self) -> None:
        """After an error: delete what was written of a checkpoint that does not get whole."""
        if self.begun is None:
            return
        self.writer.join()
        if self.args.should_save:
            self.checkpoints.abandon(self.begun[0])
        self.begun = None

    def _save_shards(self, folder: Path) -> list[str]:
        """DeepSpeed and FSDP: every process writes its own part, while training waits; returns its files' names."""
        if self.is_fsdp_enabled:
            self._save_model_of_fsdp(folder)
        else:
            with deferred(self.deepspeed):  # a model that is not gathered is in the shards that are written below
                self.save_model(str(folder), _internal_call=True)
        self.peers.meet("rank 0 has written the weights")
        with deferred(self.deepspeed) as writes:
            self._save_optimizer_and_scheduler(str(folder))
        files = writes.write() or sorted(folder.glob(f"*/__{self.args.process_index}_*.distcp"))
        self.peers.meet("the shards are written")
        return [file.relative_to(folder).as_posix() for file in files]

    def _save_model_of_fsdp(self, folder: Path) -> None:
        """The files of the model: with all that is trained of adapters, without weights where they are in shards."""
        model: t.Any = self.model
        if hasattr(model, "peft_config"):
            self._save(str(folder), state_dict=contents.gathered(model))
        elif self.is_in_shards:
            self._save(str(folder), state_dict={})
            for empty in folder.glob("*.safetensors") if self.args.should_save else ():
                empty.unlink()
        else:
            self.save_model(str(folder), _internal_call=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_in_shards:
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            self.writers = self.writers or fsdp_shards.group()
            fsdp_shards.save(Path(output_dir), self.model, self.optimizer, self.writers)
            if self.args.should_save:
                torch.save(t.cast(t.Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULE)
        if self.is_fsdp_enabled:
            self._save_scaler(output_dir)

    def _states(self) -> dict[str, t.Any]:
        """By file name, what is written: the weights, optimizer, schedule and loss scaling."""
        states = {
            "": self._weights(),
            "optimizer.pt": t.cast(t.Any, self.optimizer).state_dict(),
            SCHEDULE: t.cast(t.Any, self.lr_scheduler).state_dict(),
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
        return {TRAINER_STATE: to_json(_relative(state), indent=2, sort_keys=True), RUN_STATE: to_json(run_state)}

    def _write_states(self, step: int, states: dict[str, t.Any]) -> None:
        """In rank 0's writer thread: the files that are large."""
        folder = self.checkpoints.partial(step)
        try:
            with self._or_abandoned(step), ThreadPoolExecutor(1, thread_name_prefix="sha256") as reader:
                self._save(str(folder), state_dict=states.pop(""))
                for file in folder.glob("*.safetensors"):  # while the others are written
                    reader.submit(known.read_own, file)
                reader.submit(self.weights_written.set)
                for name, state in states.items():
                    with HashedFile(folder / name) as f, without_checksums():
                        torch.save(state, t.cast("t.IO[bytes]", f))
        finally:
            self.weights_written.set()  # or they are given up

    def _seal(self, step: int, best: int | None, texts: dict[str, str], rng: t.Any) -> None:
        """In rank 0's writer thread: what is small of its own, then the whole checkpoint into its place."""
        with self._or_abandoned(step):
            folder = self.checkpoints.partial(step)
            if rng is not None:
                torch.save(rng, folder / self._rng_name())
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            parts: dict[str, t.Any] = {}
            for rank in range(1, self.args.world_size):
                said = self.peers.hear(rank, PART)
                if "error" in said:
                    raise OSError(said["errno"], f"rank {rank} could not write its part: {said['error']}")
                parts |= said["files"]
            self.checkpoints.publish(step, best, parts)

    @contextmanager
    def _or_abandoned(self, step: int) -> Iterator[None]:
        """While entered, an error deletes what was written of a checkpoint."""
        try:
            yield
        except BaseException:
            self.checkpoints.abandon(step)
            raise

    def _write_part(self, step: int, rng: t.Any, own: list[str]) -> None:
        """In another rank's writer thread: what is its own, and the digests of all that it wrote to rank 0."""
        try:
            if rng is not None:
                torch.save(rng, self.checkpoints.partial(step) / self._rng_name())
                own = [self._rng_name(), *own]
            files = self.checkpoints.part(step, own)
        except BaseException as e:
            self.peers.say(PART, {"error": str(e), "errno": getattr(e, "errno", None)})
            raise
        self.peers.say(PART, {"files": files})

    def _rng_name(self) -> str:
        """The file of this process's random generators, as transformers calls it."""
        return "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{self.args.process_index}.pth"


@contextmanager
def without_checksums() -> Iterator[None]:
    """While entered, torch saves without the CRC-32 of each tensor: it checks none, and our manifest has a SHA-256."""
    serialization: t.Any = torch.serialization
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        yield
    finally:
        serialization.set_crc32_options(before)


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
            trainer.wait_until_written()  # the generators' states are read from this checkpoint again

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
    write_atomically(state_file, to_json(_relative(read_json(state_file)), indent=2))


def _relative(state: dict[str, t.Any]) -> dict[str, t.Any]:
    if best := state["best_model_checkpoint"]:
        state["best_model_checkpoint"] = f"checkpoints/{Path(best).name}"
    return state
