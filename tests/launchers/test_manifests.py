"""The objects that launchers create: compared whole with golden files, and valid by Kubeflow's own schemas.

The schemas are read where TUNEPORT_CRDS points: a folder with pytorchjobs.yaml and trainjobs.yaml, as Kubeflow ships
them. `make golden` writes the golden files again.
"""

import copy
import dataclasses as dc
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.golden import dumped
from tests.targets.kfp import documents
from tuneport import tasks
from tuneport.errors import UserError
from tuneport.launchers import pytorchjob, trainjob
from tuneport.launchers.job import Job, job_name
from tuneport.targets.kfp import executor, multi_node

GOLDEN = Path(__file__).parent / "golden"
OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "text-classification-x7", "uid": "0a-1b"}
PLAIN = Job(
    name="finetune-4f1c",
    run_id="4f1c",
    image="registry.example/trainer@sha256:" + 64 * "0",
    command=("python3", "-P", "-m", "steps", "finetune", "--learning_rate", "2e-05", "--label_key", "a 'b' \\ c"),
    nodes=2,
    processes=2,
)
FULL = dc.replace(
    PLAIN,
    resources={
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"},
    },
    environment={"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
    secrets=[{"name": "hub", "environment": {"HF_TOKEN": "token"}}, {"name": "certificates", "path": "/etc/c"}],
    volumes=[
        {"claim": "training", "path": "/mnt/training"},
        {"claim": "data", "path": "/mnt/data", "sub_path": "questions"},
        {"claim": "data", "path": "/mnt/more", "sub_path": "answers"},
    ],
    shm_size="5Gi",
    node_selector={"node.kubernetes.io/instance-type": "gpu-large"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    security={"runAsUser": 1000, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}},
    service_account="pipeline-runner",
    image_pull_secrets=["registry"],
    labels={"team": "language"},
    annotations={"sidecar.istio.io/inject": "false"},
    queue="gpus",
    deadline_seconds=86400,
)
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "pytorchjob-plain": lambda: pytorchjob.render(PLAIN),
    "pytorchjob-full": lambda: pytorchjob.render(
        dc.replace(FULL, image_pull_policy="Always", priority_class="high", restarts=2), OWNER
    ),
    "pytorchjob-elastic": lambda: pytorchjob.render(dc.replace(FULL, nodes=4, elastic_min_nodes=2), OWNER),
    "trainjob-elastic": lambda: trainjob.render(dc.replace(PLAIN, nodes=4, elastic_min_nodes=2), OWNER),
    "trainjob-plain": lambda: trainjob.render(PLAIN),
    "trainjob-full": lambda: trainjob.render(FULL, OWNER),
}


def golden() -> dict[str, str]:
    """What stands in each golden file, by its name."""
    return {f"{name}.yaml": dumped(case()) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_the_one_in_its_golden_file(name: str) -> None:
    expected = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text("utf-8"))
    assert CASES[name]() == expected, "if the change is meant: make golden"


def test_every_golden_file_has_its_job() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


# -- Kubeflow's schemas ------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """The schema with unknown fields forbidden, which a cluster would drop without a word."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {key: strict(value) for key, value in schema.items()}
    found = {key: strict(value) for key, value in schema.items() if key != "properties"}  # each part once: they nest
    found["properties"] = {name: strict(value) for name, value in properties.items()}
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@cache
def validator(plural: str) -> Any:
    from jsonschema import Draft202012Validator

    folder = os.environ.get("TUNEPORT_CRDS")
    if not folder:
        pytest.skip("TUNEPORT_CRDS names no folder with Kubeflow's schemas")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the files are large
    text = Path(folder, f"{plural}.yaml").read_text("utf-8")
    version = yaml.load(text, Loader=loader)["spec"]["versions"][0]  # noqa: S506
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, not part of these schemas
    return Draft202012Validator(schema)


def errors(manifest: dict[str, Any]) -> list[str]:
    return errors_by(manifest["kind"].lower() + "s", manifest)


