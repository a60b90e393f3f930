"""Changing any one accepted parameter changes something observable: what is written, or what is computed.

What a run merely records of its parameters (manifests) does not count as an effect.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import pipelines
import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.trainer import train

TASK = "text_classification"
PIPELINE = pipelines.load(TASK)

# parameter: (what is set in both runs, value in the first, value in the second)
MODEL_IMPORT: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "huggingface_id": ({}, "acme/one", "acme/other"),
    "huggingface_revision": ({"huggingface_id": "acme/one"}, None, "old"),
    "gguf_file": ({"huggingface_id": "acme/one"}, None, "one.gguf"),
}
PREPROCESS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "sentence1_key": ({}, "text", "other"),
    "sentence2_key": ({}, None, "other"),
    "label_key": ({}, "label", "second_label"),
    "multi_label": ({"label_key": "labels"}, True, False),
    "batch_size": ({}, 1000, 10),
    "max_seq_length": ({}, -1, 5),
    "pad_to_max_length": ({}, False, True),
    "min_rows": ({}, 10, 1000),
    "max_dropped_fraction": ({"label_key": "holes"}, 0.5, 0.05),
    "deduplicate": ({"sentence1_key": "repeated"}, "exact", "none"),
    "near_duplicate_threshold": ({"deduplicate": "near"}, 1.0, 0.7),
    "group_key": ({}, None, "group"),
    "validation_split_ratio": ({}, 0.1, 0.3),
    "test_split_ratio": ({}, 0.1, 0.3),
    "split_seed": ({}, 42, 43),
}
STEPS = {"evaluation_strategy": "steps", "eval_steps": 8}
STOPS = {"apply_early_stopping": True, "num_train_epochs": 5, "learning_rate": 1e-6, "early_stopping_threshold": 0.5}
FINETUNE: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "num_train_epochs": ({}, 1, 2),
    "max_steps": ({}, -1, 3),
    "learning_rate": ({}, 1e-3, 2e-3),
    "lr_scheduler_type": ({}, "linear", "cosine"),
    "warmup_steps": ({}, 0, 4),
    "optim": ({}, "adamw_hf", "adafactor"),
    "weight_decay": ({}, 0.0, 0.5),
    "adam_beta1": ({}, 0.9, 0.5),
    "adam_beta2": ({}, 0.999, 0.9),
    "adam_epsilon": ({}, 1e-8, 1e-2),
    "max_grad_norm": ({"optim": "adafactor"}, 1.0, 0.01),
    "per_device_train_batch_size": ({}, 8, 4),
    "group_by_length": ({}, False, True),
    "gradient_accumulation_steps": ({}, 1, 2),
    "per_device_eval_batch_size": ({}, 64, 2),
    "precision": ({}, "32", "bf16"),
    "seed": ({}, 42, 43),
    "evaluation_strategy": ({"eval_steps": 5}, "epoch", "steps"),
    "eval_steps": (STEPS, 8, 4),
    "logging_strategy": ({}, "steps", "epoch"),
    "logging_steps": ({}, 10, 3),
    "save_total_limit": ({"num_train_epochs": 4}, -1, 1),
    "apply_early_stopping": (STOPS, True, False),
    "early_stopping_patience": (STOPS, 1, 2),
    "early_stopping_threshold": (STOPS, 0.5, 0.0),
    "metric_for_best_model": ({}, "loss", "accuracy"),
}
MODEL_EVALUATION = {"trivial_baselines": ({}, True, False)}
# Of the other tasks: what text_classification has not.
TOKEN_PREPROCESS: dict[str, tuple[Any, Any]] = {
    "token_key": ("words", "other_words"),
    "tag_key": ("tags", "other_tags"),
    "label_all_tokens": (False, True),
}
TOKEN_ROWS: list[dict[str, Any]] = [
    {
        "words": [f"purplewords{i}", "cat"],
        "other_words": ["dog", f"n{i}"],
        "tags": ["A", "B"],
        "other_tags": ["C", "D"],
    }
    for i in range(40)
]
CONDITIONS = {"registered_model_name": ({}, None, "questions")}


def test_the_tables_cover_every_parameter_of_the_pipeline() -> None:
    tables = (MODEL_IMPORT, PREPROCESS, FINETUNE, MODEL_EVALUATION, CONDITIONS)
    tested = [name for table in tables for name in table]
    accepted = [name for name, port in PIPELINE.params.items() if port.kind == "param"]
    assert sorted(tested) == sorted(accepted)


def test_the_tables_cover_every_parameter_of_token_classification() -> None:
    own = {"sentence1_key", "sentence2_key", "label_key", "multi_label"}
    tested = {*MODEL_IMPORT, *PREPROCESS, *FINETUNE, *MODEL_EVALUATION, *CONDITIONS, *TOKEN_PREPROCESS} - own
    assert tested == {n for n, p in pipelines.load("token_classification").params.items() if p.kind == "param"}


@pytest.mark.parametrize("name", TOKEN_PREPROCESS)
def test_a_preprocess_parameter_of_token_classification_has_an_effect(
    name: str, imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    inputs = {
        "model_selector_output": imported_model,
        "train_file_path": write_jsonl(tmp_path / "rows.jsonl", TOKEN_ROWS),
        "token_key": "words",
        "tag_key": "tags",
    }
    runs = [
        outcome("preprocess", inputs | {name: value}, tmp_path / str(value), "token_classification")
        for value in TOKEN_PREPROCESS[name]
    ]
    assert all(isinstance(run, dict) for run in runs), runs
    assert runs[0] != runs[1]


@pytest.fixture(scope="module")
def table(questions: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions as CSV, with more columns to choose from."""
    path = tmp_path_factory.mktemp("data") / "questions.csv"
    rows = [
        {
            **row,
            "other": " ".join(reversed(row["text"].split())),
            "second_label": ("odd", "even")[i // 2 % 2],
            "labels": json.dumps([row["label"], ("odd", "even")[i // 2 % 2]]),
            "holes": "" if i % 10 == 0 else row["label"],
            "group": str(i // 4),
            "repeated": row["text"] if i > 5 else "the same",
        }
        for i, row in enumerate(questions)
    ]
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but the manifest."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file() and f.name != "manifest.json"
    }


def outcome(name: str, values: Mapping[str, Any], output: Path, task: str = TASK) -> Any:
    """Run a stage; what it wrote, or the message it refused with."""
    stage_class = steps.load(name, task)
    (port,) = (p.name for p in stage_class.ports().values() if p.kind == "output")
    try:
        execute(stage_class(**values, **{port: output}))
    except Exception as e:
        return str(e)
    return contents(output)


@pytest.mark.parametrize("name", MODEL_IMPORT)
def test_a_model_import_parameter_has_an_effect(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, revision, commit in (("one", "main", "1"), ("one", "old", "2"), ("other", "main", "3")):
        root = tmp_path / "hub" / f"models--acme--{model}"
        snapshot = Path(shutil.copytree(tiny_model, root / "snapshots" / (commit * 40)))
        (snapshot / "README.md").write_text(commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shared, first, second = MODEL_IMPORT[name]
    runs = [
        outcome("model_import", shared | {name: value}, tmp_path / str(i)) for i, value in enumerate((first, second))
    ]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("name", PREPROCESS)
def test_a_preprocess_parameter_has_an_effect(name: str, table: Path, imported_model: Path, tmp_path: Path) -> None:
    shared, first, second = PREPROCESS[name]
    inputs = {
        "model_selector_output": imported_model,
        "train_file_path": table,
        "sentence1_key": "text",
        "label_key": "label",
    }
    runs = [
        outcome("preprocess", inputs | shared | {name: value}, tmp_path / str(i))
        for i, value in enumerate((first, second))
    ]
    again = outcome("preprocess", inputs | shared | {name: first}, tmp_path / "again")
    assert isinstance(runs[0], dict), runs[0]
    assert runs[0] == again, "equal parameters must give equal output, or a difference shows nothing"
    assert runs[0] != runs[1]


class CountForwardPasses(TrainerCallback):  # type: ignore[misc]
    """How many batches were evaluated."""

    def __init__(self) -> None:
        self.evaluation_batches = 0

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        self.evaluation_batches += 1


def training_outcome(values: dict[str, Any], model: Path, prepared: Path, output: Path) -> Any:
    """All that training computed: weights and optimizer states, the log without timings, evaluation batches."""
    defaults = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 64, "learning_rate": 1e-3}
    stage = steps.load("finetune", TASK)(model_selector_output=model, preprocess_output=prepared, **defaults | values)
    counted, metric = CountForwardPasses(), vars(stage)["metric_for_best_model"]
    task, read, run = tasks.load(TASK), Prepared(prepared), Run()
    options: Any = stage
    result = train(
        task, model, read, options, metric_for_best_model=metric, output=output, run=run, callbacks=[counted]
    )
    timings = ("runtime", "per_second")
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logged = [{k: v for k, v in entry.items() if not any(word in k for word in timings)} for entry in log]
    kept = {k: v for k, v in contents(output).items() if "trainer_state" not in k}
    return kept, logged, counted.evaluation_batches, result.best_metric


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Outcomes by their values, since many parameters are compared with the same run."""
    return {}


@pytest.mark.parametrize("name", FINETUNE)
def test_a_finetune_parameter_has_an_effect(
    name: str, imported_model: Path, prepared_questions: Path, outcomes: dict[str, Any], tmp_path: Path
) -> None:
    shared, first, second = FINETUNE[name]
    runs = []
    ports = steps.load("finetune", TASK).ports()
    for value in (first, second):
        values = {n: v for n, v in (shared | {name: value}).items() if v != ports[n].default}
        key = json.dumps(values, sort_keys=True)
        if key not in outcomes:
            outcomes[key] = training_outcome(values, imported_model, prepared_questions, tmp_path / str(value))
        runs.append(outcomes[key])
    assert runs[0] != runs[1]


def test_training_repeats_itself_so_that_a_difference_shows_an_effect(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    first, second = (training_outcome({}, imported_model, prepared_questions, tmp_path / name) for name in "ab")
    assert first == second


@pytest.mark.parametrize("name", MODEL_EVALUATION)
def test_a_model_evaluation_parameter_has_an_effect(
    name: str, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    inputs = {"model_selector_output": imported_model, "preprocess_output": prepared_questions}
    assert isinstance(outcome("finetune", inputs | {"max_steps": 2}, tuned), dict)
    shared, first, second = MODEL_EVALUATION[name]
    runs = []
    for value in (first, second):
        output = tmp_path / str(value)
        written = outcome("model_evaluation", inputs | shared | {"pytorch_model_folder": tuned, name: value}, output)
        assert isinstance(written, dict), written
        runs.append(json.loads((output / "metrics.json").read_text()))
    assert runs[0] != runs[1]


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_decides_which_stages_run(name: str) -> None:
    shared, first, second = CONDITIONS[name]
    required = {"sentence1_key": "text", "label_key": "label"} | shared
    ran = [[n.name for n in PIPELINE.active(PIPELINE.resolve(required | {name: value}))] for value in (first, second)]
    assert ran[0] != ran[1]
