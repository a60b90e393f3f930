"""Metrics of what a model writes, from the training's choice of a checkpoint to the report."""

import json
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipelines
import steps
from tests.kfp_local import ROOT, run_document, start_processes
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.metrics.answers import last_number
from tuneport.runner.request import Request
from tuneport.stage import execute
from tuneport.targets import load

NUMBERS = {"cat": 7, "dog": 12, "cow": 305, "hen": 48}
OWN = """
def digits(predictions, references, rows):
    return [sum(c.isdigit() for c in text) for text in predictions]
"""


def rows(count: int, written: str, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    animals = [rng.choice(list(NUMBERS)) for _ in range(count)]
    return [{"prompt": f"{i} {animal}:", "answer": written.format(NUMBERS[animal])} for i, animal in enumerate(animals)]


@pytest.fixture(scope="module")
def run(decoder: Any, write_jsonl: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """A model learns to write a number in other words than those of the validation rows, so its loss on these grows."""
    folder, model = tmp_path_factory.mktemp("run"), decoder("llama")
    files = {
        "train": rows(64, "= {}", 0),
        "validation": rows(12, "that makes {}", 1),
        "test": rows(12, "that makes {}", 1),
    }
    data = {f"{name}_file_path": write_jsonl(folder / f"{name}.jsonl", found) for name, found in files.items()}
    prepared = folder / "data"
    execute(
        steps.load("preprocess", "text_generation")(
            model_selector_output=model,
            text_key="prompt",
            ground_truth_key="answer",
            deduplicate="none",
            preprocess_output=prepared,
            **data,
        )
    )
    (folder / "own.py").write_text(OWN)
    tuned, report = folder / "tuned", folder / "report"
    inputs = {"model_selector_output": model, "preprocess_output": prepared, "per_device_eval_batch_size": 16}
    values = {"num_train_epochs": 8, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    chosen = {"metric_for_best_model": "numeric_match"}
    execute(steps.load("finetune", "text_generation")(**inputs, **values, **chosen, pytorch_model_folder=tuned))
    execute(
        steps.load("model_evaluation", "text_generation")(
            **inputs,
            pytorch_model_folder=tuned,
            metrics="numeric_match,exact_match,own.py:digits",
            metrics_file=folder / "own.py",
            evaluation_result=report,
        )
    )
    return SimpleNamespace(folder=folder, inputs=inputs, tuned=tuned, report=report, prepared=Prepared(prepared))


def evaluations(run: SimpleNamespace) -> list[dict[str, Any]]:
    log = json.loads((run.tuned / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "eval_loss" in entry]


def test_the_chosen_metric_decides_the_checkpoint_and_not_the_loss(run: SimpleNamespace) -> None:
    found = evaluations(run)
    best = json.loads((run.tuned / "trainer_state.json").read_text())["best_global_step"]
    numbers = {entry["step"]: entry["eval_numeric_match"] for entry in found}
    assert numbers[best] == max(numbers.values()) > 0.9
    assert min(found, key=lambda entry: entry["eval_loss"])["step"] != best


def test_training_evaluation_and_report_give_one_number(run: SimpleNamespace) -> None:
    document = json.loads((run.report / "metrics.json").read_text())
    training = json.loads((run.tuned / "training.json").read_text())
    found = document["tuned"]["metrics"]["numeric_match"]
    assert found == training["best_metric"] and document["headline"] == "numeric_match"
    lines = [json.loads(line) for line in (run.report / "predictions.jsonl").read_text().splitlines()]
    right = [last_number(line["tuned"]["text"]) == last_number(line["ground_truth"]) for line in lines]
    assert len(lines) == 12 and found == pytest.approx(sum(right) / 12)
    page = (run.report / "report.html").read_text("utf-8")
    assert f"{found:.3f}" in page and "gives the right number in" in page and "Last number is right" in page
    own = [sum(c.isdigit() for c in line["tuned"]["text"]) for line in lines]
    assert document["tuned"]["metrics"]["digits"] == pytest.approx(sum(own) / 12)
    assert "digits" in document["tuned"]["intervals"] and document["better_than_base"]


@pytest.mark.parametrize("task", ["text_generation", "summarization"])
def test_a_training_answers_so_many_rows_with_so_many_tokens(task: str) -> None:
    found, rows = tasks.load(task), [{"text": "a", "ground_truth": "b", "document": "a", "summary": "b"}] * 9
    meta = {"prompting": {"max_target_tokens": 32, "max_positions": None, "encoder_decoder": False}}
    for values, asked, tokens in (
        ({"answered_validation_rows": 4, "validation_max_new_tokens": 5}, 4, 5),
        ({"answered_validation_rows": -1, "validation_max_new_tokens": -1}, 9, 32),
    ):
        options = SimpleNamespace(seed=1, **values)
        assert len(found.validation_questions(rows, options)) == asked
        assert found.validation_settings(meta, options)["params"]["max_new_tokens"] == tokens


def test_so_many_rows_are_answered_as_asked_for_and_by_the_seed(run: SimpleNamespace, tmp_path: Path) -> None:
    def answered(name: str, **values: Any) -> list[int]:
        stage = steps.load("model_evaluation", "text_generation")
        given = {"evaluate_base_model": False, "metrics": "json_schema,exact_match", "evaluation_rows": 4, **values}
        schema = {"answer_schema": '{"type": "number"}', "answer_normalization": "case", "numeric_tolerance": 1}
        execute(
            stage(
                **run.inputs,
                pytorch_model_folder=run.tuned,
                max_new_tokens=8,
                evaluation_result=tmp_path / name,
                **given,
                **schema,
            )
        )
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        return [i for i, line in enumerate(lines) if "text" in json.loads(line)["tuned"]]

    first = answered("first")
    assert len(first) == 4 and answered("again") == first and answered("other", seed=7) != first
    document = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert document["tuned"]["metrics"]["json_schema"] == 0.0
    assert document["tuned"]["metrics"]["loss"] is not None and document["test_rows"] == 12


def test_a_schema_may_stand_in_the_evaluation_config(tmp_path: Path) -> None:
    stage = steps.load("model_evaluation", "text_generation")
    given = dict.fromkeys(("model_selector_output", "pytorch_model_folder", "preprocess_output"), tmp_path)
    config = tmp_path / "evaluation.json"
    for values, message in (({"answer_schema": '{"type": "string"}'}, None), ({}, "answer_schema: is not set")):
        config.write_text(json.dumps({"evaluate_base_model": False, **values}))
        asked = stage(**given, evaluation_result=tmp_path, metrics="json_schema", evaluation_config=config)
        asked.check()
        with nullcontext() if message is None else pytest.raises(UserError, match=message):
            asked.check_files()


@pytest.fixture(scope="module")
def exported(run: SimpleNamespace) -> Path:
    output = run.folder / "exported"
    execute(
        steps.load("model_export", "text_generation")(
            pytorch_model_folder=run.tuned,
            preprocess_output=run.prepared.path,
            max_new_tokens=8,
            mlflow_model_folder=output,
        )
    )
    return output


@pytest.mark.slow
@pytest.mark.parametrize("target", ["local", "kfp"])
def test_an_own_metric_is_carried_to_where_exported_models_are_evaluated(
    target: str, run: SimpleNamespace, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its folder beside it: the file is an input as any other."""
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "own.py").write_text(OWN)
    values = {
        "first_model": str(exported),
        "test_rows_path": str(run.folder / "test.jsonl"),
        "metrics": "own.py:digits,numeric_match",
        "metrics_file": str(tmp_path / "metric" / "own.py"),
    }
    if target == "local":
        flags = [f"{name}={value}" for name, value in values.items()]
        argv = [sys.executable, "-m", "pipelines", "run", "evaluate", *flags, "--output_dir", "here"]
        subprocess.run(argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        result = tmp_path / "here" / "model_comparison" / "comparison_result"
    else:
        ran, digest = start_processes(monkeypatch), "@sha256:" + 64 * "0"
        volumes = [{"claim": "run", "path": str(run.folder)}, {"claim": "own", "path": str(tmp_path / "metric")}]
        platform = {"images": {name: f"registry.example/{name}{digest}" for name in ("base", "trainer")}}
        request = Request(
            output_dir=tmp_path / "x",
            folder=tmp_path,
            environment={},
            platform={"kfp": {**platform, "volumes": volumes}},
        )
        pipeline = pipelines.load("evaluate")
        document = load("kfp").compile(pipeline, pipeline.resolve(values), request)
        result = Path(run_document(document.text, tmp_path / "root").outputs["comparison_result"].path)
        assert ran == ["model_comparison"]
    found = json.loads((result / "metrics.json").read_text())
    lines = [json.loads(line) for line in (result / "predictions.jsonl").read_text().splitlines()]
    own = [sum(c.isdigit() for c in line["answers"]["first_model"]["text"]) for line in lines]
    assert found["headline"] == "digits" and len(own) == 12
    assert found["models"]["first_model"]["metrics"]["digits"] == pytest.approx(sum(own) / 12)
    assert found["models"]["first_model"]["metrics"]["numeric_match"] > 0.9
