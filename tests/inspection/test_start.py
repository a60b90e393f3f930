"""`tuneport init --data FILE`: the task and the columns are told from the file, and what is written runs."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import mlflow
import pytest
import yaml

import pipelines
from tests.tasks.conftest import CHATML, gpt2, llama, t5
from tuneport.config import given
from tuneport.errors import UserError
from tuneport.inspection import start
from tuneport.json_yaml import read_json
from tuneport.runner.request import Request
from tuneport.runner.run import compile_plan
from tuneport.stage import execute

Command = Callable[..., int]
EXAMPLES: dict[str, list[dict[str, Any]]] = {  # rows as those of the folder examples/ are
    "text_classification": [{"text": f"who is {i}", "label": "HUM" if i % 2 else "NUM"} for i in range(60)],
    "token_classification": [{"text": "a", "tokens": ["Ann", f"{i}"], "tags": ["NOUN", "NUM"]} for i in range(60)],
    "question_answering": [
        {
            "question": "which",
            "context": f"it is {i}",
            "answers": {"text": [f"{i}"], "answer_start": [6]},
            "source": "x",
        }
        for i in range(59)
    ]
    + [{"question": "which", "context": "it is not", "answers": {"text": [], "answer_start": []}, "source": "x"}],
    "summarization": [
        {"document": f"a long text on {i} and more", "summary": f"{i}", "source": f"{i}"} for i in range(60)
    ],
    "translation": [{"en": f"a cat {i}", "fr": f"un chat {i}", "source": f"{i}"} for i in range(60)],
    "text_generation": [{"prompt": f"tell {i}", "completion": f"of {i}", "source": f"{i}"} for i in range(60)],
    "chat_completion": [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "ho"}], "block": f"{i}"}
        for i in range(60)
    ],
}
COLUMNS = {
    "text_classification": {"sentence1_key": "text", "label_key": "label"},
    "token_classification": {"token_key": "tokens", "tag_key": "tags"},
    "question_answering": {"question_key": "question", "context_key": "context", "answers_key": "answers"},
    "summarization": {"document_key": "document", "summary_key": "summary"},
    "translation": {"source_lang": "en", "target_lang": "fr"},
    "text_generation": {"text_key": "prompt", "ground_truth_key": "completion"},
    "chat_completion": {},
}


@pytest.mark.parametrize("task", list(EXAMPLES))
def test_the_task_and_the_columns_are_told_and_what_is_written_is_valid(
    task: str, tuneport: Command, tmp_path: Path, tiny_model: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl(tmp_path / "my.jsonl", EXAMPLES[task])
    assert tuneport("init", "--data", "my.jsonl", "--model", str(tiny_model), "-o", "run.yaml") == 0
    text = (tmp_path / "run.yaml").read_text("utf-8")
    assert len(text.splitlines()) <= 20
    written = yaml.safe_load(text)
    assert COLUMNS[task].items() <= written.items()
    assert written["train_file_path"] == "my.jsonl"
    schema = json.loads((tmp_path / f"{task}.schema.json").read_text("utf-8"))
    assert text.startswith(f"# yaml-language-server: $schema={task}.schema.json\n")
    jsonschema.validate({**written, "learning_rate": float(written["learning_rate"])}, schema)
    knobs = {*written} - {"pytorch_model_path", "train_file_path"} - {*COLUMNS[task]}
    assert len(knobs) == 5
    assert tuneport("validate", task, "--config", "run.yaml") == 0


def test_a_csv_with_semicolons_is_read_and_a_task_that_is_named_wins(tuneport: Command, tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("review;stars\n" + "".join(f"it was {i};{i % 2}\n" for i in range(30)))
    assert tuneport("init", "text_classification", "--data", "my.csv", "-o", "run.yaml") == 0
    written = yaml.safe_load((tmp_path / "run.yaml").read_text("utf-8"))
    assert written["sentence1_key"] == "review" and written["label_key"] is None
    assert "label_key:  # a column: review, stars\n" in (tmp_path / "run.yaml").read_text("utf-8")


def test_a_file_that_tells_no_task_is_refused_by_its_columns(tuneport: Command, tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("a,b\n" + "1,x y\n2,y z\n")
    with pytest.raises(UserError, match=r"my\.csv: its columns do not tell the task; it has: a, b\. Name the task"):
        start.write(None, str(tmp_path / "my.csv"), None, tmp_path, pytest.fail)
    with pytest.raises(UserError, match="no task is named; name one, or a file"):
        start.write(None, None, None, tmp_path, pytest.fail)
    assert tuneport("init", "text_classification", "--model", "./nowhere") == 2


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (
            [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
            {"chat_format": "sharegpt"},
        ),
        ([{"instruction": "a", "input": "", "output": "b"}], {"chat_format": "alpaca"}),
        ([{"turns": [{"role": "user", "content": "a"}]}], {"messages_key": "turns"}),
    ],
)
def test_the_shape_of_a_conversation_is_told(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    sample = start.Sample(name="x", columns=[*rows[0]], rows=rows, count=1)
    assert start.guess_task(sample) == "chat_completion"
    assert start.guess_columns("chat_completion", sample) == columns


@pytest.mark.parametrize("turns", [3, [1, 2], None, "[" * 100_000])
def test_conversations_that_are_none_are_no_conversations(turns: Any, tmp_path: Path, write_jsonl: Any) -> None:
    data = write_jsonl(tmp_path / "my.jsonl", [{"conversations": turns, "other": "x"}])
    sample = start.look(str(data))
    assert "chat_format" not in start.guess_columns("chat_completion", sample)


def test_names_of_columns_and_files_stay_in_their_comments(tuneport: Command, tmp_path: Path) -> None:
    name = "e\nhuggingface_id: evil.csv"
    (tmp_path / name).write_text('"re\nview: x",stars\n' + "".join(f"it was {i},{i % 2}\n" for i in range(30)))
    assert tuneport("init", "token_classification", "--data", name, "-o", "run.yaml") == 0
    written = yaml.safe_load((tmp_path / "run.yaml").read_text("utf-8"))
    assert "view" not in written and "evil" not in str(written["huggingface_id"])


def test_settings_follow_the_number_of_rows_and_of_weights() -> None:
    def knobs(task: str, rows: int, weights: int | None) -> dict[str, Any]:
        return start.knobs(task, start.Sample(name="x", columns=[], rows=[], count=rows), {}, weights)

    assert (
        knobs("text_classification", 500, None)["num_train_epochs"]
        > knobs("text_classification", 50_000, None)["num_train_epochs"]
    )
    rates = [
        knobs("text_classification", 500, weights)["learning_rate"] for weights in (20_000_000, 110_000_000, 10**9)
    ]
    assert rates == sorted(rates, reverse=True) and len({*rates}) == 3
    assert knobs("chat_completion", 500, 7 * 10**9)["apply_lora"] is True
    assert knobs("chat_completion", 500, 10**8)["apply_lora"] is False


def test_labels_that_are_uneven_or_lists_change_what_is_written(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "ham" if i else "spam"} for i in range(20)]
    sample = start.Sample(name="x", columns=["text", "label"], rows=rows, count=20)
    columns = start.guess_columns("text_classification", sample)
    assert start.knobs("text_classification", sample, columns, None)["metric_for_best_model"] == "f1_macro"
    several = start.Sample(name="x", columns=["text", "label"], rows=[{"text": "a", "label": ["x"]}], count=1)
    assert start.guess_columns("text_classification", several)["multi_label"] == "true"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text_classification"])
def test_what_is_written_runs_without_an_edited_line(
    task: str, tuneport: Command, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tiny_model, task_rows, capsys = map(request.getfixturevalue, ("tiny_model", "task_rows", "capsys"))
    names = {"text_classification": ["text", "label"], "token_classification": ["words", "tags"]}[task]
    with (tmp_path / "my.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(names)
        writer.writerows(
            [v if isinstance(v := row[name], str) else json.dumps(v) for name in names] for row in task_rows
        )
    assert tuneport("init", "--data", "my.csv", "--model", str(tiny_model), "-o", "run.yaml") == 0
    capsys.readouterr()
    assert tuneport("run", task, "--config", "run.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "finished" and found["metrics"]["tuned model"]
    assert (tmp_path / "runs" / task / "latest" / "model_export" / "mlflow_model_folder" / "MLmodel").is_file()


WRITERS = {"summarization": t5, "translation": t5, "text_generation": gpt2, "chat_completion": llama}


@pytest.mark.slow
@pytest.mark.parametrize("task", list(EXAMPLES))
def test_what_is_written_gives_a_model_once_the_base_model_is_another(
    task: str, tuneport: Command, tmp_path: Path, tiny_model: Path, write_jsonl: Callable[..., Path]
) -> None:
    """Every stage of the run, in this process: the line of the base model is edited, and one step is trained."""
    write_jsonl(tmp_path / "my.jsonl", EXAMPLES[task])
    model = tiny_model if task not in WRITERS else tmp_path / "base"
    if task in WRITERS:
        WRITERS[task](model)
    if task == "chat_completion":
        (model / "chat_template.jinja").write_text(CHATML, "utf-8")
    assert tuneport("init", "--data", "my.jsonl", "-o", "run.yaml") == 0
    text = (tmp_path / "run.yaml").read_text("utf-8")
    edited, count = re.subn(r"^huggingface_id: .*$", f"pytorch_model_path: {model}", text, flags=re.MULTILINE)
    assert count == 1
    (tmp_path / "run.yaml").write_text(edited, "utf-8")
    pipeline = pipelines.load(task)
    short = ["max_steps=1", *(["max_new_tokens=4"] if task in WRITERS else [])]
    short += ["doc_stride=15"] if task == "question_answering" else []  # as the tiny model reads 64 tokens at most
    values = pipeline.resolve(given(pipeline, tmp_path / "run.yaml", short, tmp_path))
    plan = compile_plan(pipeline, values, Request(output_dir=tmp_path / "run", folder=tmp_path, environment={}))
    for stage in plan.stages:
        execute(stage.step)
    served = mlflow.pyfunc.load_model(str(plan.outputs["mlflow_model_folder"].path))
    answered = served.predict(served.input_example)
    assert len(answered) > 0
    scores = read_json(plan.outputs["evaluation_result"].path / "metrics.json")
    assert scores["test_rows"] > 0 and scores["tuned"]["metrics"]
