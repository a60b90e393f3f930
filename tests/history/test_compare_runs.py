"""Two real runs are compared as a recount by hand compares them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.whole_run import VALUES
from tuneport.history import compare_runs, kept_runs, show_runs
from tuneport.json_yaml import read_json
from tuneport.runner import html_page, run_record
from tuneport.runner.run_record import RunRecord

STAGES = ("model_import", "preprocess", "finetune", "model_export", "model_evaluation")


def as_kept(folder: Path) -> kept_runs.KeptRun:
    record = RunRecord(pipeline="text_classification", configuration="", values={}, stages=STAGES, status="running")
    run_record.ended(folder, run_record.begun(folder, record), "finished")
    return kept_runs.find(str(folder), folder.parent)


@pytest.fixture
def two(whole_run: Path, tmp_path: Path) -> tuple[kept_runs.KeptRun, kept_runs.KeptRun]:
    """A whole run, and a second one of it whose predictions a perfect model might have given, with other values."""
    for name in ("first", "second"):
        shutil.copytree(whole_run, tmp_path / name)
    evaluation = tmp_path / "second" / "model_evaluation" / "evaluation_result" / "predictions.jsonl"
    lines = [json.loads(line) for line in evaluation.read_text("utf-8").splitlines()]
    evaluation.write_text(
        "".join(json.dumps(line | {"correct": True, "parts": [1.0, 1.0]}) + "\n" for line in lines[::-1])
    )
    record = tmp_path / "second" / "finetune" / "stage.json"
    found = read_json(record)
    record.write_text(json.dumps(found | {"parameters": found["parameters"] | {"learning_rate": 0.5}}))
    return as_kept(tmp_path / "first"), as_kept(tmp_path / "second")


def predictions(run: kept_runs.KeptRun) -> dict[str, Any]:
    assert run.evaluation is not None
    lines = (run.evaluation / "predictions.jsonl").read_text("utf-8").splitlines()
    return {line["row_id"]: line for line in map(json.loads, lines)}


def test_the_difference_and_its_interval_are_those_of_a_recount(
    two: tuple[kept_runs.KeptRun, kept_runs.KeptRun],
) -> None:
    found = compare_runs.compare(*two)
    first, second = map(predictions, two)
    metrics = [read_json(run.evaluation / "metrics.json") for run in two if run.evaluation]
    own = [
        sum(line["parts"][0] for line in kept.values()) / sum(line["parts"][1] for line in kept.values())
        for kept in (first, second)
    ]
    assert own[0] == pytest.approx(metrics[0]["tuned"]["metrics"][metrics[0]["headline"]])
    assert found.difference is not None
    assert found.difference.value == pytest.approx(own[1] - own[0])
    gains = np.array([second[row]["correct"] - first[row]["correct"] for row in first], dtype=float)
    rng = np.random.default_rng(5)
    drawn = rng.choice(gains, (20_000, len(gains))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.difference.interval == pytest.approx((low, high), abs=0.09), "12 rows: a step is 1 / 12"
    assert found.difference.rows == len(first) == 12


def test_parameters_data_and_the_sentence_are_named(
    two: tuple[kept_runs.KeptRun, kept_runs.KeptRun], tmp_path: Path
) -> None:
    found = compare_runs.compare(*two)
    assert list(found.parameters) == ["learning_rate"] and found.parameters["learning_rate"][1] == 0.5
    assert {"train_file_path", "pytorch_model_path"} <= {*found.data}
    assert all(first == second for first, second in found.data.values())
    assert found.versions == {}
    assert "On the same 12 test rows, accuracy of second is +" in show_runs.difference_in_words(found)
    html_page.save_html(show_runs.comparison(found), "first and second", tmp_path / "two.html")
    page = (tmp_path / "two.html").read_text("utf-8")
    assert (
        "<title>first and second</title>" in page
        and "learning_rate" in page
        and page.startswith("<!doctype html>")
        and "http" not in page.replace("http-equiv", "")
    )
    assert json.loads(json.dumps(found.as_json()))["difference"]["metric"] == "accuracy"


def test_runs_with_other_test_rows_have_no_interval(two: tuple[kept_runs.KeptRun, kept_runs.KeptRun]) -> None:
    assert two[1].evaluation is not None
    file = two[1].evaluation / "predictions.jsonl"
    file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:-1]))
    found = compare_runs.compare(*two)
    assert found.difference is None and found.why_not == "their test rows are not the same (12 and 11)"


def test_a_run_has_its_verdict_scores_parameters_and_data(two: tuple[kept_runs.KeptRun, kept_runs.KeptRun]) -> None:
    run = two[0]
    assert run.scores is not None and run.scores.verdict and run.scores.headline == "accuracy"
    assert run.parameters["max_steps"] == VALUES["max_steps"]
    assert run.evaluation is not None and run.evaluation.name == "evaluation_result"
    assert "python" in run.versions
