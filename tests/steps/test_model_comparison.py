"""Stage model_comparison: models that do not go together, and rows that do not fit them, are refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from steps.model_comparison import ModelComparison
from tuneport.errors import UserError
from tuneport.stage import execute


def compare(data: Path, output: Path, **values: Any) -> dict[str, Any]:
    execute(ModelComparison(test_rows_path=data, comparison_result=output, **values))
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def altered(model: Path, folder: Path, **scoring: Any) -> Path:
    """A copy of an exported model that says something else of its scoring."""
    shutil.copytree(model, folder)
    (folder / "manifest.json").unlink()
    document = yaml.safe_load((folder / "MLmodel").read_text())
    task = scoring.pop("task", document["metadata"]["task"])
    told = document["metadata"]["tuneport_scoring"]
    document["metadata"] = {"task": task, "tuneport_scoring": {**told, "meta": told["meta"] | scoring}}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def test_a_model_is_held_against_another_one_by_columns_of_other_names(
    tracked_run: SimpleNamespace, questions: list[dict[str, str]], write_jsonl: Any, tmp_path: Path
) -> None:
    rows = [{"said": row["text"], "truth": {"label": row["label"]}} for row in questions[:30]]
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows, {"said": "a", "truth": {"label": None}}])
    columns = '{"text": "said", "label": "truth.label"}'
    found = compare(data, tmp_path / "out", first_model=tracked_run.exported, columns=columns)
    assert found["test_rows"] == 30 and sum(found["dropped"].values()) == 1 and found["gains"] == {}
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    right = [line["answers"]["first_model"]["label"] == line["label"] for line in lines]
    assert found["models"]["first_model"]["metrics"]["accuracy"] == pytest.approx(sum(right) / 30)


def test_text_that_is_not_valid_unicode_is_left_out_as_preprocess_leaves_it_out(
    tracked_run: SimpleNamespace, questions: list[dict[str, str]], tmp_path: Path
) -> None:
    rows = [*questions[:4], {"text": "broken \ud83d", "label": "animal"}, questions[4] | {"note": "\ud83d"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(data, tmp_path / "out", first_model=tracked_run.exported)
    assert found["test_rows"] == 5 and found["dropped"] == {"text that is not valid Unicode": 1}


@pytest.mark.parametrize(
    "case",
    [
        ({"text": "a", "label": "plant"}, {}, "has the label 'plant', which the models do not know; expected one of"),
        ({"text": "a"}, {}, "columns 'label=label' not found"),
        ({"text": "a", "label": None}, {}, "no row can be scored: null in column 'label'"),
        ({"text": "a", "label": "animal"}, {"metrics": "exact_match"}, "metrics: has no effect on models of text_cl"),
    ],
)
def test_rows_and_metrics_that_do_not_fit_are_refused(
    tracked_run: SimpleNamespace, write_jsonl: Any, tmp_path: Path, case: tuple[Any, Any, str]
) -> None:
    row, values, message = case
    with pytest.raises(UserError, match=message):
        compare(write_jsonl(tmp_path / "r.jsonl", [row]), tmp_path / "out", first_model=tracked_run.exported, **values)


def test_models_that_do_not_go_together_are_refused(
    tracked_run: SimpleNamespace, questions: list[dict[str, str]], write_jsonl: Any, tmp_path: Path
) -> None:
    data, first = write_jsonl(tmp_path / "rows.jsonl", questions[:4]), tracked_run.exported
    other_labels = altered(first, tmp_path / "labels", labels=["a", "b"])
    other_task = altered(first, tmp_path / "task", task="summarization")
    (tmp_path / "none").mkdir()
    for second, message in (
        (other_labels, "second_model=.*: has the labels a, b, and first_model animal, colour, number"),
        (other_task, "is of the task summarization, and first_model of text_classification"),
        (tmp_path / "none", "is not a model that this version of model_export wrote"),
    ):
        with pytest.raises(UserError, match=message):
            compare(data, tmp_path / "out", first_model=first, second_model=second)
