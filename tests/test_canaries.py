"""Secrets in every place that takes an address: none comes to light in what is printed, saved, compiled or tracked."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.toy_command import Toy

CANARY = "CaNaRy"
USER = f"me:{CANARY}p@s/s"  # with characters that an address has for something else
SIGNED = f"https://{USER}@127.0.0.1:9/data.csv?se={CANARY}1&sig={CANARY}2%3D#key={CANARY}3"
VARIABLES = {
    "HF_TOKEN": f"hf_{CANARY}4",
    "MLFLOW_TRACKING_PASSWORD": f"{CANARY}5-long",
    "MY_SECRET_SAUCE": f"{CANARY}6-long",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
IMAGES = f"images: {{base: 'r.example/base@sha256:{'a' * 64}', trainer: 'r.example/trainer@sha256:{'b' * 64}'}}"


def found(folder: Path, *printed: str, but: tuple[str, ...] = ()) -> list[str]:
    """Where the canary sings: the files of a folder, but for those of some names, and what was printed."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in but]
    lines = [line for text in printed for line in text.splitlines() if CANARY in line]
    return lines + [str(path) for path in files if CANARY.encode() in path.read_bytes()]


@pytest.fixture
def talking(tmp_path: Path) -> Toy:
    """The toy pipeline, whose second stage prints and raises what libraries do."""
    toy = Toy(tmp_path / "a folder")
    source = toy.package / "count.py"
    spoken = (
        '        print("Bearer", os.environ["HF_TOKEN"], os.environ["MLFLOW_TRACKING_URI"])\n'
        '        print("no line end", os.environ["MY_SECRET_SAUCE"], end="", flush=True)\n'
        '        self.log.info("reading %s", os.environ["ADDRESS"])\n'
        "        if self.deaf:\n"
    )
    text = source.read_text().replace("        if self.deaf:\n", spoken, 1)
    source.write_text(text.replace('RuntimeError("a defect")', 'RuntimeError(os.environ["ADDRESS"])'))
    return toy


@pytest.mark.parametrize("uri", [f"http://{USER}@127.0.0.1:9", f"postgresql://me:{CANARY}@db/mlflow?password={CANARY}"])
@pytest.mark.parametrize("failing", ["", "user", "bug"])
def test_a_run_and_its_replay_show_and_keep_no_secret(talking: Toy, failing: str, uri: str) -> None:
    environment = {**VARIABLES, "MLFLOW_TRACKING_URI": uri, "ADDRESS": SIGNED}
    place = ("--output_dir", "runs/toy")
    done = talking("run", "toy", "text=text.txt", f"trailing={SIGNED}", f"fail={failing}", *place, **environment)
    assert done.returncode == {"": 0, "user": 2, "bug": 1}[failing], done.stderr
    log = (talking.output / "logs" / "count.log").read_text()
    assert (
        "Bearer *** " in log and "no line end ***" in log and "reading https://***@127.0.0.1:9/data.csv?se=***" in log
    )
    replay = talking("replay", "runs/toy/shout", f"trailing={SIGNED}", "--run", **environment)
    assert replay.returncode == 0, replay.stderr
    command = talking("replay", "runs/toy/shout", f"trailing={SIGNED}", **environment)
    assert "--trailing" in command.stdout
    refused = talking("replay", "runs/toy/shout", **environment)
    assert "its secret was not saved" in refused.stderr
    printed = [text for result in (done, replay, command, refused) for text in (result.stdout, result.stderr)]
    assert found(talking.folder, *printed) == []
    if not failing:
        shown = "http://127.0.0.1:9" if uri.startswith("http") else 'ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
        assert shown in done.stdout
        signed_again = SIGNED.replace(f"{CANARY}2", f"{CANARY}7")
        again = talking("run", "toy", "text=text.txt", f"trailing={signed_again}", *place, **environment)
        assert talking.states(again)["shout"] == "done", "the key is of the whole values"


