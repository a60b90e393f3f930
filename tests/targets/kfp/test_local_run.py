"""The compiled pipeline, run from end to end by kfp's own local orchestrator.

Its placeholders, wiring and reading of executor outputs are the real ones; only at the last step a process is started
in the place of a container, with the command and environment of the container.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
from tests.kfp_local import ROOT, start_processes
from tuneport.runner.request import Request
from tuneport.targets import load

pytestmark = pytest.mark.slow


@pytest.fixture
def processes_for_containers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that kfp.local ran as processes."""
    return start_processes(monkeypatch)


@pytest.fixture
def values(tmp_path: Path, tiny_model: Path, questions: Any, write_jsonl: Any) -> dict[str, Any]:
    """What the pipeline is given."""
    return {
        "pytorch_model_path": str(tiny_model),
        "train_file_path": str(write_jsonl(tmp_path / "questions.jsonl", questions)),
        "sentence1_key": "text",
        "label_key": "label",
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
    }


def test_a_compiled_pipeline_gives_the_metrics_of_a_local_run(
    tmp_path: Path, values: dict[str, Any], processes_for_containers: list[str], run_locally: Callable[..., Any]
) -> None:
    digest = "@sha256:" + 64 * "0"
    platform = {
        "images": {"base": f"registry.example/base{digest}", "trainer": f"registry.example/trainer{digest}"},
        "volumes": [{"claim": "data", "path": str(tmp_path)}, {"claim": "model", "path": values["pytorch_model_path"]}],
    }
    pipeline = pipelines.load("text_classification")
    request = Request(output_dir=tmp_path / "x", folder=tmp_path, environment={}, platform={"kfp": platform})
    document = load("kfp").compile(pipeline, pipeline.resolve(values), request)
    run = run_locally(document.text, tmp_path / "root")

    assert processes_for_containers[:3] == ["model_import", "preprocess", "finetune"]
    assert sorted(processes_for_containers[3:]) == ["model_evaluation", "model_export"]  # neither waits for the other
    result = Path(run.outputs["evaluation_result"].path)
    assert (Path(run.outputs["mlflow_model_folder"].path) / "MLmodel").is_file()
    assert (Path(run.outputs["pytorch_model_folder"].path) / "model.safetensors").is_file()
    shown = json.loads((result.parent / "executor_output.json").read_text())["artifacts"]
    metadata = {name: found["artifacts"][0]["metadata"] for name, found in shown.items()}
    metrics = json.loads((result / "metrics.json").read_text())
    assert metadata["test_metrics"]["accuracy"] == metrics["tuned"]["metrics"]["accuracy"]
    assert len(metadata["confusion_matrix"]["confusionMatrix"]["rows"]) == 3
    assert (result.parent / "report").read_text().lstrip().startswith("<!")

    flags = [f"{name}={value}" for name, value in values.items()]
    subprocess.run(
        [sys.executable, "-m", "pipelines", "run", "text_classification", *flags, "--output_dir", "here"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    same = json.loads((tmp_path / "here" / "model_evaluation" / "evaluation_result" / "metrics.json").read_text())
    assert same == metrics
