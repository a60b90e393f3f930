"""The docker target, run for real: tiny stages in an image of their own, and the pipeline beside the local target."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import own_metrics
from tuneport.targets.docker.container import Engine
from tuneport.targets.docker.settings import Images

pytestmark = [pytest.mark.slow, pytest.mark.containers]

TOY = Path(__file__).parents[1] / "toy"
TOY_IMAGE = "tuneport-test-toy"


@pytest.fixture(scope="module")
def toy_image(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base image with three tiny stages in it."""
    folder = tmp_path_factory.mktemp("toy-image")
    shutil.copytree(TOY, folder / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "Dockerfile").write_text(f"FROM {Images().base}\nCOPY toy /opt/toy/toy\nENV PYTHONPATH=/opt/toy\n")
    built = docker("build", "--tag", TOY_IMAGE, str(folder))
    assert built.returncode == 0, built.stderr
    return TOY_IMAGE


class Toy:
    """The tuneport command over the tiny stages, in a folder of its own, with a section ``platform: docker``."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder, self.image = folder, image
        self.output = folder / "runs" / "toy"
        (folder / "text.txt").write_text("hello")
        shutil.copytree(TOY, folder / "lib" / "toy", ignore=shutil.ignore_patterns("__pycache__"))
        ours = {"PYTHONPATH": str(folder / "lib"), "TOY_NOTES": str(folder / "notes.txt")}
        self.environment = {**os.environ, **ours}

    def shell(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def start(self, *arguments: str, **platform: Any) -> subprocess.Popen[str]:
        section = {"images": {"base": self.image}, "environment": ["TOY_NOTES"], **platform}
        (self.folder / "run.yaml").write_text(yaml.safe_dump({"platform": {"docker": section}}))
        command = [sys.executable, "-m", "toy.tuneport_toy", "run", "toy", "--target", "docker"]
        return subprocess.Popen(
            [*command, "--config", "run.yaml", "text=text.txt", "--output_dir", "runs/toy", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **platform: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **platform)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def toy(toy_image: str, tmp_path: Path, docker: Engine) -> Iterable[Toy]:
    folder = tmp_path / "a, folder"
    folder.mkdir()
    yield Toy(folder, toy_image)
    left = docker("ps", "--all", "--quiet", "--filter", "name=tuneport-(shout|count)-").stdout
    assert left == "", "a container is left behind"


def states(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    ends = re.findall(r"^(\w+) \| (done|cached|reused|failed|stopped)\b", result.stdout, re.MULTILINE)
    return dict(ends)


def test_stages_run_in_containers_and_their_results_are_the_callers_and_stand(toy: Toy) -> None:
    result = toy.run()
    assert result.returncode == 0, result.stderr
    assert states(result) == {"shout": "done", "count": "done"}
    counted = toy.output / "count" / "counted" / "text.txt"
    assert counted.read_text() == "0 HELLO!\n1 HELLO!\n"
    assert {path.stat().st_uid for path in toy.output.rglob("*")} == {os.getuid()}
    log = (toy.output / "logs" / "count.log").read_text()
    assert "docker run" in log and "--network none" in log and "--cap-drop ALL" in log
    assert "[2/2] written, offline=1" in log
    assert states(toy.run()) == {"shout": "cached", "count": "cached"}
    assert states(toy.run("times=3")) == {"shout": "cached", "count": "done"}


def test_a_stage_is_repeated_in_a_container_by_the_printed_command_or_at_once(toy: Toy) -> None:
    assert toy.run("suffix=, it's you").returncode == 0
    counted = ("count", "counted", "text.txt")
    replay = [sys.executable, "-m", "toy.tuneport_toy", "replay", "runs/toy/count", "--target", "docker"]
    printed = toy.shell(*replay, "--config", "run.yaml")
    assert printed.returncode == 0, printed.stderr
    again = toy.shell("bash", "-c", printed.stdout)
    assert again.returncode == 0, again.stdout + again.stderr
    at_once = toy.shell(*replay, "--config", "run.yaml", "--run")
    assert at_once.returncode == 0, at_once.stdout + at_once.stderr
    texts = {
        folder.joinpath(*counted).read_text()
        for folder in (toy.output, toy.output / "replays" / "count-1", toy.output / "replays" / "count-2")
    }
    assert texts == {"0 HELLO, it's you!\n1 HELLO, it's you!\n"}


def test_a_missing_image_is_named_with_what_builds_it(toy: Toy) -> None:
    result = toy.run(images={"base": "no-such-image:9"})
    assert result.returncode == 2
    assert "error: image no-such-image:9: Docker has none of that name. Build it with `make images`" in result.stderr
    assert "platform.docker.images.base" in result.stderr
    assert not toy.output.exists()


def test_a_gpu_that_is_not_there_is_refused(toy: Toy, docker: Engine) -> None:
    if docker.passes_gpus():
        pytest.skip("this Docker passes GPUs on")
    result = toy.run(gpus="all")
    assert result.returncode == 2
    assert "error: platform.docker.gpus='all': this Docker cannot pass on a GPU." in result.stderr


def test_a_stage_that_runs_out_of_memory_says_so_with_the_limit(toy: Toy) -> None:
    result = toy.run("fail=memory", memory="128m")
    assert result.returncode == 137
    assert "stage count failed (exit code 137)" in result.stderr
    assert (
        "It ran out of memory: it needed more than the 128m that platform.docker.memory lets it use." in result.stderr
    )


def test_a_stage_cannot_change_what_it_reads(toy: Toy) -> None:
    result = toy.run("fail=input")
    assert result.returncode == 2
    path = toy.output / "shout" / "shouted" / "text.txt"
    assert f"error: {path}: cannot be changed, as shouted is a read-only input of count" in result.stderr
    assert path.read_text() == "HELLO!"


@pytest.mark.parametrize(("how", "code"), [("user", 2), ("bug", 1), ("exit", 7), ("killed", 137)])
def test_a_failing_stage_gives_its_exit_code(toy: Toy, how: str, code: int) -> None:
    result = toy.run(f"fail={how}")
    assert result.returncode == code
    assert states(result) == {"shout": "done", "count": "failed"}
    assert not (toy.output / "count" / "counted").exists()


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 300
    while not path.is_file() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} does not show {text}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_stops_the_container_and_the_same_command_goes_on(toy: Toy, number: int, code: int, word: str) -> None:
    process = toy.start("pause=60")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    started = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - started < 30
    assert f"{word} in count. To go on, repeat the same command" in stderr
    assert (toy.folder / "notes.txt").exists() is (number == signal.SIGINT)
    assert states(toy.run()) == {"shout": "cached", "count": "done"}


def test_a_second_ctrl_c_kills_a_container_that_does_not_listen(toy: Toy) -> None:
    process = toy.start("pause=60", "deaf=true")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    process.send_signal(signal.SIGINT)
    wait_for(toy.folder / "notes.txt", "asked to stop")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_what_a_killed_run_left_running_keeps_others_out_and_is_cleared_away_later(toy: Toy) -> None:
    first = toy.start("pause=6")
    wait_for(toy.output / "logs" / "count.log", "[2/2]")
    first.kill()
    first.communicate(timeout=60)
    assert "is using this folder" in toy.run().stderr
    time.sleep(8)
    assert states(toy.run()) == {"shout": "cached", "count": "done"}


# -- the pipeline ------------------------------------------------------------------------------------------------------


SNAPSHOT = "models--o--n/snapshots/1"


@pytest.fixture(scope="module")
def desk(
    docker: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
) -> Path:
    """A folder with rows and a model whose files are links, as a hub's cache has them."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_jsonl(folder / "rows.jsonl", questions)
    snapshot, blobs = folder / SNAPSHOT, folder / "models--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_model, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return folder


