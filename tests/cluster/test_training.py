"""The chart and a training on a real cluster: `helm test`, and one model trained by two machines, by each kind of job.

The stage `finetune` runs as the pod that Kubeflow Pipelines would make of it, with its executor input. Its inputs are
made by the stages before it, in a pod that runs first; claims are the chart's own.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.launchers import cases

pytestmark = pytest.mark.cluster

SHARED = "/mnt/training"
MAKE = """
import json, subprocess, sys
sys.path.insert(0, "/code")
import tiny
from pathlib import Path
root = Path("/mnt/training/test")
root.mkdir(exist_ok=True)
tiny.write_model(root / "base")
(root / "rows.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in tiny.questions()))
def stage(name, **values):
    flags = [word for key, value in values.items() for word in ("--" + key, str(value))]
    subprocess.run([sys.executable, "-P", "-m", "steps", name, *flags], check=True)
stage("model_import", pytorch_model_path=root / "base", model_selector_output=root / "model")
stage("preprocess", task_name="text_classification", model_selector_output=root / "model",
      train_file_path=root / "rows.jsonl", sentence1_key="text", label_key="label", preprocess_output=root / "prepared")
"""
CHECK = """
import json
from pathlib import Path
model = Path("/mnt/training/test/KIND/pytorch_model_folder")
assert (model / "model.safetensors").is_file() and (model / "checkpoints").is_dir()
assert json.loads((model / "training.json").read_text())["steps"] == 4
assert json.loads((model / "manifest.json").read_text())["parameters"]["num_nodes_finetune"] == 2
print("the model is there")
"""


def pod(name: str, image: str, command: list[str], account: str, **more: Any) -> dict[str, Any]:
    """A pod with the shared volume, as restricted as Kubeflow's own are."""
    mounts = [
        {"name": "shared", "mountPath": SHARED},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "code", "mountPath": "/code"},
    ]
    security = dict(cases.SECURITY)
    container = {
        "name": "main",
        "image": image,
        "command": command,
        "volumeMounts": mounts,
        "securityContext": security,
    }
    volumes = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": "tuneport-shared"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "code", "configMap": {"name": "tiny"}},
    ]
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "containers": [{**container, **more}],
        "volumes": volumes,
    }
    # The second is Kubeflow's own, by which the network policies know a stage.
    labels = {"tuneport.dev/network": "tuneport", "pipelines.kubeflow.org/v2_component": "true"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def finish(kubectl: Any, made: dict[str, Any], seconds: float = 900) -> str:
    """Run a pod to its end; returns its log."""
    name = made["metadata"]["name"]
    kubectl.apply(made)
    until = time.monotonic() + seconds
    while (phase := json.loads(kubectl("get", "pod", name, "-o", "json"))["status"]["phase"]) not in (
        "Succeeded",
        "Failed",
    ):
        assert time.monotonic() < until, kubectl("describe", "pod", name)
        time.sleep(2)
    said: str = kubectl("logs", name)
    assert phase == "Succeeded", said
    kubectl("delete", "pod", name, "--wait=true")
    return said


@pytest.fixture(scope="module")
def prepared(kubectl: Any, chart: str, option: Callable[[str], str]) -> str:
    """A base model and prepared rows on the shared volume; returns the account of the runs."""
    code = {"tiny.py": Path(tiny.__file__).read_text("utf-8")}
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tiny"}, "data": code})
    finish(kubectl, pod("prepare", option("--trainer-image"), ["python3", "-c", MAKE], chart))
    return chart


def test_the_chart_says_that_it_works(kubectl: Any, chart: str) -> None:
    said = kubectl.helm("test", "tuneport", "--logs", "--timeout=10m")
    assert "the launcher has its rights" in said and "the shared volume can be written to" in said
    assert "GitPython" not in said and "git executable" not in said


@pytest.mark.parametrize("kind", cases.BOTH)
def test_two_machines_train_one_model(kubectl: Any, ground: Any, prepared: str, option: Any, kind: str) -> None:
    root, image = f"{SHARED}/test", option("--trainer-image")
    security = {**cases.SECURITY, "runAsGroup": 1000}
    job = {"image": image, "nodes": 2, "processes": 1, "security": security, "runtime": option("--cluster-runtime")}
    job |= {"volumes": [{"claim": "tuneport-shared", "path": SHARED}], "labels": {"tuneport.dev/network": "tuneport"}}
    described = {"kind": kind, "shared": SHARED, "pending_seconds": 600, "job": job}

    def artifacts(**places: str) -> dict[str, Any]:
        return {name: {"artifacts": [{"name": name, "uri": place}]} for name, place in places.items()}

    given = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1}
    inputs = artifacts(model_selector_output=f"{root}/model", preprocess_output=f"{root}/prepared")
    outputs = artifacts(
        pytorch_model_folder=f"{root}/{kind}/pytorch_model_folder", training_metrics=f"{root}/{kind}/training_metrics"
    )
    task = {
        "inputs": {"artifacts": inputs, "parameterValues": given},
        "outputs": {"artifacts": outputs, "outputFile": f"{root}/{kind}/executor_output.json"},
    }
    command = ["python3", "-P", "-m", "steps", "finetune", "--task_name", "text_classification"]
    command += ["--num_nodes_finetune", "2", "--kfp_job", json.dumps(described), "--kfp_run_id", f"test-{kind}"]
    command += ["--kfp_executor_input", json.dumps(task)]
    own_name = {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    said = finish(kubectl, pod(f"finetune-{kind}", image, command, prepared, env=[own_name]))
    assert "[4/4]" in said and "has succeeded" in said
    check = CHECK.replace("KIND", kind)
    assert "the model is there" in finish(kubectl, pod(f"check-{kind}", image, ["python3", "-c", check], prepared))
