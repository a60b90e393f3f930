"""The example from end to end, as a newcomer runs it: real model, real data, real server. Minutes long."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "text_classification"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow


def without_ours(path: str) -> str:
    """PATH without the folder of the environment that the tests run in."""
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if Path(folder) != BIN)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `make demo` does, in a folder of its own: fetch, run, and keep the output and the processor time taken."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, EXAMPLE / "fetch.py", folder / "data"], check=True)
    config = folder / "config.yaml"
    config.write_bytes((EXAMPLE / "config.yaml").read_bytes())
    before = processor_seconds()
    command = [BIN / "tuneport", "run", "text_classification", "--config", config]
    outside = {**os.environ, "PATH": without_ours(os.environ["PATH"])}
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=outside)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {"folder": folder, "output": ended.stdout, "seconds": processor_seconds() - before, "command": command}


@pytest.fixture(scope="module")
def metrics(demo: dict[str, Any]) -> dict[str, Any]:
    run = demo["folder"] / "runs" / "text_classification" / "latest"
    return json.loads((run / "model_evaluation" / "evaluation_result" / "metrics.json").read_text("utf-8"))


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_it_takes_less_than_twenty_minutes_of_one_slow_core(demo: dict[str, Any]) -> None:
    assert demo["seconds"] < 1200


def test_the_tuned_model_is_right_in_nine_of_ten_test_rows(metrics: dict[str, Any]) -> None:
    assert metrics["test_rows"] > 500
    assert metrics["tuned"]["metrics"]["accuracy"] >= 0.90


def test_the_tuned_model_beats_the_base_model_and_a_linear_model_on_the_same_rows(metrics: dict[str, Any]) -> None:
    others = [metrics["base"], *metrics["baselines"].values()]
    assert len(others) >= 3
    assert all(metrics["tuned"]["metrics"]["accuracy"] > other["metrics"]["accuracy"] for other in others)


def test_scores_report_and_commands_are_printed(demo: dict[str, Any], metrics: dict[str, Any]) -> None:
    assert f"{metrics['tuned']['metrics']['accuracy']:.4f}" in demo["output"]
    assert re.search(r"^ +/.*/report\.html$", demo["output"], re.MULTILINE)
    assert "mlflow ui" in demo["output"]


def test_a_second_run_finds_every_stage_done(demo: dict[str, Any]) -> None:
    again = subprocess.run(demo["command"], cwd=demo["folder"], capture_output=True, text=True, check=True)
    assert len(re.findall(r"\| cached", again.stdout)) == 5


def test_the_printed_serve_command_answers_a_request(demo: dict[str, Any]) -> None:
    (command,) = re.findall(r"^ +(\S.*mlflow models serve .*)$", demo["output"], re.MULTILINE)
    question = {"dataframe_records": [{"text": "How many people live in Norway ?"}, {"text": "Who wrote Hamlet ?"}]}
    (ask,) = re.findall(r"^ +(curl -s .*)$", demo["output"], re.MULTILINE)
    with served(command) as url:
        ask = ask.replace("http://127.0.0.1:5001", url)
        answered = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert json.loads(answered.stdout)["predictions"]
        request = urllib.request.Request(
            f"{url}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answers = json.load(response)["predictions"]
    assert [answer["label"] for answer in answers] == ["NUM", "HUM"]


@contextmanager
def served(command: str) -> Iterator[str]:
    """Run a server as printed, on a free port, until the block ends."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shell = f"{command} --port {port}"
    surroundings = {**os.environ, "PATH": without_ours(os.environ["PATH"])}  # a shell that no one activated
    server = subprocess.Popen(["bash", "-c", shell], start_new_session=True, env=surroundings)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(f"{url}/ping", server)
        yield url
    finally:
        subprocess.run(["kill", "--", f"-{server.pid}"], check=False)
        server.wait(30)


def wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail("the server did not come up")
