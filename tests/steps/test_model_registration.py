"""Stage model_registration: a registered version that loads by name, tagged with its scores."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

import steps
from steps.model_registration import ModelRegistration
from tests.conftest import wait_until_up
from tuneport.artifacts import MLflowModel, Model, Report, write_manifest
from tuneport.errors import UserError
from tuneport.export.registry import model_digest
from tuneport.stage import execute, save_json
from tuneport.step import Context
from tuneport.tracking import run_id_of, save_run, tracked

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


def register(
    run: SimpleNamespace, report: Path, output: Path, name: str, model: Path | None = None, **values: Any
) -> dict[str, Any]:
    stage = registration(
        run.context,
        mlflow_model_folder=model or run.exported,
        evaluation_result=report,
        registered_model_name=name,
        registration_details_folder=output,
        **values,
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
    assert version.tags.pop("tuneport.model_digest") == model_digest(tracked_run.exported)
    assert version.tags == {"test_accuracy": "0.75", "test_f1_macro": "0.666667"}
    mlflow.set_tracking_uri(tracked_run.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/question model/1")
    finally:
        mlflow.set_tracking_uri(None)  # unsets the variable as well, which later tests' processes would inherit
    assert model.predict({"text": "is it red or not"})["label"][0] in ("animal", "colour", "number")


def altered(run: SimpleNamespace, folder: Path) -> Path:
    """A copy of the exported model that is another model."""
    shutil.copytree(run.exported, folder)
    (folder / "NOTICE").write_text(folder.name)
    write_manifest(MLflowModel(folder), "model_export", "0", {}, {})
    return folder


def test_another_model_under_a_name_is_the_next_version_and_the_same_one_stays_its_version(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    first = register(tracked_run, report, tmp_path / "out1", "it's twice")
    other = register(tracked_run, report, tmp_path / "out2", "it's twice", altered(tracked_run, tmp_path / "other"))
    save_json(report / "metrics.json", {"main": ["mcc"], "tuned": {"metrics": {"mcc": 0.5}}})
    write_manifest(Report(report), "model_evaluation", "0", {}, {})
    again = register(tracked_run, report, tmp_path / "out3", "it's twice")
    assert (first["version"], other["version"]) == (1, 2)
    assert again == first
    assert MlflowClient(tracked_run.uri).get_model_version("it's twice", "1").tags["test_mcc"] == "0.5"


def test_a_version_that_was_deleted_is_made_again(tracked_run: SimpleNamespace, report: Path, tmp_path: Path) -> None:
    register(tracked_run, report, tmp_path / "out", "deleted")
    client = MlflowClient(tracked_run.uri)
    client.delete_registered_model("deleted")
    register(tracked_run, report, tmp_path / "out", "deleted")
    assert len(client.search_model_versions("name='deleted'")) == 1


def judged(report: Path, accuracy: float, **values: Any) -> None:
    """Write what an evaluation of 100 rows found."""
    metrics = {**METRICS, "base": {"metrics": {"accuracy": 0.5}}, "level": "good", "better_than_base": True}
    tuned = {"metrics": {"accuracy": accuracy, "f1_macro": 2 / 3, "auc": None}}
    save_json(report / "metrics.json", {**metrics, "tuned": tuned, **values})
    parts = [[float(i < 100 * accuracy), 1.0] for i in range(100)]
    save_json(
        report / "row_scores.json", {"metric": "accuracy", "greater_is_better": True, "rows": "r", "parts": parts}
    )
    write_manifest(Report(report), "model_evaluation", "0", {}, {})


def test_a_model_is_refused_where_that_was_asked_for_and_registered_with_its_verdict_otherwise(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    judged(report, 0.75)
    client = MlflowClient(tracked_run.uri)
    refused = register(
        tracked_run, report, tmp_path / "out", "gated", register_if="better_than_base and accuracy >= 0.9"
    )
    assert refused["version"] is None
    assert refused["refused"].endswith("does not hold: better_than_base=true, accuracy=0.75")
    assert not client.search_registered_models("name='gated'")
    allowed = register(tracked_run, report, tmp_path / "out", "gated", register_if="accuracy > base_accuracy")
    assert client.get_model_version("gated", str(allowed["version"])).tags["verdict"] == "good"
    judged(report, 0.75, level="bad", better_than_base=None)
    register(tracked_run, report, tmp_path / "out", "gated")
    assert client.get_model_version("gated", "1").tags["verdict"] == "bad"
    with pytest.raises(UserError, match="better_than_base has no value"):
        register(tracked_run, report, tmp_path / "out", "gated", register_if="better_than_base")
    with pytest.raises(UserError, match=r"register_if=.*not valid"):
        register(tracked_run, report, tmp_path / "out", "gated", register_if="open('x')")


def test_the_champion_moves_to_a_version_that_beats_it_on_the_same_rows(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    def champion_after(accuracy: float) -> tuple[dict[str, Any], int]:
        judged(report, accuracy)
        model = altered(tracked_run, tmp_path / f"model {accuracy}")
        details = register(tracked_run, report, tmp_path / "out", "contested", model, move_champion=True)
        aliases = MlflowClient(tracked_run.uri).get_registered_model("contested").aliases
        return details, int(aliases["champion"])

    first, alias = champion_after(0.6)
    assert (first["champion"], first["champion_reason"], alias) == (True, "there was no champion", 1)
    second, alias = champion_after(0.61)
    assert (second["champion"], alias) == (False, 1) and "version 2 beside version 1" in second["champion_reason"]
    third, alias = champion_after(0.95)
    assert (third["champion"], alias) == (True, 3)


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from tuneport.stage import execute
from tuneport.step import Context
from steps.model_registration import ModelRegistration

create = MlflowClient.create_model_version
def and_die(*args, **kwargs):
    create(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.create_model_version = and_die
uri, model, report, out = sys.argv[1:]
stage = ModelRegistration(mlflow_model_folder=model, evaluation_result=report, registered_model_name="killed",
    registration_details_folder=out)
stage.context = Context(tracking_uri=uri)
execute(stage)
"""


