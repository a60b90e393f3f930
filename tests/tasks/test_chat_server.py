"""The server of `tuneport deploy --to docker`, for real: OpenAI's routes of an exported chat model, many at once."""

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tests.conftest import post, wait_until_up
from tuneport import deploy
from tuneport.deploy.deployment import found
from tuneport.stage import execute

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    ready: Callable[[str], Any], fenced: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    made, folder = ready("chat_completion"), tmp_path_factory.mktemp("served")
    run = folder / "run"
    execute(made.stage(max_steps=2, learning_rate=1e-2, pytorch_model_folder=folder / "tuned"))
    exported = run / "model_export" / "mlflow_model_folder"
    execute(
        steps.load("model_export", "chat_completion")(
            pytorch_model_folder=folder / "tuned",
            preprocess_output=made.prepared,
            max_new_tokens=12,
            mlflow_model_folder=exported,
        )
    )
    (folder / "server.py").write_text(deploy.render("docker", found(run), {}).files["server.py"])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    argv = [sys.executable, "server.py", "--model", str(exported), "--name", "answers", "--port", port]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(argv, env=fenced, cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(f"{url}/health", process, folder / "log", seconds=120)
        yield SimpleNamespace(url=url, exported=exported)
    finally:
        process.kill()
        process.wait()


def ask(server: SimpleNamespace, text: str, **values: Any) -> tuple[int, Any]:
    body = {"model": "answers", "messages": [{"role": "user", "content": text}], **values}
    return post(f"{server.url}/v1/chat/completions", body)


def asked(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "tools": None}


def predictor(server: SimpleNamespace) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(server.exported)).unwrap_python_model().predictor


def wanted(server: SimpleNamespace, texts: list[str], **params: Any) -> list[str]:
    return [answer["content"] for answer in predictor(server)([asked(text) for text in texts], **params)]


def test_a_chat_request_is_answered_in_openai_s_words_as_the_model_answers(server: SimpleNamespace) -> None:
    status, found = ask(server, "what is red 7", max_tokens=5, temperature=0)
    (choice,) = found["choices"]
    assert status == 200 and found["object"] == "chat.completion" and found["model"] == "answers"
    assert [choice["message"]["content"]] == wanted(server, ["what is red 7"], max_new_tokens=5)
    (told,) = predictor(server).completions([asked("what is red 7")], max_new_tokens=5)
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == told["finish_reason"]
    usage = found["usage"]
    assert {name: told[name] for name in ("prompt_tokens", "completion_tokens")}.items() <= usage.items()
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["prompt_tokens"] > 10


def test_usage_counts_the_prompt_that_was_read(server: SimpleNamespace) -> None:
    positions = predictor(server).settings["max_positions"]
    status, found = ask(server, "what is red 7 " * positions, max_tokens=5)
    assert status == 200 and found["usage"]["prompt_tokens"] == positions - 5


def test_thirty_two_at_once_get_the_answers_that_each_gets_alone(server: SimpleNamespace) -> None:
    texts = [f"what is number {i}" for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda text: ask(server, text), texts))
    assert {status for status, _ in found} == {200}
    said = [answer["choices"][0]["message"]["content"] for _, answer in found]
    assert said == wanted(server, texts)


def test_a_request_that_cannot_be_answered_harms_no_other(server: SimpleNamespace) -> None:
    def one(i: int) -> tuple[int, Any]:
        if i % 4:
            return ask(server, f"is it {i}")
        return ask(server, "x", messages=[{"role": "robot", "content": "x"}])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    assert [status for status, _ in found] == [400, 200, 200, 200] * 2
    assert found[0][1]["error"]["type"] == "invalid_request_error" and "robot" in found[0][1]["error"]["message"]


@pytest.mark.parametrize(
    ("values", "status", "message"),
    [
        ({"n": 2}, 400, "n=2 is not supported"),
        ({"stop": ["a"]}, 400, "stop=['a'] is not supported"),
        ({"seed": 1}, 400, "seed=1 is not supported"),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"max_tokens": 100_000}, 400, "leaves no room for a prompt"),
        ({"temperature": -1}, 400, "temperature"),
        ({"logprobs": True}, 400, "logprobs=True is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format="),
        ({"reasoning_effort": "low"}, 400, "reasoning_effort is not known here, and may change the answer"),
        ({"top_k": 1.5}, 400, "top_k=1.5 is not valid; expected a whole number"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options has no effect without stream=true"),
        ({"stream": True, "stream_options": {"other": 1}}, 400, "there is include_usage"),
        ({"stream": "yes"}, 400, "stream='yes' is not valid"),
        ({"model": "other"}, 404, "the model 'other' is not here; there is 'answers'"),
    ],
)
def test_what_the_server_cannot_do_is_said(
    server: SimpleNamespace, values: dict[str, Any], status: int, message: str
) -> None:
    found, answer = ask(server, "what is red 7", **values)
    assert found == status
    assert message in answer["error"]["message"] or message == "max_tokens"
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    if "is not supported" in message or "not known" in message:
        assert answer["error"]["param"] in values


def test_what_changes_no_answer_is_passed_over_and_what_the_model_samples_by_is_taken(server: SimpleNamespace) -> None:
    passed_over = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": 1, "seed": None}
    status, found = ask(server, "what is red 7", **passed_over)
    assert (status, [found["choices"][0]["message"]["content"]]) == (200, wanted(server, ["what is red 7"]))
    for given, params in (
        ({"repetition_penalty": 5.0}, {"repetition_penalty": 5.0}),
        ({"temperature": 5.0, "top_k": 1}, {"temperature": 5.0, "top_k": 1}),
        ({"temperature": 0, "top_k": -1}, {}),
    ):
        status, found = ask(server, "what is red 7", **given)
        assert (status, [found["choices"][0]["message"]["content"]]) == (
            200,
            wanted(server, ["what is red 7"], **params),
        )
    assert wanted(server, ["what is red 7"], repetition_penalty=5.0) != wanted(server, ["what is red 7"])


def test_a_stream_ends_with_its_usage_where_that_is_asked_for(server: SimpleNamespace) -> None:
    asked = {"messages": [{"role": "user", "content": "what is red 7"}], "stream_options": {"include_usage": True}}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps({**asked, "stream": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line.removeprefix("data: ") for line in answer.read().decode().split("\n\n") if line]
    *chunks, last = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]" and last["choices"] == [] and {chunk["usage"] for chunk in chunks} == {None}
    _, whole = ask(server, "what is red 7")
    assert last["usage"] == whole["usage"]


def test_a_stream_ends_with_the_whole_answer_and_done(server: SimpleNamespace) -> None:
    body = {"messages": [{"role": "user", "content": "what is red 7"}], "stream": True}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line.removeprefix("data: ") for line in answer.read().decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert [said] == wanted(server, ["what is red 7"]) and chunks[-1]["choices"][0]["finish_reason"]


def test_mlflow_s_payloads_and_the_list_of_models_are_there_too(server: SimpleNamespace, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "what is red 7"}]
    status, found = post(f"{server.url}/invocations", {"dataframe_records": [{"messages": messages}]})
    assert status == 200 and [found["predictions"][0]["content"]] == wanted(server, ["what is red 7"])
    assert post(f"{server.url}/invocations", {"dataframe_records": [{"words": 1}]})[0] == 400
    with urllib.request.urlopen(f"{server.url}/v1/models", timeout=60) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["answers"]
