"""Stage model_registration: a registered version that loads by name, tagged with its scores."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

import steps
from steps.model_registration import ModelRegistration
from tuneport.artifacts import MLflowModel, Model, Report, write_manifest
from tuneport.errors import UserError
from tuneport.stage import execute, save_json
from tuneport.step import Context
from tuneport.tracking import save_run, tracked

METRICS = {
    "main": ["accuracy", "f1_macro", "auc"],
    "tuned": {"metrics": {"accuracy": 0.75, "f1_macro": 2 / 3, "auc": None}},
}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation_result"
    folder.mkdir()
    save_json(folder / "metrics.json", METRICS)
    write_manifest(Report(folder), "model_evaluation", "0", {}, {})
    return folder


def registration(context: Context, **values: Any) -> ModelRegistration:
    stage = ModelRegistration(**values)
    stage.context = context  # type: ignore[misc]
    return stage


def register(run: SimpleNamespace, report: Path, output: Path, name: str, model: Path | None = None) -> dict[str, Any]:
    stage = registration(
        run.context,
        mlflow_model_folder=model or run.exported,
        evaluation_result=report,
        registered_model_name=name,
        registration_details_folder=output,
    )
    execute(stage)
    details: dict[str, Any] = json.loads((output / "registration_details.json").read_text())
    return details


def test_the_registered_version_loads_by_name_and_carries_its_scores(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    details = register(tracked_run, report, tmp_path / "out", "question model")
    run_id = json.loads((tracked_run.model / "tracking.json").read_text())["run_id"]
    assert details == {
        "name": "question model",
        "version": 1,
        "source": json.loads((tracked_run.exported / "tracking.json").read_text())["model_uri"],
        "run_id": run_id,
        "tracking_uri": tracked_run.uri,
    }
    client = MlflowClient(tracked_run.uri)
    version = client.get_model_version("question model", "1")
    assert (version.run_id, version.status) == (run_id, "READY")
    assert version.tags == {"test_accuracy": "0.75", "test_f1_macro": "0.666667"}
    mlflow.set_tracking_uri(tracked_run.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/question model/1")
    finally:
        mlflow.set_tracking_uri(None)  # unsets the variable as well, which later tests' processes would inherit
    assert model.predict({"text": "is it red or not"})["label"][0] in ("animal", "colour", "number")


def test_registering_again_under_a_name_makes_the_next_version(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    versions = [register(tracked_run, report, tmp_path / f"out{i}", "twice")["version"] for i in range(2)]
    assert versions == [1, 2]


def test_a_model_that_missed_its_upload_is_uploaded_now(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    model = tmp_path / "mlflow_model_folder"
    shutil.copytree(tracked_run.exported, model)
    tracking = json.loads((model / "tracking.json").read_text()) | {"model_uri": None}
    save_json(model / "tracking.json", tracking)
    write_manifest(MLflowModel(model), "model_export", "0", {}, {})
    details = register(tracked_run, report, tmp_path / "out", "late", model)
    client = MlflowClient(tracked_run.uri)
    logged = client.get_logged_model(details["source"].removeprefix("models:/"))
    assert (Path(logged.artifact_location.removeprefix("file://")) / "MLmodel").is_file()


def test_without_a_server_or_a_run_the_user_is_told_what_to_set(
    tracked_run: SimpleNamespace, report: Path, mlflow_store: Callable[[Path], str], tmp_path: Path
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{s.getsockname()[1]}"
    other = mlflow_store(tmp_path / "other")
    for context, message in (
        (Context(), "no MLflow server is set .* Set MLFLOW_TRACKING_URI"),
        (Context(tracking_uri=other), "belongs to no run on 'sqlite.*other/mlflow.db'.* Set MLFLOW_TRACKING_URI"),
        (Context(tracking_uri=dead), "belongs to no run on"),
    ):
        with pytest.raises(UserError, match=message):
            register(SimpleNamespace(context=context, exported=tracked_run.exported), report, tmp_path / "out", "x")
        assert not (tmp_path / "out").exists()


def test_a_server_that_died_since_is_told_to_the_user(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{s.getsockname()[1]}"
    model = tmp_path / "mlflow_model_folder"
    for uploaded, message in (("models:/m-1", "registering models:/m-1 at .* failed"), (None, "could not be uploaded")):
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(tracked_run.exported, model)
        save_json(model / "tracking.json", {"tracking_uri": dead, "run_id": "abc", "model_uri": uploaded})
        write_manifest(MLflowModel(model), "model_export", "0", {}, {})
        run = SimpleNamespace(context=Context(tracking_uri=dead), exported=model)
        with pytest.raises(UserError, match=message):
            register(run, report, tmp_path / "out", "x")


@pytest.mark.parametrize("name", [None, " ", "a/b", "a:b", ".."])
def test_a_name_that_cannot_be_registered_is_refused_before_any_work(
    name: str | None, tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"registered_model_name=.*not valid; expected a name"):
        register(tracked_run, report, tmp_path / "out", name)  # type: ignore[arg-type]


def test_scores_that_are_not_there_are_named(tracked_run: SimpleNamespace, report: Path, tmp_path: Path) -> None:
    save_json(report / "metrics.json", {"main": ["accuracy"]})
    write_manifest(Report(report), "model_evaluation", "0", {}, {})
    with pytest.raises(UserError, match=r"metrics\.json: holds no scores .*Run model_evaluation again"):
        register(tracked_run, report, tmp_path / "out", "x")


def test_registration_imports_no_torch(tracked_run: SimpleNamespace, report: Path, tmp_path: Path) -> None:
    code = """
