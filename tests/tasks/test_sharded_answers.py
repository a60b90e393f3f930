"""Metrics of answers that two processes with a part of the model each compute are those of one process."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.test_fsdp import finetune
from tuneport.stage import execute

pytestmark = pytest.mark.slow

VALUES: dict[str, Any] = {
    "metric_for_best_model": "rougeL",
    "learning_rate": "1e-2",
    "max_steps": "40",
    "eval_steps": "40",
    "per_device_train_batch_size": "4",
}
WAYS = {"zero": {"apply_deepspeed": "true", "deepspeed_stage": "3"}, "fsdp": {"fsdp": "full_shard"}}


def scores(output: Path) -> list[float]:
    log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    (entry,) = (entry for entry in log if "eval_loss" in entry)
    return [entry[name] for name in ("eval_rougeL", "eval_rouge1", "eval_loss")]


def test_answers_of_a_sharded_model_are_those_of_a_whole_one(ready: Any, tmp_path: Path) -> None:
    given = ready("summarization")
    alone = given.stage(
        metric_for_best_model="rougeL",
        learning_rate=1e-2,
        max_steps=40,
        evaluation_strategy="steps",
        eval_steps=40,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        pytorch_model_folder=tmp_path / "alone",
    )
    execute(alone)
    expected = scores(tmp_path / "alone")
    assert expected[0] > 0.2
    of = SimpleNamespace(task=given.task, model=given.model, rows=given.prepared)
    for name, way in WAYS.items():
        said = finetune(of, tmp_path / name, **VALUES, **way)
        assert "gathers them for each token" not in said
        assert scores(tmp_path / name) == pytest.approx(expected, abs=0.1)
