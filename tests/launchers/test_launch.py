"""A stage on several machines, as its container launches it, against a fake of the Kubernetes API."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneport.targets.docker.settings import Images

ROOT = Path(__file__).parents[2]
RUN = "3f9e0c1a-7c9e-4e0c-8b1a-9d1d6f0f2b11"
JOB = {"kind": "pytorchjob", "pending_seconds": 300, "job": {"image": Images().trainer, "nodes": 2, "processes": 2}}


def executor_input(out: Path, outputs: list[str], parameters: dict[str, Any], **inputs: Path) -> str:
    def artifacts(places: dict[str, Path]) -> dict[str, Any]:
        return {name: {"artifacts": [{"name": name, "uri": str(place)}]} for name, place in places.items()}

    wanted = {
        "artifacts": artifacts({name: out / name for name in outputs}),
        "outputFile": str(out / "executor_output.json"),
    }
    return json.dumps({"inputs": {"artifacts": artifacts(inputs), "parameterValues": parameters}, "outputs": wanted})


def start(stage: str, shared: Path, text: str, *flags: str) -> "subprocess.Popen[str]":
    job = json.dumps({**JOB, "shared": str(shared)})
    command = [sys.executable, "-P", "-m", "steps", stage, *flags, "--kfp_executor_input", text]
    return subprocess.Popen(
        [*command, "--kfp_job", job, "--kfp_run_id", RUN],
        env={**os.environ, "PYTHONPATH": str(ROOT), "KFP_POD_NAME": "w-impl-0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(1200):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come to that in two minutes")


@pytest.fixture
def imported(tmp_path: Path, tiny_model: Path, imported_model: Path) -> dict[str, Any]:
    """The stage model_import as a job whose work someone else does."""
    text = executor_input(tmp_path / "kfp", ["model_selector_output"], {}, pytorch_model_path=tiny_model)
    folder = tmp_path / "shared" / RUN / "model_import"

    def finish(fake: Any, job: dict[str, Any]) -> None:
        assert (folder / "in" / "pytorch_model_path" / "config.json").is_file()
        shutil.copytree(imported_model, folder / "out" / "model_selector_output")
        fake.set_condition(job, "Succeeded")

    return {"text": text, "shared": tmp_path / "shared", "finish": finish, "out": tmp_path / "kfp"}


def test_a_launcher_that_was_killed_and_started_again_goes_on_with_its_job(fake_kubernetes: Any, imported: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Running"))
    first = start("model_import", imported["shared"], imported["text"])
    job = wait_for(lambda: next(iter(fake.jobs.values()), None))
    wait_for(lambda: sum("watch=" in path for _, path in fake.requests) >= 2)
    first.kill()
    first.wait()
    second = start("model_import", imported["shared"], imported["text"])
    wait_for(lambda: sum("watch=" in path for _, path in fake.requests) >= 4)  # it watches the job and its pods as well
    imported["finish"](fake, job)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert "started earlier for this run: going on with it" in said
    assert list(fake.jobs) == [f"model-import-{RUN}"]
    assert (imported["out"] / "model_selector_output" / "manifest.json").is_file()
    assert (imported["out"] / "executor_output.json").is_file()
    assert list((imported["shared"] / RUN).iterdir()) == []


def test_a_launcher_that_is_terminated_deletes_its_job(fake_kubernetes: Any, imported: Any) -> None:
    fake = fake_kubernetes(lambda fake, job: fake.set_condition(job, "Running"))
    launcher = start("model_import", imported["shared"], imported["text"])
    wait_for(lambda: fake.jobs)
    wait_for(lambda: any("watch=" in path for _, path in fake.requests))
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 143, said
    assert fake.jobs == {} and "deleting pytorchjobs" in said
    assert not (imported["out"] / "executor_output.json").exists()


def test_a_value_that_is_not_valid_is_refused_before_there_is_a_job(fake_kubernetes: Any, tmp_path: Path) -> None:
    fake = fake_kubernetes(lambda fake, job: None)
    text = executor_input(tmp_path / "kfp", ["model_selector_output"], {"huggingface_id": "/no/id"})
    launcher = start("model_import", tmp_path / "shared", text)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 2 and "huggingface_id='/no/id'" in said
    assert not fake.requests


@pytest.mark.slow
@pytest.mark.parametrize("pods", ["as_processes", pytest.param("as_containers", marks=pytest.mark.containers)])
def test_two_machines_with_two_processes_each_train_one_model(
    pods: str, request: pytest.FixtureRequest, fake_kubernetes: Any, tmp_path: Path
) -> None:
    fake = fake_kubernetes(request.getfixturevalue(pods))
    imported_model, prepared_questions = map(request.getfixturevalue, ("imported_model", "prepared_questions"))
    parameters = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
    inputs = {"model_selector_output": imported_model, "preprocess_output": prepared_questions}
    text = executor_input(tmp_path / "kfp", ["pytorch_model_folder", "training_metrics"], parameters, **inputs)
    settled = {"task_name": "text_classification", "num_nodes_finetune": "2", "number_of_gpu_to_use_finetuning": "2"}
    (tmp_path / "shared").mkdir()
    launcher = start("finetune", tmp_path / "shared", text, *(w for n, v in settled.items() for w in (f"--{n}", v)))
    said, _ = launcher.communicate(timeout=550)
    assert launcher.returncode == 0, said
    model = tmp_path / "kfp" / "pytorch_model_folder"
    assert json.loads((model / "manifest.json").read_text())["parameters"]["num_nodes_finetune"] == 2
    assert (model / "model.safetensors").is_file() and (model / "checkpoints").is_dir()
    training = json.loads((model / "training.json").read_text())
    assert training["steps"] == 4
    reported = json.loads((tmp_path / "kfp" / "executor_output.json").read_text())["artifacts"]
    assert reported["training_metrics"]["artifacts"][0]["metadata"]["steps"] == 4
    assert len(fake.bodies) == 1 and len(fake.pods) == 2
    assert "best loss" in said  # rank 0's log
    assert list((tmp_path / "shared" / RUN).iterdir()) == []
