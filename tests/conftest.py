"""What the suites share: a two-layer BERT, rows that can be learnt, and a server that cannot reach tuneport."""

import functools
import gc
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import tiny, warm_python
from tuneport.errors import UserError
from tuneport.targets.docker.container import Engine
from tuneport.targets.docker.settings import Images

gc.set_threshold(10_000, 10, 10)  # importing the large libraries makes a million objects that all stay
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # started in the background: the tests' processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


SLOWEST_SECONDS = 2400

started = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    """Slow tests start their stages warm, each process of them with a server of its own."""
    slow = "slow" in config.option.markexpr and "not slow" not in config.option.markexpr
    alone = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if slow and alone and os.environ.get("TUNEPORT_COLD") != "1":
        stack = ExitStack()
        stack.enter_context(warm_python.in_place())
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests, some of which train for real, are given longer until they count as hung."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOWEST_SECONDS))


@pytest.fixture(autouse=True)
def long_lived_objects() -> None:
    """What there is before a test, imported libraries above all, is not gone through by each collection.

    Every training ends with one, which takes longer than a tiny model's steps where it goes through all of them.
    """
    if next(started) % 10 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def plain_models_are_saved_without_deepspeed() -> None:
    """Accelerate would import it, and MLflow with it, for the first model that a test saves."""
    if "accelerate.utils.other" in sys.modules:
        from tuneport.training.distributed.sharding import import_no_deepspeed

        import_no_deepspeed()


@pytest.fixture(autouse=True, scope="session")
def figures_drawn_once() -> Iterator[None]:
    """A figure of the same values is drawn once in a process: drawing is most of what evaluating a tiny model takes."""
    from tuneport.evaluation import figures

    drawn: dict[str, str] = {}
    names = ("score_intervals", "training_curves", "confusion_matrix", "confidence", "label_shares", "token_lengths")

    def told(value: Any) -> Any:
        if isinstance(value, figures.Evaluation):
            return [value.metrics, value.intervals]
        return value.tolist() if hasattr(value, "tolist") else [type(value).__name__, value.name, value.label]

    def once(name: str, draw: Callable[..., str], *values: Any) -> str:
        key = json.dumps([name, values], default=told)
        return drawn.get(key) or drawn.setdefault(key, draw(*values))

    with pytest.MonkeyPatch.context() as patched:
        for name in names:
            patched.setattr(figures, name, functools.partial(once, name, getattr(figures, name)))
        yield


@pytest.fixture(autouse=True)
def no_tracking_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test tracks only where it says so; MLflow itself leaves its URI in the environment of a process."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def tuneport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in this process and in an empty folder."""
    from pipelines.__main__ import command

    monkeypatch.chdir(tmp_path)
    return lambda *argv: command(argv)


