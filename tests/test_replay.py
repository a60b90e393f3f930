"""A stage is repeated from the values that its run has saved."""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneport.artifacts import CustomModel, File
from tuneport.runner.saved_inputs import save
from tuneport.targets.docker.settings import Images

TOY = Path(__file__).parent / "targets" / "toy"


class Toy:
    """The toy pipeline of three tiny stages in a folder, and the tuneport command over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(TOY, folder / "lib" / "toy", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "text.txt").write_text("hello")
        self.environment = {**os.environ, "PYTHONPATH": str(folder / "lib"), "TOY_NOTES": str(folder / "notes.txt")}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.shell(sys.executable, "-m", "toy.tuneport_toy", *arguments)

    def shell(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def text(self, *path: str) -> str:
        return self.folder.joinpath(*path, "text.txt").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A run that tests leave as it is."""
    return finish(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return finish(tmp_path)


def finish(folder: Path) -> Toy:
    toy = Toy(folder)
    done = toy("run", "toy", "text=text.txt", "times=3", 'suffix=, it\'s \\ "you"', "--output_dir", "run")
    assert done.returncode == 0, done.stderr
    return toy


def test_the_printed_command_repeats_a_stage_in_a_new_folder(toy: Toy) -> None:
    before = sorted((toy.folder / "run").rglob("*"))
    printed = toy("replay", "run/shout")
    assert printed.returncode == 0, printed.stderr
    assert sorted((toy.folder / "run").rglob("*")) == before
    assert toy.shell("bash", "-c", printed.stdout).returncode == 0
    assert toy.text("run", "replays", "shout-1", "shout", "shouted") == toy.text("run", "shout", "shouted")
    manifests = [
        toy.folder / "run" / path / "manifest.json" for path in ("shout/shouted", "replays/shout-1/shout/shouted")
    ]
    assert manifests[0].read_text() == manifests[1].read_text()


def test_run_repeats_it_at_once_and_a_value_can_be_changed(toy: Toy) -> None:
    again = toy("replay", "run/count", "times=2", "--run")
    assert again.returncode == 0, again.stderr
    original = toy.text("run", "count", "counted").splitlines()
    assert len(original) == 3
    assert toy.text("run", "replays", "count-1", "count", "counted").splitlines() == original[:2]
    assert toy("replay", "run/count", "--run").returncode == 0
    assert toy.text("run", "replays", "count-2", "count", "counted").splitlines() == original


def test_a_failed_stage_is_repeated_with_what_made_it_fail(toy: Toy) -> None:
    failed = toy("run", "toy", "text=text.txt", "times=3", "fail=user", "--output_dir", "run")
    again = toy("replay", "run/count", "--run")
    assert failed.returncode == again.returncode == 2
    assert "expected peace" in again.stderr
    assert toy("replay", "run/count", "fail=", "--run", "--output_dir", "mended").returncode == 0
    assert toy.text("mended", "count", "counted").startswith("0 HELLO")


def test_for_docker_the_command_shows_the_inputs_read_only_to_the_stages_image(finished: Toy) -> None:
    printed = finished("replay", "run/count", "--target", "docker", "--output_dir", "again")
    assert printed.returncode == 0, printed.stderr
    make, command = printed.stdout.strip().split(" && ")
    words = shlex.split(command)
    assert shlex.split(make) == ["mkdir", "-p", str(finished.folder / "again" / "count")]
    command = words[words.index("docker") :]
    assert command[:3] == ["docker", "run", "--rm"]
    mounts = [value for flag, value in itertools.pairwise(command) if flag == "--mount"]
    read, written = finished.folder / "run" / "shout" / "shouted", finished.folder / "again" / "count"
    assert f"type=bind,source={read},target={read},readonly" in mounts
    assert f"type=bind,source={written},target={written}" in mounts
    assert "HF_HUB_OFFLINE=1" in words
    assert command[command.index("-m") - 3 : command.index("-m")] == [Images().base, "python", "-P"]
    assert not (finished.folder / "again").exists()


def test_a_saved_file_alone_is_enough(toy: Toy) -> None:
    shutil.copy(toy.folder / "run" / "logs" / "shout.inputs.json", toy.folder / "download.json")
    assert toy("replay", "download.json", "text=text.txt", "--run", "--output_dir", "again").returncode == 0
    assert toy.text("again", "shout", "shouted") == toy.text("run", "shout", "shouted")


def test_an_executor_input_of_kubeflow_pipelines_is_read(toy: Toy) -> None:
    saved = {
        "inputs": {
            "artifacts": {"shouted": {"artifacts": [{"name": "shouted", "uri": "minio://bucket/run/shouted"}]}},
            "parameterValues": {"times": 2.0, "pause": 0.0, "fail": "", "deaf": False},
        },
        "outputs": {
            "artifacts": {"counted": {"artifacts": [{"uri": "minio://bucket/run/counted"}]}},
            "outputFile": "/tmp/kfp_outputs/output_metadata.json",
        },
    }
    (toy.folder / "executor_input.json").write_text(json.dumps(saved))
    unnamed = toy("replay", "executor_input.json")
    assert (unnamed.returncode, "Add --stage" in unnamed.stderr) == (2, True)
    elsewhere = toy("replay", "executor_input.json", "--stage", "count")
    assert elsewhere.returncode == 2
    assert "shouted=/minio/bucket/run/shouted: is not on this machine. Fetch it" in elsewhere.stderr
    here = ("shouted=run/shout/shouted", "--run", "--output_dir", "again")
    again = toy("replay", "executor_input.json", "--stage", "count", *here)
    assert again.returncode == 0, again.stderr
    assert len(toy.text("again", "count", "counted").splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run/nothing"], "no inputs of a stage are saved there"),
        (["text.txt"], "is not valid JSON"),
        (["run/shout/shouted/manifest.json"], "holds no inputs of a stage"),
        (["run/count", "tmies=3"], "unknown parameter 'tmies' for count. Did you mean 'times'?"),
        (["run/count", "times=0"], "times='0': not valid; expected a whole number >= 1 and <= 1000"),
        (["run/count", "--target", "azureml"], "--target azureml: runs no stage on this machine"),
    ],
)
def test_what_cannot_be_repeated_is_one_message(finished: Toy, arguments: list[str], message: str) -> None:
    done = finished("replay", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (finished.folder / "run" / "replays").exists()


def test_secrets_are_not_saved(tmp_path: Path) -> None:
    import steps

    stage = steps.load("preprocess", "text_classification")(
        model_selector_output=tmp_path,
        train_file_path=File(Path("https://account.blob.core.windows.net/c/train.csv?sv=1&sig=c2VjcmV0%3D&x=y")),
        test_file_path=File(Path("https://me:password@example.com/test.csv")),
        sentence1_key="text",
        label_key="label",
        preprocess_output=tmp_path,
    )
    save(tmp_path / "inputs.json", stage)
    values = json.loads((tmp_path / "inputs.json").read_text())["values"]
    assert values["train_file_path"] == "https://account.blob.core.windows.net/c/train.csv?sv=***&sig=***&x=***"
    assert values["test_file_path"] == "https://***@example.com/test.csv"
    command = [str(Path(sys.executable).with_name("tuneport")), "replay", str(tmp_path / "inputs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "its secret was not saved. Give the whole value: train_file_path=" in done.stderr


def test_a_real_stage_is_repeated_to_the_same_bytes(
    tiny_model: Path, questions: list[dict[str, str]], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    import steps
    from tuneport.artifacts import Model
    from tuneport.stage import execute

    model = tmp_path / "run" / "model_import" / "model_selector_output"
    execute(steps.load("model_import")(pytorch_model_path=CustomModel(tiny_model), model_selector_output=Model(model)))
    stage = steps.load("preprocess", "text_classification")(
        model_selector_output=model,
        train_file_path=write_jsonl(tmp_path / "rows.jsonl", questions),
        sentence1_key="text",
        label_key="label",
        preprocess_output=tmp_path / "run" / "preprocess" / "preprocess_output",
    )
    save(tmp_path / "run" / "logs" / "preprocess.inputs.json", stage)
    execute(stage)
    command = [str(Path(sys.executable).with_name("tuneport")), "replay", str(tmp_path / "run" / "preprocess"), "--run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    again = tmp_path / "run" / "replays" / "preprocess-1" / "preprocess" / "preprocess_output"
    assert (again / "manifest.json").read_text() == (stage.preprocess_output.path / "manifest.json").read_text()
