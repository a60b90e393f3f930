"""What accompanies training: evaluation after the last step, and the lines that a person at the terminal needs."""

from __future__ import annotations

import logging
import time
import typing as t

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tuneport.tracking import Run

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


class Progress(TrainerCallback):
    """One line a logging step on the terminal, the same numbers in MLflow."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.started = time.monotonic()
        self.evaluation_seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any
    ) -> None:
        self.started = time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: t.Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        self.run.log_metrics({k: v for k, v in logs.items() if k != "epoch"}, state.global_step)
        if "loss" in logs:
            self._training_line(args, state, logs)
        if "eval_loss" in logs:
            self._evaluation_line(args, state, logs)

    def _training_line(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        elapsed = time.monotonic() - self.started
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        left = elapsed / state.global_step * (state.max_steps - state.global_step)
        log.info(
            "[%d/%d] loss %.4f, learning rate %.2e, gradient norm %.3g, %.1f samples/s, %d:%02d left",
            state.global_step,
            state.max_steps,
            logs["loss"],
            logs.get("learning_rate", 0.0),
            logs.get("grad_norm", 0.0),
            state.global_step * batch / elapsed,
            *divmod(int(left), 60),
        )

    def _evaluation_line(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        self.evaluation_seconds += logs.get("eval_runtime", 0.0)
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
        scores = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_") and k not in timing}
        shown = [f"{k} {v:.4f}" for k, v in scores.items()]
        log.info("[%d/%d] validation: %s", state.global_step, state.max_steps, ", ".join(shown))
