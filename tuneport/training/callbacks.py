"""What accompanies training: evaluation after the last step, and the lines that a person at the terminal needs."""

from __future__ import annotations

import logging
import resource
import sys
import time
import typing as t

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneport.tracking import Run
from tuneport.training.batch_counts import Counts, summed
from tuneport.training.flops import cost, peak
from tuneport.training.monitoring import MonitoredTrainer
from tuneport.training.precision import precision_of

log = logging.getLogger("tuneport.finetune")


class EvaluateLastStep(TrainerCallback):
    """Evaluate after the last step too, so that the last weights can be the best ones."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True
            control.should_save = True
        return control


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that goes on counting after a resume."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        states = t.cast(dict[str, t.Any], state.stateful_callbacks)
        if saved := states.get(type(self).__name__):
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class TrainingProgress(TrainerCallback):
    """One line a logging step on the terminal, the same numbers in MLflow.

    Rates are of the time since the last such line, without evaluations; memory is the most that a process has had.
    """

    def __init__(self, run: Run, trainer: MonitoredTrainer) -> None:
        self.run = run
        self.trainer = trainer
        self.peak = _peak(trainer.args)
        self.cost = cost(trainer.model) if self.peak is not None else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        self.started = self.since = time.monotonic()
        self.first_step = state.global_step
        self.evaluated = self.trainer.evaluation_seconds

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        numbers = {k: v for k, v in logs.items() if k != "epoch"}
        if "loss" in logs:
            numbers |= self._rates(args, state)
        self.run.log_metrics(_grouped(numbers), state.global_step)
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            log.info("[%d/%d] %s", state.global_step, state.max_steps, shown(numbers))
        if "eval_loss" in logs:
            self._evaluation_line(state, logs)

    def _rates(self, args: TrainingArguments, state: TrainerState) -> dict[str, float]:
        """What training did since it was last asked, over all processes; a collective call."""
        counts = summed(self.trainer.counts, args.world_size, args.device)
        now, evaluated = time.monotonic(), self.trainer.evaluation_seconds
        seconds = now - self.since - (evaluated - self.evaluated)
        steps = state.global_step - self.first_step
        self.trainer.counts, self.since, self.evaluated = Counts(), now, evaluated
        rates = {
            "tokens_per_second": counts.tokens / seconds,
            "samples_per_second": counts.rows / seconds,
            "padding_share": 1 - counts.tokens / max(counts.computed_tokens, 1),
            "seconds_left": (now - self.started) / max(steps, 1) * (state.max_steps - state.global_step),
        }
        if self.cost is not None and self.peak is not None:
            rates["mfu"] = self.cost.of(counts) / seconds / (self.peak * args.world_size)
        return rates | peak_memory(args)

    def _evaluation_line(self, state: TrainerState, logs: dict[str, float]) -> None:
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
        scores = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_") and k not in timing}
        shown = [f"{k} {v:.4f}" for k, v in scores.items()]
        log.info("[%d/%d] validation: %s", state.global_step, state.max_steps, ", ".join(shown))


def _grouped(numbers: t.Mapping[str, float]) -> dict[str, float]:
    """Figures of a log entry by the names that MLflow groups: train/loss, validation/loss."""
    groups = {"train_loss": "train/mean_loss", "eval_": "validation/", "train_": "train/", "": "train/"}
    return {
        groups[prefix] + name.removeprefix(prefix): value
        for name, value in numbers.items()
        for prefix in [next(p for p in groups if name.startswith(p))]
    }


def shown(numbers: t.Mapping[str, float]) -> str:
    """The numbers of a logging step as one line."""
    parts = [
        f"loss {numbers['loss']:.4f}",
        f"learning rate {numbers['learning_rate']:.2e}",
        f"gradient norm {numbers['grad_norm']:.3g}" if "grad_norm" in numbers else None,
        f"{numbers['tokens_per_second']:,.0f} tokens/s",
        f"{numbers['samples_per_second']:.1f} samples/s",
        f"{numbers['padding_share']:.0%} padding",
        f"MFU {numbers['mfu']:.1%}" if "mfu" in numbers else None,
        f"GPU {numbers['gpu_memory_peak_gb']:.1f} GB" if "gpu_memory_peak_gb" in numbers else None,
        f"memory {numbers['cpu_memory_peak_gb']:.1f} GB",
        "{}:{:02d} left".format(*divmod(int(numbers["seconds_left"]), 60)),
    ]
    return ", ".join(part for part in parts if part)


def peak_memory(arguments: TrainingArguments) -> dict[str, float]:
    """The most memory, in 10^9 bytes, that any of the processes has had, its GPU's and its own; a collective call."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"cpu_memory_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if arguments.device.type == "cuda":
        found["gpu_memory_peak_gb"] = torch.cuda.max_memory_allocated(arguments.device) / 1e9
    if arguments.world_size > 1:
        values = torch.tensor(list(found.values()), device=arguments.device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        found = dict(zip(found, values.tolist(), strict=True))
    return found


def _peak(arguments: TrainingArguments) -> float | None:
    """FLOP/s of this process's device in the precision that is trained in; None where that is not known."""
    if arguments.device.type != "cuda":
        return None
    return peak(torch.cuda.get_device_name(arguments.device), precision_of(arguments))
