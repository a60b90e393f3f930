"""Stage model_export: the fine-tuned model as an MLflow model, in its folder and in the MLflow run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow import MlflowClient

import steps
from tuneport import tasks
from tuneport.artifacts import MLflowModel, read_manifest, verify
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.step import Context


def test_the_exported_folder_is_a_whole_artifact_that_answers_as_the_predictor(tracked_run: SimpleNamespace) -> None:
    verify(MLflowModel(tracked_run.exported))
    assert set(read_manifest(MLflowModel(tracked_run.exported))["inputs"]) == {
        "pytorch_model_folder",
        "preprocess_output",
    }
    rows = Prepared(tracked_run.prepared).rows("test")
    wanted = tasks.load("text_classification").predictor(str(tracked_run.model))(rows)
    got = mlflow.pyfunc.load_model(str(tracked_run.exported)).predict({"text": [row["sentence1"] for row in rows]})
    assert got["label"].tolist() == [answer["label"] for answer in wanted]
    assert got["score"].tolist() == pytest.approx([answer["score"] for answer in wanted], abs=1e-6)


def test_the_model_is_logged_to_the_run_that_trained_it(tracked_run: SimpleNamespace) -> None:
    tracking = json.loads((tracked_run.exported / "tracking.json").read_text())
    run_id = json.loads((tracked_run.model / "tracking.json").read_text())["run_id"]
    assert tracking["run_id"] == run_id
    client = MlflowClient(tracked_run.uri)
    model_id = tracking["model_uri"].removeprefix("models:/")
    assert model_id in [output.model_id for output in client.get_run(run_id).outputs.model_outputs]
    logged = client.get_logged_model(model_id)
    assert (logged.source_run_id, str(logged.status)) == (run_id, "READY")
    uploaded = Path(logged.artifact_location.removeprefix("file://"))
    assert (uploaded / "artifacts" / "model" / "model.safetensors").is_file()
    assert not (uploaded / ".incomplete").exists()
    assert client.get_run(run_id).info.status == "FINISHED"


def test_export_imports_no_torch_and_opens_no_connection(tracked_run: SimpleNamespace, tmp_path: Path) -> None:
    code = """
import socket, sys
def connect(self, address): raise OSError(f"connected to {address}")
socket.socket.connect = connect
import steps
from tuneport.stage import execute
from tuneport.step import Context
model, data, out = sys.argv[1:]
execute(steps.load("model_export", "text_classification")(
    pytorch_model_folder=model, preprocess_output=data, mlflow_model_folder=out))
assert not {"torch", "transformers"} & set(sys.modules)
"""
    arguments = [str(tracked_run.model), str(tracked_run.prepared), str(tmp_path / "mlflow")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
    tracking = json.loads((tmp_path / "mlflow" / "tracking.json").read_text())
    assert tracking == {"tracking_uri": None, "run_id": None, "model_uri": None}


def test_a_dataset_of_another_task_is_refused(tracked_run: SimpleNamespace, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "prepared"
    shutil.copytree(tracked_run.prepared, other)
    info = json.loads((other / "dataset.json").read_text()) | {"task_name": "summarization"}
    (other / "dataset.json").write_text(json.dumps(info))
    stage = steps.load("model_export", "text_classification")(
        pytorch_model_folder=tracked_run.model, preprocess_output=other, mlflow_model_folder=tmp_path / "out"
    )
    with pytest.raises(UserError, match="was prepared for summarization; expected text_classification"):
        stage.run()


@pytest.mark.parametrize(
    ("values", "tracking_uri", "adapter", "reads"),
    [
        ({}, None, False, False),
        ({}, "sqlite:///mlflow.db", False, True),
        ({"output_dtype": "bfloat16"}, None, False, True),
        ({"export_formats": "onnx"}, None, False, True),
        ({}, None, True, True),
    ],
)
def test_weights_are_read_only_where_they_are_sent_converted_or_merged(
    values: dict[str, str], tracking_uri: str | None, adapter: bool, reads: bool, tmp_path: Path
) -> None:
    if adapter:
        (tmp_path / "adapter_config.json").write_text("{}")
    given = {"pytorch_model_folder": tmp_path, "preprocess_output": tmp_path, "mlflow_model_folder": tmp_path / "out"}
    stage = steps.load("model_export", "text_classification")(**given, **values)
    stage.context = Context(tracking_uri=tracking_uri)  # type: ignore[misc]
    assert stage.needs("pytorch_model_folder") is reads
