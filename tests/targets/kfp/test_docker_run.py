"""The example's real model and rows: as processes, as containers, and as Kubeflow's compiled pipeline in containers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import own_metrics
from tuneport.targets.docker.container import Engine
from tuneport.targets.docker.settings import Images

pytestmark = [pytest.mark.slow, pytest.mark.containers]

EXAMPLE = Path(__file__).parents[3] / "examples" / "text_classification"
TUNEPORT = str(Path(sys.executable).with_name("tuneport"))
STEPS = 40  # of some 400 that the example's own configuration makes


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, with a section for Kubeflow: its data are on a volume, its images are this machine's."""
    folder = tmp_path_factory.mktemp("example")
    subprocess.run([sys.executable, EXAMPLE / "fetch.py", folder / "data"], check=True)
    volume = {"claim": "data", "path": str(folder / "data")}
    threads = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}  # with another number sums differ in the last bits
    kfp = {"images": dict(Images()), "allow_image_tags": True, "volumes": [volume], "environment": threads}
    values = (EXAMPLE / "config.yaml").read_text("utf-8")
    platform = yaml.safe_dump({"platform": {"kfp": kfp}})
    (folder / "config.yaml").write_text(f"{values}max_steps: {STEPS}\n{platform}", "utf-8")
    return folder


def tuneport(desk: Path, command: str, target: str, *flags: str) -> str:
    argv = [TUNEPORT, command, "text_classification", "--config", "config.yaml", "--target", target, *flags]
    done = subprocess.run(argv, cwd=desk, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def metrics(desk: Path) -> Any:
    """What a run on this machine, without containers, comes to."""
    tuneport(desk, "run", "local", "--output_dir", "local")
    found = json.loads((desk / "local/model_evaluation/evaluation_result/metrics.json").read_text("utf-8"))
    assert found["tuned"]["metrics"]["accuracy"] > found["base"]["metrics"]["accuracy"]
    return found


def test_the_docker_target_gives_the_same_metrics(docker: Engine, desk: Path, metrics: Any) -> None:
    tuneport(desk, "run", "docker", "--output_dir", "docker")
    assert json.loads((desk / "docker/model_evaluation/evaluation_result/metrics.json").read_text("utf-8")) == metrics


def in_containers(text: str, root: Path, data: Path, run_locally: Callable[..., Any]) -> Any:
    """Run a compiled pipeline in containers that have no privilege and see one folder, read-only."""
    from docker.types import Mount

    root.mkdir()
    root.chmod(0o777)  # the containers' user is not the one who asks
    return run_locally(
        text,
        root,
        user="1000:1000",
        read_only=True,
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": ""},
        mounts=[Mount(str(data), str(data), type="bind", read_only=True)],
    )


def test_kubeflows_compiled_pipeline_gives_the_same_metrics_without_any_privilege(
    docker: Engine, desk: Path, metrics: Any, tmp_path: Path, run_locally: Callable[..., Any]
) -> None:
    tuneport(desk, "compile", "kfp", "-o", "pipeline.yaml")
    run = in_containers((desk / "pipeline.yaml").read_text("utf-8"), tmp_path / "root", desk / "data", run_locally)
    result = Path(run.outputs["evaluation_result"].path)
    assert json.loads((result / "metrics.json").read_text("utf-8")) == metrics
    assert (Path(run.outputs["mlflow_model_folder"].path) / "MLmodel").stat().st_uid == 1000
    assert (Path(run.outputs["pytorch_model_folder"].path) / "model.safetensors").is_file()


def test_own_metrics_choose_and_score_in_kubeflows_containers(
    docker: Engine, tmp_path: Path, run_locally: Callable[..., Any]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    values = own_metrics.write(data)
    subprocess.run(["chmod", "-R", "a+rX", data], check=True)
    volume = {"claim": "data", "path": str(data)}
    kfp = {"images": dict(Images()), "allow_image_tags": True, "volumes": [volume]}
    (data / "run.yaml").write_text(yaml.safe_dump({**values, "platform": {"kfp": kfp}}))
    argv = [TUNEPORT, "compile", "text_generation", "--config", "run.yaml", "--target", "kfp", "-o", "pipeline.yaml"]
    done = subprocess.run(argv, cwd=data, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (data / "pipeline.yaml").read_text("utf-8")
    run = in_containers(text, tmp_path / "root", data, run_locally)
    own_metrics.found(*(Path(run.outputs[name].path) for name in ("pytorch_model_folder", "evaluation_result")))
