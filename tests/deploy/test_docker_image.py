"""`tuneport deploy --to docker`, for real: its image is built and started by the commands it gives, and asked.

TUNEPORT_SERVING_IMAGE: a Python image whose pip finds the packages; without it, the one that a user gets.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import post, wait_until_up
from tests.tasks.conftest import CHATML, llama
from tuneport.targets.docker.container import Engine

pytestmark = [pytest.mark.slow, pytest.mark.containers]

TUNEPORT = str(Path(sys.executable).with_name("tuneport"))
QUESTION = "what is red 7"


def tuneport(folder: Path, *argv: str) -> str:
    done = subprocess.run([TUNEPORT, *argv], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run(folder: Path, task: str, **values: Any) -> Path:
    """The folder of a finished run of two steps."""
    given = {"max_steps": 2, "per_device_train_batch_size": 8, "evaluate_base_model": False, **values}
    (folder / "run.yaml").write_text(yaml.safe_dump(given))
    tuneport(folder, "run", task, "--config", "run.yaml", "--output_dir", "runs/answers")
    return folder / "runs" / "answers"


@pytest.fixture(scope="module")
def served(docker: Engine) -> Iterator[Callable[[Path, str], AbstractContextManager[str]]]:
    """The address of a run's image, built by `tuneport deploy` and started as it says, as a context.

    The images go together, as they share the layer of the packages.
    """
    built: list[str] = []

    @contextmanager
    def serving(folder: Path, tag: str) -> Iterator[str]:
        image = os.environ.get("TUNEPORT_SERVING_IMAGE")
        settings = [f"tag={tag}", *([f"image={image}"] if image else [])]
        said = tuneport(folder, "deploy", "runs/answers", "--to", "docker", *settings)
        built.append(tag)
        (start,) = re.findall(r"^Look at it: (docker run .*)$", said, re.MULTILINE)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        argv = shlex.split(start)
        argv[argv.index("8000:8000")] = f"{port}:8000"
        argv[2:2] = ["--name", tag]
        with (folder / "server.log").open("w") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until_up(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            docker("rm", "--force", tag)
            process.wait(timeout=60)

    yield serving
    docker("image", "rm", *built)


def predictor(run: Path) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(run / "model_export" / "mlflow_model_folder")).unwrap_python_model().predictor


def test_a_chat_model_s_image_answers_openai_s_requests_as_the_model_does(
    served: Callable[[Path, str], AbstractContextManager[str]],
    tmp_path: Path,
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
) -> None:
    llama(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(CHATML)
    turns = [(f"what is red {i}", f"a colour {i}") for i in range(24)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    answers = run(
        tmp_path,
        "chat_completion",
        pytorch_model_path="model",
        train_file_path="rows.jsonl",
        max_new_tokens=12,
        validation_max_new_tokens=4,
    )
    texts = [f"what is number {i}" for i in range(32)]
    expected = predictor(answers)([{"messages": [{"role": "user", "content": text}], "tools": None} for text in texts])

    def ask(text: str) -> tuple[int, Any]:
        body = {"model": "answers", "messages": [{"role": "user", "content": text}]}
        return post(f"{url}/v1/chat/completions", body)

    with served(tmp_path, "tuneport-test-chat") as url, ThreadPoolExecutor(32) as pool:
        status, alone = ask(texts[0])
        at_once = list(pool.map(ask, texts))
    assert status == 200 and alone["choices"][0]["message"]["content"] == expected[0]["content"]
    assert {status for status, _ in at_once} == {200}
    assert [answer["choices"][0]["message"]["content"] for _, answer in at_once] == [one["content"] for one in expected]
    assert any(one["content"] for one in expected)


def test_a_classifier_s_image_answers_mlflow_s_requests_as_the_model_does(
    served: Callable[[Path, str], AbstractContextManager[str]],
    tmp_path: Path,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", questions)
    answers = run(
        tmp_path,
        "text_classification",
        pytorch_model_path=str(tiny_model),
        train_file_path="rows.jsonl",
        sentence1_key="text",
        label_key="label",
    )
    asked = [{"text": row["text"]} for row in questions[:8]]
    expected = predictor(answers)([{"sentence1": row["text"]} for row in asked])
    with served(tmp_path, "tuneport-test-classifier") as url:
        status, found = post(f"{url}/invocations", {"dataframe_records": asked})
    assert status == 200
    assert [row["label"] for row in found["predictions"]] == [row["label"] for row in expected]
    assert [row["score"] for row in found["predictions"]] == pytest.approx([row["score"] for row in expected], abs=1e-5)