def errors_by(definition: str, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with an object by the definition in a file of this name."""
    return [f"{e.json_path}: {e.message}" for e in validator(definition).iter_errors(manifest)]


def module(manifest: dict[str, Any]) -> Any:
    return {"PyTorchJob": pytorchjob, "TrainJob": trainjob}[manifest["kind"]]


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_valid_by_kubeflows_schema_and_webhooks(name: str) -> None:
    manifest = CASES[name]()
    assert errors(manifest) == []
    module(manifest).check(manifest)


COMPILED = [file for file in documents.FILES if file.endswith("job")]


def test_every_task_has_a_pipeline_for_each_kind_of_job() -> None:
    assert len(COMPILED) == 2 * len(tasks.names())


@pytest.mark.parametrize("file", COMPILED)
def test_the_job_of_every_compiled_pipeline_is_valid_and_a_typo_in_it_is_found(file: str) -> None:
    pipeline, _ = documents.parsed(documents.compiled(file))
    arguments = pipeline["deploymentSpec"]["executors"]["exec-finetune"]["container"]["args"]
    known = json.loads(arguments[arguments.index(executor.JOB_FLAG) + 1])
    manifest = multi_node.manifest(known, "4f1c", PLAIN.command)
    assert manifest["kind"].lower() == file.partition(".")[2]
    assert errors(manifest) == []
    module(manifest).check(manifest)
    typo = json.loads(json.dumps(manifest).replace('"imagePullPolicy"', '"imagePolicy"').replace('"image"', '"imgae"'))
    assert typo != manifest and errors(typo) != []


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every field of a manifest's spec that has a name of Kubernetes'."""
    if isinstance(value, dict):
        own = [(*path, key) for key in value]
        return own + [p for key, v in value.items() for p in leaves(v, (*path, key))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in leaves(v, (*path, i))]
    return []


FREE = {"limits", "requests", "nodeSelector", "labels", "annotations", "pytorchReplicaSpecs", "resourcesPerNode"}


@pytest.mark.parametrize("name", CASES)
def test_a_typo_in_any_field_is_found(name: str) -> None:
    manifest = CASES[name]()
    places = [p for p in leaves(manifest["spec"]) if p and not set(p[:-1][-1:]) & FREE]
    assert len(places) > 8
    missed = []
    for place in places:
        wrong = copy.deepcopy(manifest)
        at = wrong["spec"]
        for key in place[:-1]:
            at = at[key]
        at[f"{place[-1]}x"] = at.pop(place[-1])
        if not errors(wrong):
            missed.append(place)
    assert missed == []


def broken(name: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    manifest = copy.deepcopy(CASES[name]())
    change(manifest)
    return manifest


REPLICAS = "pytorchReplicaSpecs"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (broken("pytorchjob-plain", lambda m: m["metadata"].update(name="4you")), "DNS-1035"),
        (broken("pytorchjob-plain", lambda m: m["metadata"].update(name="a" * 64)), "DNS-1035"),
        (broken("trainjob-plain", lambda m: m["metadata"].update(name="a_b")), "DNS-1035"),
        (broken("pytorchjob-plain", lambda m: m["spec"][REPLICAS]["Master"].update(replicas=2)), "expected 1"),
        (broken("pytorchjob-plain", lambda m: m["spec"][REPLICAS].update(Chief={})), "expected Master and Worker"),
        (broken("pytorchjob-plain", lambda m: m["spec"][REPLICAS].clear()), "none"),
        (
            broken(
                "pytorchjob-plain",
                lambda m: m["spec"][REPLICAS]["Worker"]["template"]["spec"]["containers"][0].update(name="main"),
            ),
            "container named pytorch",
        ),
        (broken("pytorchjob-elastic", lambda m: m["spec"].update(nprocPerNode="2")), "one of the two"),
        (
            broken(
                "pytorchjob-elastic",
                lambda m: m["spec"].update({REPLICAS: {"Master": {**m["spec"][REPLICAS]["Worker"], "replicas": 1}}}),
            ),
            "expected Worker replicas",
        ),
        (broken("trainjob-full", lambda m: m["spec"]["runtimePatches"].append(m["spec"]["runtimePatches"][0])), "once"),
        (
            broken("trainjob-full", lambda m: m["spec"]["trainer"]["env"].append({"name": "HF_TOKEN", "value": "x"})),
            "HF_TOKEN: both",
        ),
    ],
)
def test_what_a_webhook_would_refuse_is_found(manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(manifest).check(manifest)


@pytest.mark.parametrize("change", [{"priority_class": "high"}, {"restarts": 3}, {"image_pull_policy": "Always"}])
def test_what_a_trainjob_has_no_field_for_is_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(UserError, match=f"{name}=.*a TrainJob has no field for it"):
        trainjob.render(dc.replace(PLAIN, **change))


def test_a_jobs_name_follows_from_its_run_and_is_a_dns_1035_name() -> None:
    run = "3f9e0c1a-7c9e-4e0c-8b1a-000000000000"
    assert job_name("finetune", run) == f"finetune-{run}" == job_name("finetune", run)
    assert job_name("Fine_Tune", "A/B") == "fine-tune-a-b"
    assert job_name("4x", "1") == "job-4x-1"
    long = {job_name("model_evaluation", f"{run}-{i}") for i in range(50)}
    assert len(long) == 50 and all(len(name) <= 50 for name in long)


def test_a_jobs_state_is_read_from_its_conditions() -> None:
    def pytorch(*types: str, suspend: bool = False) -> str:
        status = {"conditions": [{"type": kind, "status": "True", "message": kind} for kind in types]}
        return pytorchjob.state({"spec": {"runPolicy": {"suspend": suspend}}, "status": status}).phase

    assert pytorch() == "waiting" == pytorch("Created") == pytorch("Created", "Restarting")
    assert pytorch("Created", "Running") == "running"
    assert pytorch("Created", "Succeeded") == "succeeded" and pytorch("Created", "Failed") == "failed"
    assert pytorch("Created", "Suspended") == "suspended" == pytorch(suspend=True)
    assert trainjob.state({"spec": {}}).phase == "waiting"
    assert trainjob.state({"spec": {"suspend": True}}).phase == "suspended"
    pending = {"jobsStatus": [{"name": "node", "active": 2, "ready": 0}]}  # active counts pods that pend
    assert trainjob.state({"spec": {}, "status": pending}).phase == "waiting"
    running = {"jobsStatus": [{"name": "node", "active": 2, "ready": 1}]}
    assert trainjob.state({"spec": {}, "status": running}).phase == "running"
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert trainjob.state({"spec": {}, "status": ended}).phase == "succeeded"


@pytest.mark.parametrize("version", ["v2.0.0", "v2.1.0"])
def test_a_trainjob_is_no_valid_one_of_an_older_trainer_which_is_refused_by_its_version(version: str) -> None:
    manifest = trainjob.render(FULL)
    found = "; ".join(errors_by(f"trainjobs-{version}", manifest))
    assert "runtimePatches" in found and "activeDeadlineSeconds" in found
    said = 'strict decoding error: unknown field "spec.activeDeadlineSeconds", unknown field "spec.runtimePatches"'
    assert "older than 2.2" in str(trainjob.explained(400, said))
    assert trainjob.explained(422, said) is None and pytorchjob.explained(400, said) is None
    assert errors_by("trainjobs-v2.2.0", manifest) == []
