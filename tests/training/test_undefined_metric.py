"""A metric that the validation rows leave undefined cannot choose a checkpoint, and training says so."""

from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.errors import UserError
from tuneport.stage import execute


def test_a_metric_of_entities_is_refused_where_no_validation_row_has_one(
    imported_model: Path, questions: list[dict[str, str]], write_jsonl: Any, tmp_path: Path
) -> None:
    def rows(part: list[dict[str, str]], tag: str) -> list[dict[str, list[str]]]:
        return [{"w": q["text"].split(), "t": [tag] + ["O"] * (len(q["text"].split()) - 1)} for q in part]

    train = [*rows(questions[:24], "O"), *rows(questions[30:31], "B-x")]
    files = {
        "train_file_path": write_jsonl(tmp_path / "train.jsonl", train),
        "validation_file_path": write_jsonl(tmp_path / "validation.jsonl", rows(questions[40:44], "O")),
        "test_file_path": write_jsonl(tmp_path / "test.jsonl", rows(questions[50:54], "O")),
    }
    data, model = tmp_path / "data", {"model_selector_output": imported_model}
    preprocess = steps.load("preprocess", "token_classification")
    execute(preprocess(**model, **files, preprocess_output=data, token_key="w", tag_key="t"))
    stage = steps.load("finetune", "token_classification")(
        **model,
        preprocess_output=data,
        pytorch_model_folder=tmp_path / "tuned",
        metric_for_best_model="f1",
        max_steps=60,
        eval_steps=60,
        evaluation_strategy="steps",
        per_device_train_batch_size=8,
        learning_rate=5e-3,
    )
    with pytest.raises(UserError, match="metric_for_best_model=f1: cannot be computed on the validation rows"):
        execute(stage)
    assert not (tmp_path / "tuned").exists()
