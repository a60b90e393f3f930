"""What `helm install` prints next is true: the configuration is valid, the commands and what they name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneport.targets.kfp.settings import MultiNode, Settings

BIN = Path(sys.executable).parent
DIGEST = "@sha256:" + 64 * "0"
CONFIGURATION = {
    "pytorch_model_path": "s3://models/minilm",
    "train_file_path": "s3://data/questions.csv",
    "sentence1_key": "text",
    "label_key": "label",
    "num_nodes_finetune": 2,
}
IMAGES = {"base": f"registry.example/base{DIGEST}", "trainer": f"registry.example/trainer{DIGEST}"}


@pytest.fixture
def notes(helm: Any, chart: Path, values: Path) -> str:
    flags = ("--namespace=team", "--dry-run=client", f"--values={values}")
    done = helm("install", "tuneport", str(chart), *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


@pytest.fixture
def configuration(notes: str, tmp_path: Path) -> Path:
    """A configuration with what the notes say, in the current folder."""
    (printed,) = re.findall(r"^platform:\n(?:  .*\n)+", notes, re.MULTILINE)
    found = yaml.safe_load(printed)
    found["platform"]["kfp"]["images"] = IMAGES
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**CONFIGURATION, **found}))
    return tmp_path / "run.yaml"


def commands(notes: str) -> list[list[str]]:
    return [line.split() for line in re.findall(r"^  ((?:helm|tuneport|kubectl) .+)$", notes, re.MULTILINE)]


@pytest.mark.slow
def test_the_commands_exist_and_name_what_is_made(
    notes: str, helm: Any, objects: list[dict[str, Any]], configuration: Path
) -> None:
    test, submit, forward = commands(notes)
    asked = helm(*test[1:], "--kubeconfig=/dev/null")
    assert "cluster unreachable" in asked.stderr and "unknown" not in asked.stderr
    sent = subprocess.run(
        [BIN / submit[0], *submit[1:], "--dry_run"],
        cwd=configuration.parent,
        env={**os.environ, "KF_PIPELINES_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sent.returncode == 0, sent.stderr
    *_, place, ports = forward
    (service,) = (o for o in objects if o["kind"] == "Service")
    assert forward[:4] == ["kubectl", "port-forward", "--namespace", service["metadata"]["namespace"]]
    assert place == f"service/{service['metadata']['name']}"
    assert ports == f"5000:{service['spec']['ports'][0]['port']}" and "http://localhost:5000" in notes


@pytest.mark.slow
def test_the_configuration_leads_to_pods_that_the_chart_knows(
    configuration: Path, objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    command = [BIN / "tuneport", "compile", "text_classification", "--config", configuration, "--target", "kfp"]
    done = subprocess.run([*command, "-o", tmp_path / "p.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pipeline, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text("utf-8"))
    label = {"tuneport.dev/network": "tuneport"}
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    stages = [name for name, e in pipeline["deploymentSpec"]["executors"].items() if "container" in e]
    assert len(stages) == 5 and all(pods[name]["podMetadata"]["labels"] == label for name in stages)
    selectors = [o["spec"]["podSelector"] for o in objects if o["kind"] == "NetworkPolicy"]
    assert [s["matchLabels"] for s in selectors].count(label) == 2
    text = str(pipeline)
    claim = "tuneport-shared"
    assert claim in text and claim in [o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"]
    assert "http://tuneport-mlflow.team.svc:5000" in text
    bound = [s["name"] for o in objects if o["kind"] == "RoleBinding" for s in o["subjects"]]
    settings = Settings.model_validate(yaml.safe_load(configuration.read_text())["platform"]["kfp"])
    assert settings.service_account in bound
    queues = [o["metadata"]["name"] for o in objects if o["kind"] == "LocalQueue"]
    assert settings.multi_node.queue == next(iter(queues), None)
    assert settings.multi_node.launcher == MultiNode().launcher


def test_the_notes_of_a_chart_without_extras_are_valid_too(helm: Any, chart: Path) -> None:
    off = [f"--set={name}.enabled=false" for name in ("mlflow", "sharedVolume", "networkPolicy")]
    done = helm("install", "tuneport", str(chart), "--namespace=team", "--dry-run=client", *off)
    assert done.returncode == 0, done.stderr
    (printed,) = re.findall(r"^platform:\n(?:  .*\n)+", done.stdout, re.MULTILINE)
    several = {"multi_node": {"artifacts": "store"}}
    assert yaml.safe_load(printed) == {
        "platform": {"kfp": {"namespace": "team", "service_account": "tuneport-launcher", **several}}
    }