@pytest.fixture(scope="session")
def questions() -> list[dict[str, str]]:
    """120 distinct rows of 3 labels; the label follows from the words."""
    return tiny.questions()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of 2 layers × 32, without a head, and a WordPiece tokenizer that knows the rows' words."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tiny.write_model(folder)
    return folder


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, Iterable[Any]], Path]:
    """Write rows as JSON lines and return the path."""

    def write(path: Path, rows: Iterable[Any]) -> Path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def imported_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` as model_import hands it on."""
    from steps.model_import import ModelImport
    from tuneport.artifacts import CustomModel, Model
    from tuneport.stage import execute

    folder = tmp_path_factory.mktemp("imported") / "model_selector_output"
    execute(ModelImport(pytorch_model_path=CustomModel(tiny_model), model_selector_output=Model(folder)))
    return folder


@pytest.fixture(scope="session")
def prepared_questions(
    imported_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """`questions` as preprocess hands them on: 96 training, 12 validation and 12 test rows."""
    import steps
    from tuneport.stage import execute

    folder = tmp_path_factory.mktemp("prepared")
    data = write_jsonl(folder / "questions.jsonl", questions)
    stage = steps.load("preprocess", "text_classification")(
        model_selector_output=imported_model,
        train_file_path=data,
        sentence1_key="text",
        label_key="label",
        preprocess_output=folder / "preprocess_output",
    )
    execute(stage)
    return folder / "preprocess_output"


@pytest.fixture(scope="session")
def whole_run(
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
    mlflow_store: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a finished run of every stage, with checkpoints at steps 4 and 8, as `tuneport run` leaves it."""
    from tests.whole_run import plan
    from tuneport.runner import cache, saved_inputs
    from tuneport.stage import execute

    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_model, folder / "model")
    (folder / "model" / "generation_config.json").write_text('{"max_length": 20}')
    write_jsonl(folder / "questions.jsonl", questions)
    mlflow_store(folder / "store")
    digests = cache.Digests()
    for stage in plan(folder).stages:
        saved_inputs.save(saved_inputs.file_of(stage.log), stage.step)
        record = cache.record(stage.name, stage.parameters, stage.inputs, ["steps"], digests, origins={})
        execute(stage.step)
        cache.remember(stage.folder, record, stage.outputs, 1.0)
    return folder / "run"


@pytest.fixture(scope="session")
def task_rows(questions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """`questions` with columns for every task, by the names in `task_columns`."""
    made = []
    for row in questions:
        words, text = row["text"].split(), row["text"]
        made.append(
            {
                **row,
                "words": words,
                "tags": [row["label"] if word.isalpha() else "O" for word in words],
                "question": "which number",
                "answers": {"text": [words[-1]], "answer_start": [len(text) - len(words[-1])]},
                "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": row["label"]}],
            }
        )
    return made


@pytest.fixture(scope="session")
def task_columns() -> dict[str, dict[str, Any]]:
    """By task, what preprocess is told of `task_rows`."""
    of_questions = {"question_key": "question", "context_key": "text", "answers_key": "answers", "doc_stride": 16}
    return {
        "text_classification": {"sentence1_key": "text", "label_key": "label"},
        "token_classification": {"token_key": "words", "tag_key": "tags"},
        "question_answering": of_questions,
        "summarization": {"document_key": "text", "summary_key": "label", "max_target_length": 16},
        "translation": {"source_lang": "text", "target_lang": "label", "max_target_length": 16},
        "text_generation": {"text_key": "text", "ground_truth_key": "label"},
        "chat_completion": {},
    }


FENCE = """
import socket, sys

class Fence:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tuneport", "steps", "pipelines"):
            raise ModuleNotFoundError(f"fenced off: {name}", name=name)

sys.meta_path.insert(0, Fence())

class Socket(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"fenced off: {address}")
        return super().connect(address)

socket.socket = Socket
"""


@pytest.fixture(scope="session")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which tuneport, steps, pipelines and other machines are out of reach."""
    folder = tmp_path_factory.mktemp("fence")
    (folder / "sitecustomize.py").write_text(FENCE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    fenced = {**os.environ, "PYTHONPATH": str(folder), "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", "import tuneport"]
    done = subprocess.run(command, env=fenced, cwd=folder, capture_output=True, text=True, check=False)
    assert "fenced off: tuneport" in done.stderr
    return fenced


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Put an sqlite store of MLflow's, empty, in a folder and return its URI: MLflow takes seconds to make one."""
    from mlflow import MlflowClient

    made = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{made}").search_experiments()

    def put(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{shutil.copy(made, folder / made.name)}"

    return put


@pytest.fixture(scope="session")
def fenced_python(fenced: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs a program, fenced: ``(code, *arguments, input=…, cwd=…)`` as `subprocess.run` of ``python -c``."""
    from tests.fork_server import ForkServer

    server = ForkServer(fenced, tmp_path_factory.mktemp("programs"))
    yield server.run
    server.close()


@pytest.fixture(scope="session")
def serve(fenced: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Any]:
    """`mlflow models serve` of a folder, fenced, as a context: a function payload -> (status, what JSON it answers)."""

    @contextmanager
    def serving(model: Path) -> Iterator[Callable[[Any], tuple[int, Any]]]:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        folder = tmp_path_factory.mktemp("serve")
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", port],
                env=fenced,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until_up(f"http://127.0.0.1:{port}/ping", process, folder / "log")
            yield lambda body: post(f"http://127.0.0.1:{port}/invocations", body)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return serving


def wait_until_up(url: str, process: subprocess.Popen[Any], log: Path, seconds: float = 300) -> None:
    """Return once a server answers; fails with its log where its process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


@pytest.fixture(scope="session")
def docker() -> Engine:
    """The Docker of this machine, with the images that `make images` builds; the test is skipped where it lacks them.

    With TUNEPORT_REQUIRE_DOCKER=1, which `.ci/containers` sets, the test fails instead.
    """
    try:
        engine = Engine()
        for name, image in Images():
            engine.inspect(image, name)
    except UserError as e:
        if os.environ.get("TUNEPORT_REQUIRE_DOCKER") == "1":
            pytest.fail(str(e))
        pytest.skip(str(e))
    return engine


class ContainerNetwork:
    """A network of containers that find each other by name and have no privileges."""

    def __init__(self, docker: Engine) -> None:
        self.docker, self.name, self.containers = docker, f"tuneport-test-{os.getpid()}", list[str]()
        assert docker("network", "create", self.name).returncode == 0

    def command(self, name: str, *words: str, environment: dict[str, str], volumes: Iterable[str]) -> list[str]:
        """`docker run` of an image and a command, in a container of that name; ``volumes`` keep their places."""
        self.containers.append(name)
        argv = ["docker", "run", "--rm", "--name", name, "--hostname", name, "--network", self.name]
        argv += ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--user", f"{os.getuid()}:{os.getgid()}"]
        argv += [word for volume in volumes for word in ("--volume", f"{volume.removesuffix(':ro')}:{volume}")]
        for variable, value in ({"OMP_NUM_THREADS": "1"} | environment).items():
            argv += ["--env", f"{variable}={value}"]
        return [*argv, *words]

    def close(self) -> None:
        self.docker("rm", "--force", *self.containers)
        self.docker("network", "rm", self.name)


@pytest.fixture
def container_network(docker: Engine) -> Iterator[ContainerNetwork]:
    made = ContainerNetwork(docker)
    yield made
    made.close()