@pytest.mark.parametrize("uploaded", [True, False])
def test_a_kill_after_the_version_was_made_leaves_one_version(
    uploaded: bool, tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    model = altered(tracked_run, tmp_path / f"model {uploaded}")
    if not uploaded:
        save_json(model / "tracking.json", json.loads((model / "tracking.json").read_text()) | {"model_uri": None})
        write_manifest(MLflowModel(model), "model_export", "0", {}, {})
    client = MlflowClient(tracked_run.uri)
    before = {int(v.version) for v in client.search_model_versions("name='killed'")}
    arguments = [tracked_run.uri, str(model), str(report), str(tmp_path / "out")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    details = register(tracked_run, report, tmp_path / "out", "killed", model)
    made = {int(v.version) for v in client.search_model_versions("name='killed'")} - before
    assert made == {details["version"]}


@pytest.fixture
def moved(tracked_run: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """The tracked run after its folder was moved: all of it, the store and the uploads, stands elsewhere."""
    folder = tmp_path / "moved"
    shutil.copytree(tracked_run.exported.parent, folder)
    database = folder / "mlflow.db"
    with sqlite3.connect(database) as connection:  # the uploads' old places, which are gone
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, '/tracked', '/gone')")
        connection.execute("UPDATE logged_models SET artifact_location = artifact_location || '/gone'")
    uri = f"sqlite:///{database}"
    return SimpleNamespace(
        uri=uri,
        context=Context(tracking_uri=uri),
        prepared=tracked_run.prepared,
        model=folder / tracked_run.model.name,
        exported=folder / tracked_run.exported.name,
    )


@pytest.mark.parametrize("written", ["{}/mlflow.db", "{}/../moved/mlflow.db", "{}/mlflow.db?timeout=60"])
def test_a_run_that_was_moved_with_its_store_is_registered_whatever_its_address(
    written: str, moved: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    there = SimpleNamespace(**vars(moved))
    there.context = Context(tracking_uri="sqlite:///" + written.format(moved.exported.parent))
    details = register(there, report, tmp_path / "out", "moved")
    assert details["run_id"] == json.loads((moved.model / "tracking.json").read_text())["run_id"]
    mlflow.set_tracking_uri(moved.uri)
    try:
        mlflow.pyfunc.load_model(f"models:/moved/{details['version']}")
    finally:
        mlflow.set_tracking_uri(None)


def test_an_upload_that_is_gone_makes_the_stage_run_again(moved: SimpleNamespace, tracked_run: SimpleNamespace) -> None:
    def stages(run: SimpleNamespace) -> list[Any]:
        named = {"pytorch_model_folder": run.model, "preprocess_output": run.prepared}
        export = steps.load("model_export", "text_classification")(**named, mlflow_model_folder=run.exported)
        named["model_selector_output"] = run.model
        evaluation = steps.load("model_evaluation", "text_classification")(**named, evaluation_result=run.model)
        for stage in (export, evaluation):
            stage.context = run.context
        return [export, evaluation]

    with tracked(tracked_run.context, "x", run_id_of(tracked_run.model, tracked_run.context)) as run:
        run.log_artifacts(moved.prepared, "evaluation")
    assert [stage.lost_effect() for stage in stages(tracked_run)] == ["", ""]
    gone = "its upload is gone from the MLflow server"
    assert [stage.lost_effect() for stage in stages(moved)] == [gone, gone]
    for context in (Context(), Context(tracking_uri="http://127.0.0.1:9")):
        unknown = SimpleNamespace(**{**vars(moved), "context": context})
        assert [stage.lost_effect() for stage in stages(unknown)] == ["", ""], "nobody can say"


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


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def test_a_logged_model_is_registered_from_where_it_was_logged_without_its_files(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    assert not list(tracked_run.logged.rglob("*.safetensors")) and size(tracked_run.logged) < 5000
    light = register(tracked_run, report, tmp_path / "out", "light", tracked_run.logged)
    mlflow.set_tracking_uri(tracked_run.uri)
    try:
        mlflow.pyfunc.load_model("models:/light/1")
    finally:
        mlflow.set_tracking_uri(None)
    assert register(tracked_run, report, tmp_path / "out", "light", tracked_run.exported) == light, "the same version"


def test_a_logged_model_that_is_gone_from_the_server_is_named_and_the_whole_one_uploaded(
    moved: SimpleNamespace, tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    uri = json.loads((tracked_run.exported / "tracking.json").read_text())["model_uri"]
    with pytest.raises(UserError, match=rf"names the model {uri}, which is gone .* or pass its mlflow_model_folder"):
        register(moved, report, tmp_path / "out", "gone", tracked_run.logged)
    assert register(moved, report, tmp_path / "out", "gone", tracked_run.exported)["version"] == 1


def test_an_export_that_did_not_reach_the_server_hands_the_model_on_to_be_uploaded_later(
    tracked_run: SimpleNamespace, report: Path, tmp_path: Path
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{s.getsockname()[1]}"
    trained = tmp_path / "trained"
    shutil.copytree(tracked_run.model, trained)
    run_id = run_id_of(trained, tracked_run.context)
    save_run(trained, run_id, Context(tracking_uri=dead))
    write_manifest(Model(trained), "finetune", "0", {}, {})
    export = steps.load("model_export", "text_classification")(
        pytorch_model_folder=trained,
        preprocess_output=tracked_run.prepared,
        mlflow_model_folder=tmp_path / "exported",
        logged_model_folder=tmp_path / "logged",
    )
    export.context = Context(tracking_uri=dead)  # type: ignore[misc]
    execute(export)
    assert sorted(p.name for p in (tmp_path / "logged").iterdir()) == sorted(
        p.name for p in (tmp_path / "exported").iterdir()
    )
    details = register(tracked_run, report, tmp_path / "out", "later", tmp_path / "logged")
    logged = MlflowClient(tracked_run.uri).get_logged_model(details["source"].removeprefix("models:/"))
    there = Path(logged.artifact_location.removeprefix("file://"))
    (weights,) = (p.relative_to(there) for p in there.rglob("*.safetensors"))
    assert (there / weights).read_bytes() == (tmp_path / "exported" / weights).read_bytes()


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
    for uploaded, message in (
        ("models:/m-1", "registering models:/m-1 at .* failed"),
        (None, "registering .*mlflow_model_folder at .* failed"),
    ):
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
from tuneport.tracking import run_id_of, save_run, tracked
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
    with serving(tmp_path) as url:
        yield url


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A real `mlflow server` that keeps artifacts itself."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/kept"]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *stores], env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
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
