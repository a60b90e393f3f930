"""What holds of every task: no network, no pickles, lengths, the base model beside the tuned one, answers over HTTP."""

import json
import math
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.stage import execute

WRITING = ("summarization", "translation", "text_generation", "chat_completion")
WORDS = {"text_classification": 8, "token_classification": 8, "question_answering": 16}
LENGTHS = WORDS | {"summarization": 40, "translation": 40, "text_generation": 32, "chat_completion": 64}  # bytes
SHORT = SimpleNamespace(max_new_tokens=8)
every_task = pytest.mark.parametrize("name", tasks.names())


@pytest.fixture(scope="module")
def prepare(
    task_model: Callable[[str], Path],
    task_rows: list[dict[str, Any]],
    task_columns: dict[str, dict[str, Any]],
    write_jsonl: Any,
) -> Callable[..., dict[str, Any]]:
    """Preprocess the rows of a task into a folder; returns the inputs that finetune reads."""

    def make(name: str, folder: Path, **values: Any) -> dict[str, Any]:
        inputs = {"model_selector_output": task_model(name), "preprocess_output": folder}
        data = write_jsonl(folder.parent / "rows.jsonl", task_rows)
        execute(steps.load("preprocess", name)(**inputs, **{**task_columns[name], **values}, train_file_path=data))
        return inputs

    return make


