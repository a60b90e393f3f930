"""The commands of compiled components, run as Azure ML runs them."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneport.cli.environment import context_from_environment
from tuneport.graph import Pipeline
from tuneport.runner.request import Request
from tuneport.targets import load

IMAGES = {"image_base": "registry/base:1", "image_trainer": "registry/trainer:1"}
ODD = 'it\'s \\ a "label" `whoami` $HOME; ${HOME} # ünï'


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("lib")
    shutil.copytree(Path(__file__).parents[1] / "toy", folder / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    yield importlib.import_module("toy.tuneport_toy").load("toy")
    sys.path.remove(str(folder))


def compile_toy(toy: Pipeline, folder: Path, **given: Any) -> Path:
    (folder / "text.txt").write_text("hello")
    values = toy.resolve({"text": folder / "text.txt", **given})
    request = Request(output_dir=folder, folder=folder, environment={}, platform={"azureml": IMAGES})
    target = load("azureml")
    target.write(target.compile(toy, values, request), folder / "job")
    return folder / "job"


def test_values_reach_a_stage_as_they_were_given(toy: Pipeline, tmp_path: Path, run_job: Callable[..., Any]) -> None:
    compiled = compile_toy(toy, tmp_path, suffix=ODD, times=3, mark="?", pause=1e-05)
    job = run_job(compiled, tmp_path / "work", {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (job.outputs["counted"] / "text.txt").read_text() == "".join(f"{i} HELLO{ODD}?\n" for i in range(3))
    manifest = json.loads((job.outputs["counted"] / "manifest.json").read_text())
    assert manifest["parameters"]["pause"] == 1e-05
    assert manifest["parameters"]["deaf"] is False
    assert "--deaf 'False'" in job.commands["count"]


def test_what_has_no_value_is_no_flag_and_the_default_holds(
    toy: Pipeline, tmp_path: Path, run_job: Callable[..., Any]
) -> None:
    compiled = compile_toy(toy, tmp_path)
    assert set(yaml.safe_load((compiled / "job.yaml").read_text())["inputs"]) == {"text"}
    job = run_job(compiled, tmp_path / "work", {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (job.outputs["counted"] / "text.txt").read_text() == "0 HELLO!\n1 HELLO!\n"
    assert "--suffix" not in job.commands["shout"]
    assert "--mark '!'" in job.commands["shout"]


def test_a_compiled_folder_can_be_moved_with_its_data(
    toy: Pipeline, tmp_path: Path, run_job: Callable[..., Any]
) -> None:
    (tmp_path / "here").mkdir()
    compile_toy(toy, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    job = run_job(tmp_path / "there" / "job", tmp_path / "work", {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (job.outputs["counted"] / "text.txt").is_file()


@pytest.mark.usefixtures("mounts")
def test_outputs_may_be_mounts(toy: Pipeline, tmp_path: Path, run_job: Callable[..., Any]) -> None:
    compiled = compile_toy(toy, tmp_path)
    job = run_job(compiled, tmp_path / "work", {"PYTHONPATH": os.pathsep.join(sys.path)}, mounted=True)
    assert sorted(path.name for path in job.outputs["counted"].iterdir()) == ["manifest.json", "text.txt"]
    assert (job.outputs["counted"] / "text.txt").read_text() == "0 HELLO!\n1 HELLO!\n"


def test_a_stage_tracks_to_the_workspaces_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = "eastus.api.azureml.ms/mlflow/v1.0/subscriptions/s/resourceGroups/g/providers/x/workspaces/w"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"azureml://{server}?&is-remote=True")
    monkeypatch.setenv("MLFLOW_RUN_ID", "job-1")
    context = context_from_environment()
    assert (context.tracking_uri, context.run_id) == (f"https://{server}", "job-1")


@pytest.fixture
def rows(questions: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in questions)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_scores_as_a_local_run_of_the_same_seed(
    processes: int,
    tiny_model: Path,
    rows: str,
    tmp_path: Path,
    run_job: Callable[..., Any],
) -> None:
    (tmp_path / "questions.jsonl").write_text(rows)
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "pytorch_model_path": str(tiny_model),
                "train_file_path": "questions.jsonl",
                "sentence1_key": "text",
                "label_key": "label",
                "num_train_epochs": 4,
                "per_device_train_batch_size": 8 // processes,
                "learning_rate": 0.003,
                "metric_for_best_model": "accuracy",
                "seed": 7,
                "number_of_gpu_to_use_finetuning": processes,
                "platform": {"azureml": IMAGES},
            }
        )
    )
    compiled, local = tmp_path / "job", tmp_path / "local"
    tuneport("run", "text_classification", "--config", "run.yaml", "--output_dir", str(local), cwd=tmp_path)
    tuneport("compile", "text_classification", "--config", "run.yaml", "--target", "azureml", "-o", "job", cwd=tmp_path)
    job = run_job(compiled, tmp_path / "work")
    assert set(job.outputs) == {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"}
    assert (job.outputs["mlflow_model_folder"] / "MLmodel").is_file()
    saved = json.loads((tmp_path / "work" / "finetune" / "wd" / "logs" / "finetune.inputs.json").read_text())
    assert (saved["stage"], saved["values"]["seed"]) == ("finetune", 7)
    theirs, ours = job.outputs["evaluation_result"], local / "model_evaluation" / "evaluation_result"
    assert json.loads((theirs / "metrics.json").read_text()) == json.loads((ours / "metrics.json").read_text())
    assert (theirs / "predictions.jsonl").read_text() == (ours / "predictions.jsonl").read_text()
    scores = json.loads((theirs / "metrics.json").read_text())
    assert scores["tuned"]["metrics"]["accuracy"] > scores["base"]["metrics"]["accuracy"]


def tuneport(*arguments: str, cwd: Path) -> None:
    command = [str(Path(sys.executable).with_name("tuneport")), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