def test_a_stage_alone_shows_no_secret(talking: Toy) -> None:
    command = [sys.executable, "-m", "toy", "shout", "--text", SIGNED, "--shouted", "out", "--suffix", SIGNED]
    done = subprocess.run(
        command, cwd=talking.folder, env=talking.environment(**VARIABLES), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert found(talking.folder, done.stdout, done.stderr) == []


def test_what_libraries_print_in_a_stage_alone_holds_no_secret(talking: Toy) -> None:
    shout = [sys.executable, "-m", "toy", "shout", "--text", "text.txt", "--shouted", "shouted"]
    count = [sys.executable, "-m", "toy", "count", "--shouted", "shouted", "--counted", "out"]
    environment = talking.environment(
        **VARIABLES, ADDRESS=SIGNED, MLFLOW_TRACKING_URI=f"http://{USER}@127.0.0.1:9", PYTHONUNBUFFERED="1"
    )
    for command in (shout, count):
        done = subprocess.run(command, cwd=talking.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "Bearer *** http://***@127.0.0.1:9\nno line end ***"
    assert found(talking.folder, done.stdout, done.stderr) == []


@pytest.fixture
def tuneport(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "0", **VARIABLES, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


CONFIGURATIONS = {
    "data": f"train_file_path: {SIGNED}\n",
    "tracking": f"platform: {{kfp: {{{IMAGES}, tracking_uri: 'http://{USER}@mlflow'}}}}\n",
    "variable": f"platform: {{kfp: {{{IMAGES}, environment: {{HF_TOKEN: {CANARY}-long}}}}}}\n",
    "variables of Azure ML": f"platform: {{azureml: {{environment_variables: {{HF_TOKEN: {CANARY}-long}}}}}}\n",
    "unknown": f"platform: {{kfp: {{{IMAGES}, tracking: '{SIGNED}'}}}}\n",
    "not valid": f"learning_rate: {SIGNED}\n",
}
OF_ANOTHER = {(name, "azureml") for name in ("tracking", "variable", "unknown")} | {("variables of Azure ML", "kfp")}


@pytest.mark.parametrize("command", ["validate", "compile", "submit"])
@pytest.mark.parametrize(
    ("name", "target"), [(n, t) for n in CONFIGURATIONS for t in ("kfp", "azureml") if (n, t) not in OF_ANOTHER]
)
def test_a_document_with_a_secret_is_refused_and_the_secret_not_shown(
    name: str, command: str, target: str, tmp_path: Path, tuneport: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    text = CONFIGURATIONS[name]
    if "platform" not in text:
        text += f"platform: {{kfp: {{{IMAGES}}}}}\n"
    values = "pytorch_model_path: s3://bucket/model\nsentence1_key: text\nlabel_key: label\n"
    if "train_file_path" not in text:
        values += "train_file_path: s3://bucket/train.csv\n"
    (tmp_path / "c.yaml").write_text(values + text)
    flags = {"validate": (), "compile": ("-o", "out.yaml"), "submit": ("--dry_run",)}[command]
    done = tuneport(command, "text_classification", "--config", "c.yaml", "--target", target, *flags)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    if name in ("data", "tracking", "variable", "variables of Azure ML"):
        remedy = "platform.kfp.secrets" if target == "kfp" else "datastore"
        assert "holds a secret, which the document would keep" in done.stderr and remedy in done.stderr
    assert found(tmp_path, done.stdout, done.stderr, but=("c.yaml",)) == []


def test_where_a_document_is_sent_may_hold_a_secret_which_is_not_shown(
    tmp_path: Path, tuneport: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    values = "pytorch_model_path: s3://bucket/model\nsentence1_key: text\nlabel_key: label\n"
    values += (
        f"train_file_path: s3://bucket/train.csv\nplatform: {{kfp: {{{IMAGES}, endpoint: 'https://{USER}@kf'}}}}\n"
    )
    (tmp_path / "c.yaml").write_text(values)
    done = tuneport("submit", "text_classification", "--config", "c.yaml", "--target", "kfp", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert '"endpoint": "https://***@kf"' in done.stdout
    assert found(tmp_path, done.stdout, done.stderr, but=("c.yaml",)) == []


def test_a_download_that_fails_shows_no_secret(
    tmp_path: Path, tuneport: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    values = ["huggingface_id=a/b", f"train_file_path={SIGNED}", "sentence1_key=text", "label_key=label"]
    environment = {"HF_ENDPOINT": f"http://{USER}@127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    for command in ("run", "validate"):
        done = tuneport(command, "text_classification", *values, **environment)
        assert done.returncode == 2
        assert found(tmp_path, done.stdout, done.stderr) == []
    code = "import steps, sys; from tuneport.cli.stage_command import run_stage; "
    code += "sys.exit(run_stage(sys.argv[1:], ['model_import'], steps.load))"
    alone = [sys.executable, "-c", code, "model_import", "--huggingface_id", "a/b", "--model_selector_output", "out"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", **VARIABLES, **environment}
    done = subprocess.run(alone, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "http://***@127.0.0.1:9 cannot be reached" in done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == []


@pytest.mark.slow
@pytest.mark.parametrize("over_http", [False, True])
def test_a_whole_run_keeps_no_secret_in_files_and_databases(
    over_http: bool, tmp_path: Path, tiny_model: Path, questions: list[dict[str, str]], request: pytest.FixtureRequest
) -> None:
    write_jsonl, tuneport = map(request.getfixturevalue, ("write_jsonl", "tuneport"))
    data = write_jsonl(tmp_path / "questions.jsonl", questions)
    values = {
        "pytorch_model_path": tiny_model, "train_file_path": data, "sentence1_key": "text", "label_key": "label",
        "max_steps": 3, "registered_model_name": "canary",
    }  # fmt: skip
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if over_http:
        uri = request.getfixturevalue("server").replace("//", f"//me:{CANARY}@")
    environment = {"MLFLOW_TRACKING_URI": uri, "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_PASSWORD": ""}
    done = tuneport("run", "text_classification", *(f"{k}={v}" for k, v in values.items()), **environment)
    assert done.returncode == 0, done.stderr
    assert "See the run in MLflow" in done.stdout
    assert (tmp_path / "runs/text_classification/latest/model_registration").is_dir()
    assert found(tmp_path, done.stdout, done.stderr) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    from tests.steps.test_model_registration import serving

    with serving(tmp_path / "server") as url:
        yield url
