"""Values: each file that comes with the chart is clean; a mistake is refused by name before anything is made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tuneport


def test_the_linter_finds_nothing(helm: Any, chart: Path, values: Path) -> None:
    done = helm("lint", "--strict", str(chart), f"--values={values}")
    assert done.returncode == 0 and "1 chart(s) linted, 0 chart(s) failed" in done.stdout, done.stdout
    assert "[WARNING]" not in done.stdout


def test_the_chart_is_of_the_version_of_the_product(chart: Path) -> None:
    described = yaml.safe_load((chart / "Chart.yaml").read_text("utf-8"))
    assert described["version"] == described["appVersion"] == tuneport.__version__
    values = yaml.safe_load((chart / "values.yaml").read_text("utf-8"))
    assert values["image"] == f"tuneport-trainer:{tuneport.__version__}"  # what `make images` builds


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}".lstrip("."))
    if isinstance(schema.get("items"), dict):
        yield from nodes(schema["items"], f"{path}[]")


def test_every_value_is_described_and_no_other_is_taken(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text("utf-8"))
    defined = [(f"definitions.{name}", child) for name, child in schema["definitions"].items()]
    for path, node in [*nodes(schema), *(found for name, child in defined for found in nodes(child, name))]:
        if path and not path.endswith("[]") and path not in dict(defined):
            assert node.get("description"), f"{path}: not described"
        if "properties" in node:
            assert node.get("additionalProperties") is False, f"{path}: takes anything"


def leaves(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict) and values:
        for name, child in values.items():
            yield from leaves(child, f"{path}.{name}".lstrip("."))
    else:
        yield path


def test_every_value_has_a_default_that_the_schema_knows(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text("utf-8"))
    defaults = yaml.safe_load((chart / "values.yaml").read_text("utf-8"))
    for path, node in nodes(schema):
        if node.get("additionalProperties") is False and "properties" in node and "[]" not in path:
            place = defaults
            for name in path.split(".") if path else []:
                place = place[name]
            missing = set(node["properties"]) - set(place) - {"global"}
            assert not missing, f"{path}: no default for {missing}"


# A value, and what the refusal says of it.
MISTAKES = [
    ("imagee=x", "additional properties 'imagee' not allowed"),
    ("image=has a space", "at '/image'"),
    ("image=trainer@sha256:abc", "at '/image'"),
    ("imagePullSecrets=one", "at '/imagePullSecrets'"),
    ("launcher.serviceAcount.create=false", "additional properties 'serviceAcount'"),
    ("launcher.serviceAccount.create=no", "at '/launcher/serviceAccount/create'"),
    ("launcher.serviceAccount.name=Default_Editor", "at '/launcher/serviceAccount/name'"),
    ("launcher.kubeflowRole.kind=role", "at '/launcher/kubeflowRole/kind'"),
    ("sharedVolume.size=100GB", "at '/sharedVolume/size'"),
    ("sharedVolume.accessMode=RWX", "at '/sharedVolume/accessMode'"),
    ("sharedVolume.storageclass=nfs", "additional properties 'storageclass'"),
    ("trainingRuntime.restarts=-1", "at '/trainingRuntime/restarts'"),
    ("trainingRuntime.priorityClass=High", "at '/trainingRuntime/priorityClass'"),
    ("localQueue.queue=gpus", "additional properties 'queue'"),
    ("localQueue.clusterQueue=GPUs", "at '/localQueue/clusterQueue'"),
    ("mlflow.workers=0", "at '/mlflow/workers'"),
    ("mlflow.workers=two", "at '/mlflow/workers'"),
    ("mlflow.replicas=2", "additional properties 'replicas'"),
    ("mlflow.database.uri=postgresql://u:p@h/d", "additional properties 'uri'"),
    ("mlflow.database.key=", "at '/mlflow/database/key'"),
    ("mlflow.artifacts.destination=bucket", "at '/mlflow/artifacts/destination'"),
    ("mlflow.artifacts.secretKey=geheim", "additional properties 'secretKey'"),
    ("mlflow.artifacts.endpoint=s3.example", "at '/mlflow/artifacts/endpoint'"),
    ("mlflow.artifacts.existingSecret=s3", "at '/mlflow/artifacts/existingSecret'"),  # and artifacts on the volume
    ("mlflow.hosts={https://mlflow.example}", "at '/mlflow/hosts/0'"),
    ("mlflow.hosts={*}", "at '/mlflow/hosts/0'"),
    ("mlflow.volume.size=-1Gi", "at '/mlflow/volume/size'"),
    ("mlflow.resources.limit.memory=1Gi", "additional properties 'limit'"),
    ("mlflow.resources.limits.memory=1GB", "at '/mlflow/resources/limits/memory'"),
    ("networkPolicy.enable=false", "additional properties 'enable'"),
    ("networkPolicy.mlflowClients[0].namespace=x", "at '/networkPolicy/mlflowClients/0'"),
    ("networkPolicy.mlflowEgress[0].port=5432", "at '/networkPolicy/mlflowEgress/0'"),
    ("networkPolicy.stageEgress[0].ports[0].protocol=HTTPS", "at '/networkPolicy/stageEgress/0/ports/0/protocol'"),
    ("mlflow=null", "at '': missing property 'mlflow'"),
    # What belongs together.
    ("launcher.serviceAccount.create=false", "launcher.serviceAccount.name: expected the name of the account"),
    ("mlflow.database.existingSecret=db", "networkPolicy.mlflowEgress: expected rules by which MLflow reaches"),
    ("mlflow.artifacts.destination=s3://bucket", "networkPolicy.mlflowEgress: expected rules by which MLflow reaches"),
]


@pytest.mark.parametrize(("setting", "said"), MISTAKES, ids=[setting for setting, _ in MISTAKES])
def test_a_mistake_is_refused_by_its_name(helm: Any, chart: Path, setting: str, said: str) -> None:
    done = helm("template", "tuneport", str(chart), "--namespace=team", "--set", setting)
    assert done.returncode != 0 and said in done.stderr, done.stderr
    assert not done.stdout


def test_the_chart_may_be_part_of_another(helm: Any, chart: Path, tmp_path: Path) -> None:
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: platform, version: 0.1.0}")
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "tuneport").symlink_to(chart)
    done = helm("template", "platform", str(tmp_path), "--namespace=team")
    assert done.returncode == 0 and "name: platform-tuneport-mlflow" in done.stdout, done.stderr
