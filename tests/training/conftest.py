"""A tiny model without dropout, whose losses do not depend on how rows are spread over processes."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from steps.model_import import ModelImport
from tuneport.artifacts import CustomModel, Model
from tuneport.stage import execute


@pytest.fixture(scope="session")
def still(
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """``model`` and ``rows``, as model_import and preprocess hand them on: 96 training and 12 validation rows."""
    folder = tmp_path_factory.mktemp("still")
    shutil.copytree(tiny_model, folder / "tiny")
    config = json.loads((folder / "tiny" / "config.json").read_text("utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "tiny" / "config.json").write_text(json.dumps(config), "utf-8")
    made = SimpleNamespace(model=folder / "model_selector_output", rows=folder / "preprocess_output")
    made.task = "text_classification"
    execute(ModelImport(pytorch_model_path=CustomModel(folder / "tiny"), model_selector_output=Model(made.model)))
    preprocess = steps.load("preprocess", "text_classification")(
        model_selector_output=made.model,
        train_file_path=write_jsonl(folder / "questions.jsonl", questions),
        sentence1_key="text",
        label_key="label",
        preprocess_output=made.rows,
    )
    execute(preprocess)
    return made
