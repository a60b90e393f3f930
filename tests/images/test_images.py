"""The images as anyone uses them: one stage, one `docker run`, no privileges, no network, outputs alone writable."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tuneport.targets.docker.container import Engine
from tuneport.targets.docker.settings import Images

pytestmark = [pytest.mark.slow, pytest.mark.containers]

NEVER_MORE = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
UID = 1000
STAGES = {
    "model_import": "trainer",
    "preprocess": "base",
    "finetune": "trainer",
    "model_export": "trainer",
    "model_evaluation": "trainer",
    "model_registration": "base",
}
IMAGES = {**STAGES, "model_benchmark": "trainer"}
TASK = ("--task_name", "text_classification")
BATCH = ("--per_device_train_batch_size", "8", "--learning_rate", "3e-3")


Ran = dict[str, subprocess.CompletedProcess[str]]


def openable(folder: Path) -> Path:
    """A folder of pytest's that another user may enter."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid != os.getuid() or parent == Path(parent.anchor):
            break
        parent.chmod(parent.stat().st_mode | 0o055)
    return folder


class Desk:
    """A folder of a user without privileges: ``in/`` is shown read-only, ``out/`` and ``mlflow/`` writable."""

    def __init__(self, docker: Engine, folder: Path) -> None:
        self.docker, self.folder = docker, openable(folder)
        for name in ("in", "out", "mlflow"):
            (folder / name).mkdir()
        self.give_away("out", "mlflow")

    def give_away(self, *names: str) -> None:
        """Outputs belong to the user of the containers; only root can give them to another than itself."""
        if os.getuid() == 0:
            for name in names:
                os.chown(self.folder / name, UID, UID)

    @property
    def user(self) -> str:
        return f"{UID}:{UID}" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"

    def arguments(self, stage: str, *flags: str) -> list[str]:
        """`docker run` of a stage, as docs/images.md has it."""
        image = dict(Images())[IMAGES[stage]]
        return [
            "run", *NEVER_MORE, "--user", self.user, "--tmpfs", "/tmp",
            "--volume", f"{self.folder}/in:/in:ro", "--volume", f"{self.folder}/out:/out",
            "--volume", f"{self.folder}/mlflow:/mlflow", "--env", "MLFLOW_TRACKING_URI=sqlite:////mlflow/mlflow.db",
            "--env", "OMP_NUM_THREADS=1",
            image, "python", "-m", "steps", stage, *flags,
        ]  # fmt: skip

    def run(self, stage: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command, *rest = self.arguments(stage, *flags)
        return self.docker(command, "--rm", *rest)


@pytest.fixture(scope="module")
def desk(
    docker: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
) -> Desk:
    desk = Desk(docker, tmp_path_factory.mktemp("desk"))
    write_jsonl(desk.folder / "in" / "questions.jsonl", questions)
    subprocess.run(["cp", "-r", tiny_model, desk.folder / "in" / "model"], check=True)
    subprocess.run(["chmod", "-R", "a+rX", desk.folder / "in"], check=True)
    return desk


@pytest.fixture(scope="module")
def ran(desk: Desk) -> Ran:
    """Every stage, one after another."""
    imported, prepared = "/out/imported", "/out/prepared"
    tuned, exported, report = "/out/tuned", "/out/exported", "/out/report"
    both = ("--model_selector_output", imported, "--preprocess_output", prepared)
    flags: dict[str, tuple[str, ...]] = {
        "model_import": ("--pytorch_model_path", "/in/model", "--model_selector_output", imported),
        "preprocess": (
            *TASK, *both, "--train_file_path", "/in/questions.jsonl", "--sentence1_key", "text", "--label_key", "label",
        ),
        "finetune": (*TASK, *both, *BATCH, "--num_train_epochs", "8", "--pytorch_model_folder", tuned),
        "model_export": (
            *TASK, "--pytorch_model_folder", tuned, "--preprocess_output", prepared, "--mlflow_model_folder", exported,
            "--export_formats", "onnx",
        ),
        "model_evaluation": (*TASK, *both, "--pytorch_model_folder", tuned, "--evaluation_result", report),
        "model_registration": (
            "--mlflow_model_folder", exported, "--evaluation_result", report, "--registered_model_name", "questions",
            "--registration_details_folder", "/out/registered",
        ),
    }  # fmt: skip
    return {stage: desk.run(stage, *flags[stage]) for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_runs_alone_without_privileges_network_or_a_writable_root(ran: Ran, stage: str) -> None:
    assert ran[stage].returncode == 0, ran[stage].stderr
    assert "Traceback" not in ran[stage].stderr


def test_what_they_write_belongs_to_the_user_and_is_whole(ran: Ran, desk: Desk) -> None:
    outputs = sorted(path.name for path in (desk.folder / "out").iterdir())
    assert outputs == ["exported", "imported", "prepared", "registered", "report", "tuned"]
    owner = int(desk.user.partition(":")[0])
    for path in (desk.folder / "out").rglob("*"):
        assert path.stat().st_uid == owner
    for name in outputs:
        assert (desk.folder / "out" / name / "manifest.json").is_file()


def test_the_model_learnt_and_its_version_is_registered_with_its_scores(ran: Ran, desk: Desk) -> None:
    metrics = json.loads((desk.folder / "out" / "report" / "metrics.json").read_text("utf-8"))
    assert metrics["tuned"]["metrics"]["accuracy"] > 0.5
    details = json.loads((desk.folder / "out" / "registered" / "registration_details.json").read_text("utf-8"))
    assert (details["name"], details["version"]) == ("questions", 1)


def test_the_model_is_there_as_onnx_too_and_answers_as_the_training_did(ran: Ran, desk: Desk) -> None:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    folder = desk.folder / "out" / "exported" / "onnx"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    labels = json.loads((folder / "config.json").read_text("utf-8"))["id2label"]
    answers = desk.folder / "out" / "report" / "predictions.jsonl"
    for row in map(json.loads, answers.read_text("utf-8").splitlines()):
        encoded = tokenizer.encode(row["sentence1"])
        given = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        (logits,) = session.run(None, {port.name: np.array([given[port.name]]) for port in session.get_inputs()})
        assert labels[str(logits.argmax())] == row["tuned"]["label"]


BENCHMARK = """\
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_benchmark_is_asked_without_a_network(desk: Desk, write_jsonl: Callable[[Path, Iterable[Any]], Path]) -> None:
    from tests.tasks.conftest import gpt2

    folder = desk.folder / "in" / "benchmark"
    gpt2(folder / "model")
    write_jsonl(
        folder / "animals.jsonl", [{"question": f"{i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(8)]
    )
    (folder / "animals.yaml").write_text(BENCHMARK, "utf-8")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    decoder, scores = "/out/decoder", "/out/benchmark"
    imported = desk.run(
        "model_import", "--pytorch_model_path", "/in/benchmark/model", "--model_selector_output", decoder
    )
    assert imported.returncode == 0, imported.stderr
    asked = desk.run(
        "model_benchmark", "--task_name", "text_generation", "--model_selector_output", decoder,
        "--pytorch_model_folder", decoder, "--benchmark_tasks", "animals", "--benchmark_folder", "/in/benchmark",
        "--benchmark_result", scores,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    result = desk.folder / "out" / "benchmark"
    samples = [json.loads(line) for line in (result / "samples.jsonl").read_text("utf-8").splitlines()]
    likelihoods = [[likelihood for likelihood, _ in sample["tuned"]["answers"]] for sample in samples]
    right = [found.index(max(found)) == sample["target"] for found, sample in zip(likelihoods, samples, strict=True)]
    metrics = json.loads((result / "metrics.json").read_text("utf-8"))
    assert len(right) == 8 and metrics["tuned"]["metrics"] == {"animals/acc": pytest.approx(sum(right) / 8)}


@pytest.mark.parametrize("image", ["base", "trainer"])
def test_an_image_runs_as_a_plain_user_has_labels_and_no_entrypoint(docker: Engine, image: str) -> None:
    name = dict(Images())[image]
    config = docker.inspect(name, image)["Config"]
    assert config["User"] == "1000:1000"
    assert not config.get("Entrypoint")
    assert config["Cmd"] == ["python", "-m", "steps"]
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert labels["title"] == f"tuneport-{image}"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == name.partition(":")[2]
    assert labels["revision"] != "unknown"
    listed = docker("run", "--rm", *NEVER_MORE, name)
    assert listed.returncode == 0
    assert re.search(r"^  finetune +Fine-tune", listed.stdout, re.MULTILINE)


@pytest.mark.parametrize("image", ["base", "trainer"])
def test_an_image_holds_no_compiler_and_no_installer_and_lists_what_it_is_made_of(docker: Engine, image: str) -> None:
    name = dict(Images())[image]
    tools = docker("run", "--rm", *NEVER_MORE, name, "sh", "-c", "command -v gcc g++ cc pip pip3; true")
    assert tools.stdout == ""
    bom = json.loads(docker("run", "--rm", *NEVER_MORE, name, "cat", "/opt/venv/share/sbom.cdx.json").stdout)
    listed = {entry["name"].lower().replace("_", "-"): entry["version"] for entry in bom["components"]}
    assert bom["bomFormat"] == "CycloneDX"
    for library in ("pyarrow", "tokenizers", "mlflow-skinny"):
        assert listed[library] == metadata.version(library)
    assert ("torch" in listed) is (image == "trainer")


def test_deepspeed_exchanges_data_on_cpus_without_a_compiler(docker: Engine) -> None:
    script = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; print(B().load().__file__)"
    command = ("run", "--rm", *NEVER_MORE, "--tmpfs", "/tmp", "--env", "DS_ACCELERATOR=cpu")
    result = docker(*command, Images().trainer, "python", "-c", script)
    assert result.returncode == 0, result.stderr
    assert "/opt/venv/" in result.stdout


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_an_output_folder_that_is_not_writable_is_refused_before_the_work(desk: Desk, ran: Ran) -> None:
    closed = desk.folder / "closed"
    closed.mkdir(mode=0o555)
    if os.getuid() == 0:
        command, *rest = desk.arguments("model_import", "--pytorch_model_path", "/in/model")
        result = desk.docker(
            command, "--rm", "--volume", f"{closed}:/closed", *rest, "--model_selector_output", "/closed"
        )
    else:
        pytest.skip("a folder of one's own can be made writable")
    assert result.returncode == 2
    assert "error: /closed: cannot be written to (Permission denied). Name a folder you may write to." in result.stderr
    assert "Traceback" not in result.stderr


def test_an_output_place_that_is_part_of_the_image_is_refused(desk: Desk) -> None:
    result = desk.run("model_import", "--pytorch_model_path", "/in/model", "--model_selector_output", "/new/imported")
    assert result.returncode == 2
    assert "error: /new/.imported.partial: cannot be written to (Read-only file system)." in result.stderr


def wait_for_line(docker: Engine, container: str, text: str) -> float:
    """Wait until a container says something; returns how many seconds that took."""
    started = time.monotonic()
    deadline = started + 300
    while text not in (seen := (logs := docker("logs", container)).stdout + logs.stderr):
        assert time.monotonic() < deadline, f"the container does not say {text!r}: {seen}"
        time.sleep(0.2)
    return time.monotonic() - started


def test_sigterm_ends_a_training_container_with_a_checkpoint_sooner_than_it_began(desk: Desk, ran: Ran) -> None:
    both = ("--model_selector_output", "/out/imported", "--preprocess_output", "/out/prepared")
    flags = (*TASK, *both, *BATCH, "--num_train_epochs", "5000", "--pytorch_model_folder", "/out/stopped")
    command, *rest = desk.arguments("finetune", *flags)
    container = desk.docker(command, "--detach", *rest).stdout.strip()
    try:
        began_in = wait_for_line(desk.docker, container, "tuneport.finetune [")
        started = time.monotonic()
        desk.docker("kill", "--signal", "TERM", container)
        code = desk.docker("wait", container).stdout.strip()
        took = time.monotonic() - started
        said = desk.docker("logs", container).stderr
    finally:
        desk.docker("rm", "--force", container)
    assert code == "75", said
    assert took < began_in  # some seconds, of the thirty that a pod has
    checkpoints = list((desk.folder / "out" / ".stopped.partial" / "checkpoints").glob("checkpoint-*/manifest.json"))
    assert checkpoints
    assert "the state is saved in" in said


def test_sigterm_ends_a_container_that_does_not_train_yet(desk: Desk, ran: Ran) -> None:
    both = ("--model_selector_output", "/out/imported", "--preprocess_output", "/out/prepared")
    flags = (*TASK, *both, *BATCH, "--num_train_epochs", "5000", "--pytorch_model_folder", "/out/early")
    command, *rest = desk.arguments("finetune", *flags)
    container = desk.docker(command, "--detach", *rest).stdout.strip()
    try:
        began_in = wait_for_line(desk.docker, container, "tuneport.finetune")
        started = time.monotonic()
        desk.docker("kill", "--signal", "TERM", container)
        code = desk.docker("wait", container).stdout.strip()
        took = time.monotonic() - started
    finally:
        desk.docker("rm", "--force", container)
    assert code in ("143", "75")
    assert took < began_in  # some seconds, of the thirty that a pod has


@pytest.mark.parametrize(("image", "limit"), [("base", 650), ("trainer", 2200)])
def test_an_image_is_not_larger_than_it_has_to_be(docker: Engine, image: str, limit: int) -> None:
    name = dict(Images())[image]
    cuda = docker("run", "--rm", *NEVER_MORE, name, "python", "-c", "import torch.version as v; print(v.cuda or '')")
    if image == "trainer" and cuda.stdout.strip():
        pytest.skip("the limit is for a torch without CUDA")
    assert docker.inspect(name, image)["Size"] <= limit * 1_000_000