def command(target: str, *more: str) -> list[str]:
    values = {
        "sentence1_key": "text", "label_key": "label", "train_file_path": "rows.jsonl", "pytorch_model_path": SNAPSHOT,
        "num_train_epochs": "8", "learning_rate": "3e-3", "per_device_train_batch_size": "8",
        "per_device_eval_batch_size": "16",
    }  # fmt: skip
    tuneport = str(Path(sys.executable).with_name("tuneport"))
    flags = ["--target", target, "--output_dir", f"runs/{target}"]
    return [tuneport, "run", "text_classification", *flags, *(f"{n}={v}" for n, v in values.items()), *more]


@pytest.fixture(scope="module")
def both(desk: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    name = ("registered_model_name=questions",)
    return {
        target: subprocess.run(command(target, *name), cwd=desk, capture_output=True, text=True, check=False)
        for target in ("local", "docker")
    }


def test_the_pipeline_in_containers_gives_the_local_targets_metrics(
    both: dict[str, subprocess.CompletedProcess[str]], desk: Path
) -> None:
    for result in both.values():
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr
    metrics = {
        target: json.loads((desk / "runs" / target / "model_evaluation/evaluation_result/metrics.json").read_text())
        for target in both
    }
    assert metrics["docker"]["tuned"]["metrics"]["accuracy"] > 0.5
    assert metrics["docker"] == metrics["local"]


def test_the_runs_of_both_stand_in_the_same_store_and_registry(
    both: dict[str, subprocess.CompletedProcess[str]], desk: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{desk}/mlflow.db")
    versions = {int(v.version): v for v in client.search_model_versions("name='questions'")}
    assert sorted(versions) == [1, 2]
    assert versions[1].run_id != versions[2].run_id
    for version in versions.values():
        assert client.get_run(version.run_id).data.metrics["test/accuracy"] > 0.5


def test_own_metrics_choose_and_score_in_containers_as_they_do_here(docker: Engine, tmp_path: Path) -> None:
    values = own_metrics.write(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    found = {}
    for target in ("local", "docker"):
        argv = [str(Path(sys.executable).with_name("tuneport")), "run", "text_generation", "--config", "run.yaml"]
        argv += ["--target", target, "--output_dir", f"runs/{target}"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        run = tmp_path / "runs" / target
        found[target] = own_metrics.found(
            run / "finetune" / "pytorch_model_folder", run / "model_evaluation" / "evaluation_result"
        )
    assert found["docker"] == found["local"]


def test_sigterm_saves_a_checkpoint_and_the_same_command_goes_on_from_it(desk: Path, both: object) -> None:
    long = command("docker", "num_train_epochs=5000", "resume_from_checkpoint=true")
    log = desk / "runs" / "docker" / "logs" / "finetune.log"
    log.unlink()  # of the run before this one
    process = subprocess.Popen(long, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(log, "] validation:")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert time.monotonic() - started < 30
    assert "the state is saved in" in stderr
    (saved,) = re.findall(r"the state is saved in (\S+)\.", stderr)
    assert Path(saved, "manifest.json").is_file()
