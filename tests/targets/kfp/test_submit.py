"""Sending and following runs: kfp's real client against a fake of the Kubeflow Pipelines API, a small HTTP server.

What a request and an answer are is read from kfp-server-api's own models.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipelines.__main__ import command as tuneport_command
from tests.targets.kfp.fake_pipelines import NotOfTheApi, check, operation
from tuneport.targets.kfp import send

DIGEST = "@sha256:" + 64 * "0"
CONFIG = {
    "pytorch_model_path": "s3://models/base",
    "train_file_path": "s3://data/train.jsonl",
    "sentence1_key": "text",
    "label_key": "label",
}
TASK = {"task_id": "t", "run_id": "r1", "display_name": "finetune"}


class FakePipelines:
    """A fake of the API: it keeps what it is sent and plays back the states of a run."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.authorization: set[str | None] = set()
        self.runs: list[dict[str, Any]] = []
        self.experiments: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        self.pipelines: list[str] = []  # their names; the first has the id p0
        self.uploads: list[tuple[str, str]] = []  # path and query of each
        self.states: list[Any] = [{"state": "SUCCEEDED"}]  # of the run, one an answer; a number is an error
        self.refuse: int | None = None
        self.strange: list[str] = []  # what is no request or answer of this API
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """What is asked for and what is answered are held against the API's own models."""
        try:
            of_body, of_answer = operation(method, path)
            if body is not None:
                check(body, str(of_body))
            status, answer = self.played(method, path, body)
            if status == 200:
                check(answer, of_answer, "answer")
        except NotOfTheApi as e:
            self.strange.append(str(e))
            return 400, {"error": str(e)}
        return status, answer

    def played(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.refuse and not path.endswith("healthz"):
            return self.refuse, {"error": "no right to do so"}
        if path.endswith("/healthz"):
            return 200, {"multi_user": False}
        return self.of_pipelines(path) if "/pipelines" in path else self.of_runs(method, path, body)

    def of_pipelines(self, path: str) -> tuple[int, Any]:
        if "/pipelines/upload" in path:
            return 200, {"pipeline_id": "p0"}
        found = [{"pipeline_id": f"p{i}", "display_name": name} for i, name in enumerate(self.pipelines)]
        return 200, {"pipelines": found}

    def of_runs(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.endswith("/experiments"):
            if method == "GET":
                return 200, {"experiments": self.experiments}
            self.experiments.append({**body, "experiment_id": "e1"})
            return 200, self.experiments[-1]
        if path.endswith("/recurringruns"):
            self.schedules.append(body)
            return 200, {**body, "recurring_run_id": "s1"}
        if method == "POST":
            self.runs.append(body)
            return 200, {**body, "run_id": "r1", "state": "PENDING"}
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return (state, {"error": "out of order"}) if isinstance(state, int) else (200, {"run_id": "r1", **state})

    def _handler(fake) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def handle_one(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(length)
                is_file = self.headers.get("Content-Type", "").startswith("multipart/")
                body = json.loads(content) if length and not is_file else None
                if is_file:
                    fake.uploads.append((self.path, content.decode()))
                fake.requests.append((self.command, self.path))
                fake.authorization.add(self.headers.get("Authorization") or self.headers.get("Cookie"))
                status, answer = fake.answer(self.command, self.path.partition("?")[0], body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_one  # noqa: N815

        return Handler


@pytest.fixture
def api() -> Iterator[FakePipelines]:
    fake = FakePipelines()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    assert fake.strange == []


def test_the_fake_knows_what_the_api_is() -> None:
    assert operation("POST", "/apis/v2beta1/runs") == ("V2beta1Run", "V2beta1Run")
    for wrong in ("/apis/v1beta1/runs", "/apis/v2beta1/run"):
        with pytest.raises(NotOfTheApi):
            operation("POST", wrong)
    check({"display_name": "x", "state": "RUNNING", "runtime_config": {"parameters": {"a": 1}}}, "V2beta1Run")
    for body in ({"name": "x"}, {"display_name": 1}, {"state": "RAN"}, {"runtime_config": {"parameter": {}}}):
        with pytest.raises(NotOfTheApi):
            check(body, "V2beta1Run")


Command = Callable[..., SimpleNamespace]


@pytest.fixture
def tuneport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The tuneport command in a folder with a configuration file; ``endpoint``: what stands there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(send, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    images = {"base": f"registry.example/base{DIGEST}", "trainer": f"registry.example/trainer{DIGEST}"}

    def run(endpoint: str | None, *flags: str, command: str = "submit", **environment: str) -> SimpleNamespace:
        section = {"images": images, "service_account": "runner", "namespace": "team"}
        section |= {"endpoint": endpoint} if endpoint else {}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**CONFIG, "platform": {"kfp": section}}))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        arguments = [command, "text_classification", "--config", "run.yaml", "--target", "kfp", *flags]
        code = tuneport_command(arguments)
        said = capsys.readouterr()
        for name in environment:
            monkeypatch.delenv(name)
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return run


def test_a_run_is_started_and_its_address_printed(tuneport: Command, api: FakePipelines) -> None:
    done = tuneport(api.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"started: {api.url}/#/runs/details/r1\n"
    (run,) = api.runs
    assert api.experiments[0]["display_name"] == "text_classification" and api.experiments[0]["namespace"] == "team"
    assert run["experiment_id"] == "e1" and run["service_account"] == "runner"
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "text-classification"
    assert "kubernetes" in run["pipeline_spec"]["platform_spec"]["platforms"]


def test_run_with_this_target_does_the_same(tuneport: Command, api: FakePipelines) -> None:
    done = tuneport(None, command="run", KF_PIPELINES_ENDPOINT=api.url)
    assert done.returncode == 0, done.stderr
    assert len(api.runs) == 1 and "started: " in done.stdout


def test_a_dry_run_prints_exactly_what_would_be_sent_and_sends_nothing(tuneport: Command, api: FakePipelines) -> None:
    dry = tuneport(api.url, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert not api.requests
    said = json.loads(dry.stdout)
    assert tuneport(api.url).returncode == 0
    sent = dict(api.runs[0])
    assert sent.pop("experiment_id") == "e1"
    assert re.fullmatch(r"text_classification \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", sent.pop("display_name"))
    said["body"].pop("display_name")
    assert said["body"] == sent
    assert ("POST", said["path"]) in api.requests
    assert said["experiment"].items() <= api.experiments[0].items()


def test_waiting_ends_with_the_runs_success(tuneport: Command, api: FakePipelines) -> None:
    running = {"state": "RUNNING", "run_details": {"task_details": [{**TASK, "state": "RUNNING"}]}}
    done_task = {"task_details": [{**TASK, "state": "SUCCEEDED"}]}
    api.states = [{"state": "PENDING"}, running, 503, 500, running, {"state": "SUCCEEDED", "run_details": done_task}]
    done = tuneport(api.url, "--wait")
    assert done.returncode == 0, done.stderr
    assert "finetune: running" in done.stderr and "finetune: succeeded" in done.stderr
    assert "the run has succeeded" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_waiting_ends_with_the_runs_failure(tuneport: Command, api: FakePipelines, state: str) -> None:
    details = {"task_details": [{**TASK, "state": "FAILED", "error": {"message": "exit code 2"}}]}
    api.states = [{"state": state, "run_details": details}]
    done = tuneport(api.url, "--wait")
    assert done.returncode == 1
    assert f"the run has ended: {state.lower()}" in done.stderr and "finetune failed: exit code 2" in done.stderr


def test_a_run_has_the_name_and_experiment_that_are_asked_for(tuneport: Command, api: FakePipelines) -> None:
    assert tuneport(api.url, "--name", "a trial", "--experiment", "trials").returncode == 0
    assert (api.runs[0]["display_name"], api.experiments[0]["display_name"]) == ("a trial", "trials")


def test_a_schedule_is_a_recurring_run_and_a_dry_run_shows_it(tuneport: Command, api: FakePipelines) -> None:
    dry = tuneport(api.url, "--dry_run", "--schedule", "0 3 * * 1", "--name", "weekly")
    said = json.loads(dry.stdout)
    assert not api.requests and said["path"] == "/apis/v2beta1/recurringruns"
    done = tuneport(api.url, "--schedule", "0 3 * * 1", "--name", "weekly")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"scheduled: {api.url}/#/recurringrun/details/s1\n" and not api.runs
    (sent,) = api.schedules
    assert sent.pop("experiment_id") == "e1" and sent == said["body"]
    assert sent["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}


@pytest.mark.parametrize("known", [False, True])
def test_an_upload_is_a_pipeline_or_a_new_version_of_it(tuneport: Command, api: FakePipelines, known: bool) -> None:
    api.pipelines = ["text_classification"] if known else []
    done = tuneport(api.url, "--upload")
    assert done.returncode == 0, done.stderr
    ((path, content),) = api.uploads
    assert "name: text-classification" in content and len(api.runs) == 1
    assert path.partition("?")[0].endswith("/pipelines/upload_version" if known else "/pipelines/upload")
    assert ("pipelineid=p0" in path) == known


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--schedule", "monday"], "--schedule 'monday': not valid; expected minute, hour, day, month"),
        (["--schedule", "0 3 * * 1", "--wait"], "got both --schedule and --wait"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(
    tuneport: Command, api: FakePipelines, flags: list[str], message: str
) -> None:
    done = tuneport(api.url, *flags)
    assert done.returncode == 2 and message in done.stderr and not api.requests


def test_a_token_or_a_cookie_of_a_session_is_sent(tuneport: Command, api: FakePipelines) -> None:
    assert tuneport(api.url, TUNEPORT_KFP_TOKEN="abc").returncode == 0
    assert "Bearer abc" in api.authorization
    assert tuneport(api.url, TUNEPORT_KFP_COOKIE="authservice_session=xyz").returncode == 0
    assert "authservice_session=xyz" in api.authorization


def test_a_refusal_is_one_message(tuneport: Command, api: FakePipelines) -> None:
    api.refuse = 403
    done = tuneport(api.url)
    assert done.returncode == 2
    assert "answered 403" in done.stderr and "no right to do so" in done.stderr and "TUNEPORT_KFP_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "kubeflow.example"])
def test_an_address_where_nobody_answers_is_said_at_once(tuneport: Command, endpoint: str) -> None:
    done = tuneport(endpoint)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{endpoint}" in done.stderr


def test_without_any_address_the_way_to_one_is_said(tuneport: Command, caplog: pytest.LogCaptureFixture) -> None:
    done = tuneport(None)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Traceback" not in caplog.text and len(done.stderr.splitlines()) < 10
    assert "platform.kfp.endpoint" in done.stderr