@pytest.fixture(scope="module")
def run(prepare: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """All stages but import and registration, with the network cut: what reached for it is in `asked_network`.

    ``learnt``: trained until the model answers one thing to this, another to that, whatever its seed.
    """
    made: dict[tuple[str, bool], SimpleNamespace] = {}

    def make(name: str, learnt: bool = False) -> SimpleNamespace:
        if (name, learnt) not in made:
            max_steps = 12 if not learnt else 300 if name in WRITING else 60
            made[name, learnt] = without_network(name, tmp_path_factory.mktemp(name), max_steps)
        return made[name, learnt]

    def without_network(name: str, folder: Path, max_steps: int) -> SimpleNamespace:
        asked_network: list[Any] = []
        others = set(threading.enumerate()) - {threading.current_thread()}  # of earlier tests

        def refuse(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() not in others:
                asked_network.append((threading.current_thread().name, *args))
            raise OSError("the network is cut")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            patch.setattr(socket.socket, "connect", refuse)
            patch.setattr(socket, "getaddrinfo", refuse)
            return SimpleNamespace(**stages(name, folder, max_steps), asked_network=asked_network)

    def stages(name: str, folder: Path, max_steps: int) -> dict[str, Any]:
        inputs = prepare(name, folder / "data")
        tuned, exported, report = folder / "tuned", folder / "exported", folder / "report"
        training = {"max_steps": max_steps, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
        training |= {"learning_rate": 5e-3, "save_total_limit": 1}
        execute(steps.load("finetune", name)(**inputs, **training, pytorch_model_folder=tuned))
        trained = {"preprocess_output": folder / "data", "pytorch_model_folder": tuned}
        export, evaluation = steps.load("model_export", name), steps.load("model_evaluation", name)
        short = vars(SHORT) if vars(SHORT).keys() <= export.ports().keys() else {}
        execute(export(**trained, **short, mlflow_model_folder=exported))
        execute(evaluation(**inputs, **short, pytorch_model_folder=tuned, evaluation_result=report))
        data = Prepared(folder / "data")
        return {"folder": folder, "prepared": data, "tuned": tuned, "exported": exported, "report": report}

    return make


@every_task
def test_training_export_and_evaluation_ask_nothing_of_the_network(name: str, run: Callable[[str], Any]) -> None:
    done = run(name)
    assert done.asked_network == []
    assert (done.report / "report.html").is_file() and (done.exported / "MLmodel").is_file()


@every_task
def test_a_model_is_loaded_and_saved_in_the_class_of_its_task(name: str, run: Callable[[str], Any]) -> None:
    wanted = {
        "text_classification": "BertForSequenceClassification",
        "token_classification": "BertForTokenClassification",
        "question_answering": "BertForQuestionAnswering",
        "summarization": "T5ForConditionalGeneration",
        "translation": "LlamaForCausalLM",
        "text_generation": "GPT2LMHeadModel",
        "chat_completion": "LlamaForCausalLM",
    }[name]
    done = run(name)
    for folder in (done.tuned, done.exported / "artifacts" / "model"):
        assert json.loads((folder / "config.json").read_text())["architectures"] == [wanted]


@every_task
def test_nothing_that_is_written_needs_unguarded_unpickling(name: str, run: Callable[[str], Any]) -> None:
    import numpy as np
    import torch
    from numpy._core.multiarray import _reconstruct  # what transformers allows for its own generators' states

    done = run(name)
    files = [path for path in done.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".bin", ".joblib", ".npy")]
    states = [path for path in files if path.suffix in (".pt", ".pth")]
    assert states and all(path.is_relative_to(done.tuned / "checkpoints") for path in states)
    allowed = [_reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), type(np.dtype(np.int64))]
    with torch.serialization.safe_globals(allowed):
        for path in states:
            torch.load(path, weights_only=True)


@every_task
def test_the_evaluation_scores_the_base_model_beside_the_tuned_one(name: str, run: Callable[[str], Any]) -> None:
    done = run(name)
    found = json.loads((done.report / "metrics.json").read_text())
    assert found["main"] and set(found["main"]) <= found["tuned"]["metrics"].keys() & found["base"]["metrics"].keys()
    lines = [json.loads(line) for line in (done.report / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == found["test_rows"] == done.prepared.info.splits["test"]
    assert all(line.keys() > {"row_id", "tuned", "base"} for line in lines)


@pytest.mark.parametrize("name", WRITING)
def test_loss_and_perplexity_equal_a_recount_from_the_predictions(name: str, run: Callable[[str], Any]) -> None:
    done = run(name)
    found = json.loads((done.report / "metrics.json").read_text())
    lines = [json.loads(line) for line in (done.report / "predictions.jsonl").read_text().splitlines()]
    for who in ("tuned", "base"):
        tokens = sum(line[who]["tokens"] for line in lines)
        loss = sum(line[who]["negative_log_likelihood"] for line in lines) / tokens
        right = sum(line[who]["tokens_right"] for line in lines) / tokens
        recount = {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": right}
        assert {metric: found[who]["metrics"][metric] for metric in recount} == pytest.approx(recount)
    learnt = [sum(label != -100 for label in row["labels"]) for row in done.prepared.encoded("test").to_pylist()]
    assert [line["tuned"]["tokens"] for line in lines] == learnt


@every_task
def test_max_seq_length_and_pad_to_max_length_are_honoured(name: str, prepare: Any, tmp_path: Path) -> None:
    task, length, widths = tasks.load(name), LENGTHS[name], {}
    own = {"max_target_length": 8} if name in ("summarization", "translation") else {}
    own |= {"doc_stride": 2} if name == "question_answering" else {}
    for pad in (False, True):
        folder = tmp_path / str(pad) / "data"
        folder.parent.mkdir()
        inputs = prepare(name, folder, max_seq_length=length, pad_to_max_length=pad, **own)
        prepared = Prepared(folder)
        rows = prepared.encoded("train").to_pylist()
        longest = max(len(row["input_ids"]) for row in rows)
        assert longest == length or (name == "chat_completion" and longest < length)  # its rows must keep an answer
        short = sorted(rows, key=lambda row: len(row["input_ids"]))[:2]
        model = task.load_model(inputs["model_selector_output"], prepared.info.meta)
        batch = task.collator(model, prepared.info.meta, prepared.info.pad_to)(short)
        widths[pad] = batch["input_ids"].shape[1], len(short[1]["input_ids"])
    assert widths[False][0] == widths[False][1] < length == widths[True][0]


@pytest.mark.slow
@every_task
def test_a_model_served_over_http_without_tuneport_answers_as_in_process(
    name: str, run: Callable[[str], Any], serve: Any
) -> None:
    done, task = run(name, learnt=True), tasks.load(name)
    info = done.prepared.info
    fields = task.serving_schema(info.columns, info.meta)[0].names
    asked = [task.example(row) for row in done.prepared.rows("test")]
    asked = [{field: row[field] for field in fields if row.get(field) is not None} for row in asked]
    wanted = task.predictor(str(done.tuned), task.settings(info.meta, SHORT))(asked)
    assert len({json.dumps(answer) for answer in wanted}) > 1, wanted

    records = [{info.columns.get(field, field): value for field, value in row.items()} for row in asked]
    columns = list(records[0])
    lists = {column: [row[column] for row in records] for column in columns}
    cells = [list(row.values()) for row in records]
    with serve(done.exported) as ask:
        for body, answers in (
            ({"dataframe_split": {"columns": columns, "data": cells}}, wanted),
            ({"dataframe_split": {"columns": columns, "data": cells}, "params": {"batch_size": 2}}, wanted),
            ({"dataframe_records": records}, wanted),
            ({"inputs": records}, wanted),
            ({"inputs": lists}, wanted),
            ({"inputs": records[0]}, wanted[:1]),
        ):
            status, answer = ask(body)
            assert status == 200, answer
            assert close(answer["predictions"], answers), body
        if name == "chat_completion":  # as OpenAI's API is asked
            status, answer = ask(records[1])
            assert status == 200 and answer == wanted[1:2], answer
        status, answer = ask({"dataframe_records": [{"wrong": "x"}]})
        assert status == 400 and "missing inputs" in answer["message"]


def close(one: Any, other: Any) -> bool:
    """Whether answers are equal but for the last digits of numbers."""
    if isinstance(one, dict):
        return bool(one.keys() == other.keys() and all(close(one[key], other[key]) for key in one))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other))


@every_task
def test_predict_answers_each_row_as_the_served_model_does(
    name: str, run: Callable[[str], Any], task_rows: list[dict[str, Any]], write_jsonl: Any, tmp_path: Path
) -> None:
    import mlflow

    done, rows = run(name), task_rows[:5]
    rows = [{**row, "messages": row["messages"][:-1]} for row in rows]  # without the answer
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    stage = steps.load("predict")
    execute(
        stage(mlflow_model_folder=done.exported, predict_file_path=data, predictions=tmp_path / "out", rows_per_file=3)
    )
    files = sorted((tmp_path / "out" / "rows").glob("part-*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    assert len(files) == 2 and [{k: v for k, v in line.items() if k != "prediction"} for line in found] == rows
    served = mlflow.pyfunc.load_model(str(done.exported)).unwrap_python_model()
    columns = {field: column for field, column in served.columns.items() if column in rows[0]}
    wanted = served.predictor([{field: row[column] for field, column in columns.items()} for row in rows])
    text = {"summarization": "summary", "translation": "translation", "chat_completion": "content"}.get(name, "text")
    for line, answer in zip(found, wanted, strict=True):
        key = next(k for k in (text, "label", "tags", "answer", "words") if k in answer)
        assert line["prediction"][key] == answer[key]


@every_task
def test_evaluate_scores_an_exported_model_as_the_evaluation_of_its_run_does(
    name: str, run: Callable[[str], Any], task_rows: list[dict[str, Any]], write_jsonl: Any, tmp_path: Path
) -> None:
    done = run(name)
    numbers = [int(row["row_id"].rpartition(":")[2]) for row in done.prepared.rows("test")]
    data = write_jsonl(tmp_path / "test.jsonl", [task_rows[n - 1] for n in numbers])
    models = {"first_model": done.exported, "second_model": done.exported}
    stage = steps.load("model_comparison")
    execute(stage(**models, test_rows_path=data, comparison_result=tmp_path / "out"))
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = document["models"]["first_model"]
    assert found == document["models"]["second_model"] and document["test_rows"] == len(numbers)
    assert document["gains"][document["headline"]]["second_model"]["value"] == 0
    if name in ("text_generation", "chat_completion"):
        assert document["headline"] == "exact_match" and found["metrics"]["length_difference"] is not None
    else:
        wanted = json.loads((done.report / "metrics.json").read_text())["tuned"]
        scores = {k: v for k, v in wanted["metrics"].items() if k not in ("loss", "perplexity", "token_accuracy")}
        assert {k: found["metrics"][k] for k in scores} == pytest.approx(scores, rel=1e-4)
        assert found["intervals"][document["headline"]] == pytest.approx(
            wanted["intervals"][document["headline"]], rel=1e-3
        )
    lines = (tmp_path / "out" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(numbers) and json.loads(lines[0])["answers"].keys() == models.keys()
    assert "second_model" in (tmp_path / "out" / "report.html").read_text("utf-8")
