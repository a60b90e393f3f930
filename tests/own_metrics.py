"""A pipeline whose checkpoint is chosen, and whose answers are scored, by functions of the user's."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

OWN = """
def apart(predictions, references, rows):
    return [abs(len(text) - len(truth)) for text, truth in zip(predictions, references, strict=True)]

def worse_each_time(predictions, references, rows):
    worse_each_time.calls += 1
    return {"first": -worse_each_time.calls, "rows": len(rows)}

worse_each_time.calls = 0
"""
EVALUATIONS = 3


def write(folder: Path) -> dict[str, Any]:
    """A tiny model, rows and the functions, in a folder; returns the values of a run in it."""
    from tests.tasks.conftest import gpt2

    gpt2(folder / "model")
    animals = [f"{i} {random.Random(i).choice(['cat', 'dog', 'hen'])}" for i in range(48)]
    rows = [{"text": f"{animal}:", "ground_truth": f"a {animal}"} for animal in animals]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine").mkdir()
    (folder / "mine" / "own.py").write_text(OWN)
    return {
        "pytorch_model_path": "model",
        "train_file_path": "rows.jsonl",
        "text_key": "text",
        "ground_truth_key": "ground_truth",
        "max_steps": EVALUATIONS,
        "evaluation_strategy": "steps",
        "eval_steps": 1,
        "per_device_train_batch_size": 8,
        "validation_max_new_tokens": 4,
        "max_new_tokens": 4,
        "metric_for_best_model": "own.py:worse_each_time.first",
        "validation_metric_file": "mine/own.py",
        "metrics": ["own.py:apart", "exact_match"],
        "metrics_file": "mine/own.py",
    }


def found(tuned: Path, report: Path) -> dict[str, Any]:
    """What training and evaluation say, held against what the functions are: the first checkpoint is the best."""
    state = json.loads((tuned / "trainer_state.json").read_text())
    chosen = [entry["eval_first"] for entry in state["log_history"] if "eval_first" in entry]
    assert chosen == [-1 - i for i in range(EVALUATIONS)] and state["best_global_step"] == 1
    metrics: dict[str, Any] = json.loads((report / "metrics.json").read_text())
    lines = [json.loads(line) for line in (report / "predictions.jsonl").read_text().splitlines()]
    apart = [abs(len(line["tuned"]["text"]) - len(line["ground_truth"])) for line in lines]
    assert metrics["headline"] == "apart" and any(apart)
    assert metrics["tuned"]["metrics"]["apart"] == pytest.approx(sum(apart) / len(apart))
    return {"chosen": chosen, "metrics": metrics}
