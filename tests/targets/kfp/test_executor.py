"""A stage run from KFP's executor input, as its container does: by `python -m steps STAGE --kfp_executor_input …`."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tuneport.errors import UserError
from tuneport.step import View
from tuneport.targets.kfp.executor import fetch, local_path
from tuneport.targets.kfp.views import confusion, markdown, numbers, render

ROOT = Path(__file__).parents[3]


def artifacts(**uris: object) -> dict[str, Any]:
    return {name: {"artifacts": [{"name": name, "uri": str(uri), "metadata": {}}]} for name, uri in uris.items()}


def executor_input(
    out: Path, outputs: tuple[str, ...], parameters: dict[str, Any] | None = None, **inputs: object
) -> dict[str, Any]:
    return {
        "inputs": {"artifacts": artifacts(**inputs), "parameterValues": parameters or {}},
        "outputs": {
            "artifacts": artifacts(**{name: out / name for name in outputs}),
            "outputFile": str(out / "executor_output.json"),
        },
    }


def run(stage: str, task: dict[str, Any] | str, *flags: str) -> subprocess.CompletedProcess[str]:
    text = task if isinstance(task, str) else json.dumps(task)
    return subprocess.run(
        [sys.executable, "-P", "-m", "steps", stage, *flags, "--kfp_executor_input", text],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


PREPROCESS = ("preprocess_output", "data_report")
TASK = ("--task_name", "text_classification")
COLUMNS = {"sentence1_key": "text", "label_key": "label", "sentence2_key": "", "group_key": None, "min_rows": 10.0}


@pytest.fixture
def questions_file(write_jsonl, questions, tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    path: Path = write_jsonl(tmp_path / "data" / "questions.jsonl", questions)
    return path


def test_a_stage_reads_its_executor_input_and_reports_its_artifacts(tmp_path, imported_model, questions_file) -> None:
    out = tmp_path / "not" / "yet" / "there"
    task = executor_input(
        out, PREPROCESS, COLUMNS, model_selector_output=imported_model, train_file_path=questions_file
    )
    done = run("preprocess", task, *TASK)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "preprocess_output" / "manifest.json").read_text())["parameters"]["min_rows"] == 10
    report = json.loads((out / "executor_output.json").read_text())["artifacts"]
    assert set(report) == set(PREPROCESS)
    assert report["preprocess_output"]["artifacts"][0]["uri"] == str(out / "preprocess_output")
    text = (out / "data_report").read_text("utf-8")
    assert "## train" in text and "| rows | 96 |" in text
    assert sorted(p.name for p in out.iterdir()) == ["data_report", "executor_output.json", "preprocess_output"]


def test_data_on_a_volume_is_read_where_it_lies(tmp_path, imported_model, questions_file) -> None:
    parameters = {**COLUMNS, "train_file_path_location": str(questions_file)}
    task = executor_input(tmp_path / "out", PREPROCESS, parameters, model_selector_output=imported_model)
    done = run("preprocess", task, *TASK)
    assert done.returncode == 0, done.stderr


def test_several_sources_come_as_one_location(tmp_path, imported_model, questions_file) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(questions_file.read_text().replace('"text": "', '"text": "other '))
    sources = json.dumps([{"path": str(path), "weight": 1} for path in (questions_file, other)])
    parameters = {**COLUMNS, "train_file_path_location": sources}
    task = executor_input(tmp_path / "out", PREPROCESS, parameters, model_selector_output=imported_model)
    done = run("preprocess", task, *TASK)
    assert done.returncode == 0, done.stderr
    assert "### mixture" in (tmp_path / "out" / "data_report").read_text("utf-8")


def test_a_bad_value_ends_with_one_message_and_no_executor_output(tmp_path, imported_model, questions_file) -> None:
    parameters = {**COLUMNS, "max_seq_length": "long", "colour": "red"}
    task = executor_input(
        tmp_path / "out", PREPROCESS, parameters, model_selector_output=imported_model, train_file_path=questions_file
    )
    done = run("preprocess", task, *TASK)
    assert done.returncode == 2
    assert "max_seq_length='long': not valid" in done.stderr and "unknown parameter 'colour'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]"])
def test_what_is_no_executor_input_is_refused(text: str) -> None:
    done = run("preprocess", text, *TASK)
    assert done.returncode == 2 and "--kfp_executor_input: not valid" in done.stderr


@pytest.mark.parametrize(
    ("artifact", "path"),
    [
        ({"uri": "s3://bucket/a/b"}, "/s3/bucket/a/b"),
        ({"uri": "minio://mlpipeline/v2/x"}, "/minio/mlpipeline/v2/x"),
        ({"uri": "gs://b/k"}, "/gcs/b/k"),
        ({"uri": "oci://registry/team/model:1"}, "/oci/registry_team_model:1/models"),
        ({"uri": "/local/root/x"}, "/local/root/x"),
        ({"uri": "file:///mnt/x"}, "/mnt/x"),
        ({"uri": "s3://b/k", "customPath": "/mnt/y"}, "/mnt/y"),
    ],
)
def test_an_artifact_lies_where_kfp_puts_it(artifact: dict[str, str], path: str) -> None:
    from kfp import dsl

    assert str(local_path(artifact)) == path
    if "customPath" not in artifact and not artifact["uri"].startswith("file"):
        assert dsl.Model(uri=artifact["uri"]).path == path  # kfp's own answer


@pytest.fixture
def web(questions_file: Path) -> Iterator[str]:
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *a: None})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: handler(*a, directory=str(questions_file.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_data_on_a_web_server_is_fetched_and_its_absence_said(tmp_path, web, questions_file) -> None:
    from tuneport.errors import UserError
    from tuneport.targets.kfp.executor import fetch

    fetched = fetch("train_file_path", f"{web}/questions.jsonl?version=1", tmp_path)
    assert fetched.name == "questions.jsonl" and fetched.read_bytes() == questions_file.read_bytes()
    with pytest.raises(UserError, match=r"test_file_path=http.*cannot be fetched.*404"):
        fetch("test_file_path", f"{web}/none.jsonl", tmp_path)


# -- what people see ---------------------------------------------------------------------------------------------------


def test_metrics_leave_out_what_is_no_number() -> None:
    found = {"f1": 0.5, "n": 3, "best": "x", "auc": None, "flag": True, "loss": float("nan")}
    assert numbers(found) == {"f1": 0.5, "n": 3}


def test_a_confusion_matrix_is_one_that_kfp_reads(tmp_path: Path) -> None:
    from kfp import dsl

    found = {"confusion_matrix": [[5, 1], [0, 4]], "labels": ["no", "yes"]}
    expected = dsl.ClassificationMetrics()
    expected.log_confusion_matrix(found["labels"], found["confusion_matrix"])
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    metadata = render(View("confusion_matrix", "metrics.json"), tmp_path, tmp_path / "place")
    assert metadata["confusionMatrix"]["rows"] == expected.metadata["confusionMatrix"]["rows"]
    assert metadata["confusionMatrix"]["annotationSpecs"] == expected.metadata["confusionMatrix"]["annotationSpecs"]
    assert confusion({"confusion_matrix": None, "labels": None}) == {}


def test_json_becomes_readable_markdown() -> None:
    lines = list(markdown({"rows": 3, "a|b": None, "splits": {"train": {"share": 0.123456789}}, "ids": [1, 2]}))
    assert "| rows | 3 |" in lines and "| a\\|b |  |" in lines
    assert "# splits" in lines and "## train" in lines and "| share | 0.123457 |" in lines
    assert "1, 2" in lines


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "ftp://host/data.csv", "FILE://localhost/etc/passwd"])
def test_a_location_is_a_web_address_and_no_file_of_the_container(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_file_path=.*not valid; expected an https address"):
        fetch("train_file_path", uri, tmp_path)
    assert not list(tmp_path.iterdir())