import sys
from tuneport.stage import execute
from tuneport.step import Context
from tuneport.tracking import save_run, tracked
import steps
from steps.model_registration import ModelRegistration
uri, model, report, out = sys.argv[1:]
stage = ModelRegistration(mlflow_model_folder=model, evaluation_result=report, registered_model_name="n",
    registration_details_folder=out)
stage.context = Context(tracking_uri=uri)
execute(stage)
assert not {"torch", "transformers"} & set(sys.modules)
"""
    arguments = [tracked_run.uri, str(tracked_run.exported), str(report), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real `mlflow server` that keeps artifacts itself."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *stores], env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_run_on_a_server_over_http_holds_the_model_and_its_registered_version(
    server: str, tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    context = Context(tracking_uri=server, experiment="over http")
    with tracked(context, "finetune") as run:
        run.log_metrics({"loss": 0.5}, 3)
        run.log_artifacts(report, "evaluation")
    trained = tmp_path / "pytorch_model_folder"
    shutil.copytree(tracked_run.model, trained)
    save_run(trained, run.run_id, context)
    write_manifest(Model(trained), "finetune", "0", {}, {})
    export = steps.load("model_export", "text_classification")(
        pytorch_model_folder=trained, preprocess_output=tracked_run.prepared, mlflow_model_folder=tmp_path / "mlflow"
    )
    export.context = context  # type: ignore[misc]
    execute(export)
    there = SimpleNamespace(context=context, exported=tmp_path / "mlflow")
    assert register(there, report, tmp_path / "out", "served")["version"] == 1
    client = MlflowClient(server)
    assert client.get_run(run.run_id or "").data.metrics == {"loss": 0.5}
    assert (client.get_model_version("served", "1").status, client.get_model_version("served", "1").run_id) == (
        "READY",
        run.run_id,
    )
    mlflow.set_tracking_uri(server)
    try:
        model = mlflow.pyfunc.load_model("models:/served/1")
    finally:
        mlflow.set_tracking_uri(None)  # unsets the variable as well, which later tests' processes would inherit
    assert model.predict({"text": "is it red or not"})["label"][0] in ("animal", "colour", "number")
