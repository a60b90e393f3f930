"""MLflow tracking: what a run logs is read back by a fresh client; a server that fails costs a warning only."""

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tuneport.errors import UserError
from tuneport.step import Context
from tuneport.tracking import MlflowRun, Split, connect, model_uri_of, run_id_of, save_run, tracked


@pytest.fixture
def new(tmp_path: Path) -> Context:
    """A store that is not there yet."""
    return Context(tracking_uri=f"sqlite:///{tmp_path}/new folder/mlflow.db")


@pytest.fixture
def context(mlflow_store: Callable[[Path], str], tmp_path: Path) -> Context:
    return Context(tracking_uri=mlflow_store(tmp_path / "a folder"))


@pytest.fixture
def dead_uri() -> str:
    """The address of a port with nothing behind it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def client(context: Context) -> MlflowClient:
    return MlflowClient(context.tracking_uri)


def test_parameters_metric_history_tags_and_artifacts_are_read_back(context: Context, tmp_path: Path) -> None:
    (tmp_path / "report" / "plots").mkdir(parents=True)
    (tmp_path / "report" / "report.html").write_text("<p>")
    (tmp_path / "report" / "plots" / "loss.svg").write_text("<svg/>")
    (tmp_path / "report" / ".incomplete").touch()
    with tracked(context, "finetune") as run:
        run.log_params({f"p{i}": i for i in range(250)} | {"long": "x" * 9000, "none": None})
        for step in range(5):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step)
        run.log_metrics({"f1 of <b>": 0.5})
        run.set_tags({"task": "text_classification"})
        run.log_artifacts(tmp_path / "report", "evaluation")
    assert run.run_id
    found = client(context).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "finetune"
    assert client(context).get_experiment(found.info.experiment_id).name == "tuneport"
    assert len(found.data.params) == 252
    assert found.data.params["long"] == "x" * 6000
    history = client(context).get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(i, 1.0 / (i + 1)) for i in range(5)]
    assert found.data.metrics["f1 of _b_"] == 0.5
    assert found.data.tags["task"] == "text_classification"
    paths = [a.path for a in client(context).list_artifacts(run.run_id, "evaluation")]
    assert paths == ["evaluation/plots", "evaluation/report.html"]


def test_artifacts_of_an_sqlite_server_lie_beside_the_database(
    new: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with tracked(new, "finetune") as run:
        run.log_artifacts(Path(__file__).parent / "export", "tests")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert list((tmp_path / "new folder" / "mlartifacts" / "tuneport").rglob("test_mlflow_model.py"))


def test_metrics_are_on_the_server_while_the_run_goes_on(context: Context) -> None:
    with tracked(context, "finetune") as run:
        run.log_metrics({"loss": 0.5}, 10)
        deadline = time.monotonic() + 10
        while "loss" not in client(context).get_run(run.run_id or "").data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client(context).get_run(run.run_id or "").info.status == "RUNNING"


def test_a_later_stage_adds_to_the_run_and_leaves_its_end_alone(context: Context, tmp_path: Path) -> None:
    with tracked(context, "finetune") as run:
        run.log_metrics({"loss": 0.5})
    save_run(tmp_path, run.run_id, context)
    ended = client(context).get_run(run.run_id or "").info.end_time
    with tracked(context, "model_evaluation", run_id_of(tmp_path, context)) as later:
        later.log_metrics({"test_accuracy": 0.9})
    assert later.run_id == run.run_id
    found = client(context).get_run(run.run_id or "")
    assert found.data.metrics == {"loss": 0.5, "test_accuracy": 0.9}
    assert (found.info.run_name, found.info.end_time) == ("finetune", ended)


def test_the_platforms_run_and_experiment_are_used(context: Context) -> None:
    with tracked(Context(tracking_uri=context.tracking_uri, experiment="night / runs"), "finetune") as run:
        pass
    experiment = client(context).get_experiment_by_name("night / runs")
    assert experiment is not None
    created = client(context).create_run(experiment.experiment_id).info.run_id
    with tracked(Context(tracking_uri=context.tracking_uri, run_id=created), "finetune") as run:
        run.log_params({"seed": 1})
    found = client(context).get_run(created)
    assert (run.run_id, found.data.params, found.info.status) == (created, {"seed": "1"}, "RUNNING")


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_breaks_off_is_marked(context: Context, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracked(context, "finetune") as run:
        raise error
    assert client(context).get_run(run.run_id or "").info.status == status


def test_without_a_tracking_uri_nothing_is_kept_and_mlflow_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tuneport.tracking import *; from tuneport.step import Context\n"
        "with tracked(Context(), 'x') as run:\n"
        "    run.log_params({'a': 1}); run.log_metrics({'a': 1.0}, 1); run.set_tags({'a': 1})\n"
        "    run.log_artifacts(Path('.'), 'a'); assert run.log_model(Path('.')) is None\n"
        "assert run.run_id is None and 'mlflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_mlflow_is_quiet(new: Context, tmp_path: Path) -> None:
    code = (
        "import sys; from tuneport.tracking import *; from tuneport.step import Context\n"
        "with tracked(Context(tracking_uri=sys.argv[1]), 'x') as run: run.log_metrics({'a': 1.0})\n"
    )
    command = [sys.executable, "-c", code, str(new.tracking_uri)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("uri", ["nonsense://x", "http://127.0.0.1:9", "mlruns", "sqlite:////proc/no/mlflow.db"])
def test_a_tracking_uri_that_cannot_be_used_is_refused_at_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as e, tracked(Context(tracking_uri=uri), "finetune"):
        raise AssertionError("the work began")
    assert uri in str(e.value)


def test_processes_that_begin_at_once_make_one_store(new: Context) -> None:
    code = "import mlflow, sys\nfrom tuneport.step import Context\nfrom tuneport.tracking import tracked\n"
    code += "sys.stdin.read()\nwith tracked(Context(tracking_uri=sys.argv[1]), 'finetune') as r:\n    print(r.run_id)"
    command = [sys.executable, "-c", code, str(new.tracking_uri)]
    made = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in made:  # all of them have imported mlflow, or nearly so
        assert process.stdin is not None
        process.stdin.close()
    ids = {process.stdout.read().strip() for process in made if process.stdout is not None}
    assert [process.wait(timeout=300) for process in made] == [0, 0, 0]
    found = client(new).search_runs([e.experiment_id for e in client(new).search_experiments()])
    assert {run.info.run_id for run in found} == ids and len(ids) == 3


def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but longer than its header would be" * 10)
    uri = f"sqlite:///{tmp_path}/notes.db"
    started = time.monotonic()
    with pytest.raises(UserError, match=r"notes\.db"), tracked(Context(tracking_uri=uri), "finetune"):
        raise AssertionError("the work began")
    assert time.monotonic() - started < 30


def test_a_run_of_another_server_is_refused_by_its_id(context: Context) -> None:
    wrong = Context(tracking_uri=context.tracking_uri, run_id="no-such-run")
    with pytest.raises(UserError, match="MLFLOW_RUN_ID 'no-such-run'"), tracked(wrong, "finetune"):
        raise AssertionError("the work began")


def test_a_server_that_died_before_a_later_stage_costs_one_warning(
    dead_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked(Context(tracking_uri=dead_uri), "model_export", run_id="abc") as run:
        run.log_metrics({"a": 1.0})
    assert run.run_id is None
    assert [r.levelname for r in caplog.records if r.name == "tuneport.tracking"] == ["WARNING"]


def test_a_server_that_dies_during_training_costs_a_warning_and_no_waiting(
    dead_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = MlflowRun(connect(dead_uri), "abc")
    started = time.monotonic()
    for step in range(1000):
        run.log_metrics({"loss": 1.0}, step)
    logged = time.monotonic() - started
    run.log_artifacts(tmp_path, "report")
    assert run.log_model(tmp_path) is None
    run.close("FINISHED")
    messages = [r.message for r in caplog.records if r.name == "tuneport.tracking"]
    assert sum("the work goes on" in m for m in messages) == 1
    assert "1001 updates did not reach the server" in messages[-1]
    took = time.monotonic() - started
    assert logged < took / 5, "the end waits for what is still tried, the training for nothing"
    assert took < 60, "a thousand attempts take more than an hour"


def test_what_a_server_missed_is_sent_when_it_is_back(context: Context, dead_uri: str) -> None:
    with tracked(context, "finetune") as first:
        pass
    living = client(context)
    run = MlflowRun(connect(dead_uri), first.run_id or "")
    for step in range(3):
        run.log_metrics({"loss": float(step)}, step)
    run._sender.submit(lambda: None).result()  # the first attempt is over
    run.client = living
    run.close(None)
    assert [m.value for m in living.get_metric_history(first.run_id or "", "loss")] == [0.0, 1.0, 2.0]


def test_an_update_that_the_server_refuses_does_not_hold_up_the_rest(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked(context, "finetune") as run:
        run.log_metrics({"../up": 0.5})
        run.log_metrics({"loss": 0.5})
    found = client(context).get_run(run.run_id or "")
    assert found.data.metrics == {"loss": 0.5}
    assert any("../up" in r.message for r in caplog.records if r.levelno == logging.WARNING)


def test_the_run_of_a_folder_is_found_only_on_its_own_server(tmp_path: Path) -> None:
    here = Context(tracking_uri="http://user:secret@host:5000")
    save_run(tmp_path, "abc", here, "models:/m-1")
    assert run_id_of(tmp_path, here) == "abc"
    assert model_uri_of(tmp_path, here) == "models:/m-1"
    assert run_id_of(tmp_path, Context(tracking_uri="http://other:5000")) is None
    assert run_id_of(tmp_path, Context()) is None
    assert run_id_of(tmp_path / "absent", here) is None
    (tmp_path / "tracking.json").write_text("[]")
    assert run_id_of(tmp_path, here) is None


def test_passwords_in_a_tracking_uri_are_neither_saved_nor_shown(tmp_path: Path, dead_uri: str) -> None:
    uri = dead_uri.replace("//", "//user:secret@")
    save_run(tmp_path, "abc", Context(tracking_uri=uri))
    assert json.loads((tmp_path / "tracking.json").read_text())["tracking_uri"] == dead_uri.replace("//", "//***@")
    with pytest.raises(UserError) as e, tracked(Context(tracking_uri=uri), "finetune"):
        pass
    assert "secret" not in str(e.value)


def test_secrets_among_parameters_and_tags_do_not_reach_the_server(context: Context) -> None:
    address = "https://me:CANARY@host/data.csv?sig=CANARY"
    with tracked(context, "finetune") as run:
        run.log_params({"data": address})
        run.set_tags({"data": address})
    found = client(context).get_run(run.run_id or "").data
    assert found.params["data"] == found.tags["data"] == "https://***@host/data.csv?sig=***"


def test_a_runs_rows_its_verdict_and_the_scores_of_its_model_are_read_back(context: Context, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
    splits = [
        Split(name="rows.csv", role=r, source="s3://key@b/rows.csv", digest=r * 20, rows=9) for r in ("train", "test")
    ]
    with tracked(context, "bert on rows.csv", tags={"task": "translation"}) as run:
        run.log_splits(splits)
        uri = run.log_model(tmp_path / "model")
        run.log_model_metrics({"test/accuracy": 0.75})
        run.describe("Better than the base model.")
    assert run.run_id and uri
    found = client(context).get_run(run.run_id)
    assert found.data.tags["mlflow.note.content"] == "Better than the base model."
    assert (found.info.run_name, found.data.tags["task"]) == ("bert on rows.csv", "translation")
    listed = {i.tags[0].value: i.dataset for i in found.inputs.dataset_inputs}
    assert listed.keys() == {"train", "test"}
    assert json.loads(listed["test"].profile) == {"num_rows": 9} and "key@" not in listed["test"].source
    model = client(context).get_logged_model(uri.removeprefix("models:/"))
    assert [(m.key, m.value) for m in model.metrics] == [("test/accuracy", 0.75)]
    experiment = client(context).get_experiment(found.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_model_uploaded_after_its_evaluation_has_the_scores_too(context: Context, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
    with tracked(context, "finetune") as run:
        run.log_model_metrics({"test/accuracy": 0.75, "baseline/majority_class/accuracy": 0.5})
        run.log_metrics({"train/loss": 1.0})
        uri = run.log_model(tmp_path / "model")
    metrics = client(context).get_logged_model(str(uri).removeprefix("models:/")).metrics
    assert {m.key: m.value for m in metrics} == {"test/accuracy": 0.75, "baseline/majority_class/accuracy": 0.5}


def test_a_parameter_that_the_run_has_already_is_not_sent_again(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    with tracked(context, "finetune") as run:
        run.log_params({"seed": 1})
        run.log_params({"seed": 2, "num_beams": 4})
    assert client(context).get_run(run.run_id or "").data.params == {"seed": "1", "num_beams": "4"}
    assert not caplog.records


def test_the_machine_is_watched_while_a_run_is_open(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneport.system_metrics.INTERVAL", 0.05)
    with tracked(context, "finetune") as run:
        time.sleep(0.3)
    metrics = client(context).get_run(run.run_id or "").data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert "system/cpu_utilization_percentage" in metrics
