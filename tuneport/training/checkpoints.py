"""Checkpoints: the Trainer that writes them and picks the best model."""

from __future__ import annotations

import json
import shutil
import typing as t
from pathlib import Path

from transformers import Trainer

from tuneport.artifacts import write_atomically


class BestModelTrainer(Trainer):
    """A Trainer whose checkpoints are whole or absent, need no unpickling of code, and name no absolute path.

    Evaluation adds ``scores_of_answers``, metrics of what a model answers, and takes the loss of tasks that count it by
    the token from their own metrics: transformers' is a mean of batches' means.
    """

    scores_of_answers: t.Callable[[t.Any], dict[str, float]] | None = None

    def evaluation_loop(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        output = super().evaluation_loop(*args, **kwargs)
        metrics = t.cast(dict[str, float], output.metrics)
        if self.scores_of_answers is not None:
            metrics.update({f"eval_{k}": v for k, v in self.scores_of_answers(self.model).items()})
        if "eval_token_loss" in metrics:
            metrics["eval_loss"] = metrics.pop("eval_token_loss")
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, t.Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)  # a pickle

    def _save_checkpoint(self, model: t.Any, trial: t.Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            make_paths_relative(folder / "trainer_state.json")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def make_paths_relative(state_file: Path) -> None:
    """Let ``best_model_checkpoint`` be relative to the output folder, which moves when the step ends."""
    state = json.loads(state_file.read_text("utf-8"))
    if best := state["best_model_checkpoint"]:
        state["best_model_checkpoint"] = f"checkpoints/{Path(best).name}"
    write_atomically(state_file, json.dumps(state, indent=2))
