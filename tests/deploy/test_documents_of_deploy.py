"""What `tuneport deploy` writes is what KServe, Azure ML, Docker and vLLM take.

KServe's schema is read where TUNEPORT_CRDS points: a folder with inferenceservices.yaml, as KServe ships it.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneport import deploy
from tuneport.deploy.deployment import Served, dns_name, found
from tuneport.errors import UserError

TASKS = ("text_classification", "chat_completion", "translation")


def exported(folder: Path, task: str, *, encoder_decoder: bool = False) -> Path:
    """What an exported model's folder says of itself."""
    (folder / "artifacts" / "model").mkdir(parents=True)
    (folder / "artifacts" / "model" / "config.json").write_text(json.dumps({"is_encoder_decoder": encoder_decoder}))
    (folder / "MLmodel").write_text(yaml.safe_dump({"metadata": {"task": task}}))
    (folder / "requirements.txt").write_text("mlflow==3.17.2\ntorch==2.8.0\n")
    return folder


def run_of(folder: Path, task: str, *, adapter: bool = False, rank: int = 16, **values: Any) -> Path:
    exported(folder / "model_export" / "mlflow_model_folder", task, **values)
    if adapter:
        (folder / "finetune" / "pytorch_model_folder").mkdir(parents=True)
        (folder / "finetune" / "pytorch_model_folder" / "adapter_config.json").write_text(json.dumps({"r": rank}))
        (folder / "model_import" / "model_selector_output").mkdir(parents=True)
    return folder


def rendered(run: Path, place: str, **settings: str) -> Any:
    return deploy.render(place, found(run), settings)


def service(run: Path, **settings: str) -> dict[str, Any]:
    (text,) = rendered(run, "kserve", **{"storage_uri": "s3://models/run", **settings}).files.values()
    return yaml.safe_load(text)


def strict(schema: Any) -> Any:
    """A schema that refuses fields it does not know, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="session")
def errors_of_service() -> Callable[[dict[str, Any]], list[str]]:
    from jsonschema import Draft202012Validator

    folder = os.environ.get("TUNEPORT_CRDS")
    if not folder:
        pytest.skip("TUNEPORT_CRDS names no folder with KServe's schema")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = Path(folder, "inferenceservices.yaml").read_text("utf-8")
    schema = yaml.load(text, Loader=loader)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]  # noqa: S506
    spec = strict(schema)
    spec["properties"]["metadata"] = {"type": "object"}
    checks = Draft202012Validator(spec)
    return lambda manifest: [f"{e.json_path}: {e.message}" for e in checks.iter_errors(manifest)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("gpus", ["0", "2"])
def test_kserve_takes_the_service_by_its_own_schema(
    task: str, gpus: str, errors_of_service: Callable[[dict[str, Any]], list[str]], tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", task, encoder_decoder=task == "translation")
    more = {"image": "registry.example/mlserver:1"} if task == "text_classification" else {}
    manifest = service(run, gpus=gpus, service_account="reader", max_replicas="3", **more)
    assert errors_of_service(manifest) == []
    assert errors_of_service({**manifest, "spec": {"predicter": {}}}), "the schema refuses what it does not know"


def test_an_adapter_that_was_not_merged_is_served_beside_its_base(
    errors_of_service: Callable[[dict[str, Any]], list[str]], tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", "chat_completion", adapter=True)
    manifest = service(run, base_uri="pvc://runs/base", adapter_uri="s3://models/adapter", name="answers")
    assert errors_of_service(manifest) == []
    model = manifest["spec"]["predictor"]["model"]
    assert "--lora-modules=answers=/mnt/models/adapter" in model["args"] and "--max-lora-rank=16" in model["args"]
    (command,) = rendered(run, "vllm", name="answers").commands
    assert command[:3] == ["vllm", "serve", str(run / "model_import" / "model_selector_output")]
    assert f"answers={run / 'finetune' / 'pytorch_model_folder'}" in command
    with pytest.raises(UserError, match="base_uri and adapter_uri: are required"):
        service(run)


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (16, 16), (24, 32), (200, 256), (300, 320), (512, 512)])
def test_vllm_gets_a_greatest_rank_that_it_takes(rank: int, most: int, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "chat_completion", adapter=True, rank=rank)
    (command,) = rendered(run, "vllm").commands
    assert command[command.index("--max-lora-rank") + 1] == str(most)
    manifest = service(run, base_uri="pvc://runs/base", adapter_uri="s3://models/adapter")
    assert f"--max-lora-rank={most}" in manifest["spec"]["predictor"]["model"]["args"]


def test_a_rank_that_vllm_does_not_take_is_refused_and_the_merged_model_is_served(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "chat_completion", adapter=True, rank=513)
    exported = run / "model_export" / "mlflow_model_folder"
    with pytest.raises(
        UserError, match=r"rank 513; vLLM serves ranks <= 512. Merge it \(merge_lora_weights=true\), or"
    ):
        rendered(run, "vllm")
    assert "--max-lora-rank" not in rendered(exported, "vllm").commands[0]


def test_an_exported_model_that_holds_an_adapter_and_its_base_is_enough(
    errors_of_service: Callable[[dict[str, Any]], list[str]], tmp_path: Path
) -> None:
    plain = exported(tmp_path / "mlflow", "chat_completion") / "artifacts" / "model"
    (plain / "adapter_config.json").write_text(json.dumps({"r": 16}))
    (plain / "base_model").mkdir()
    (plain / "base_model" / "config.json").write_text("{}")
    manifest = service(tmp_path / "mlflow", storage_uri="s3://models/run/")
    assert errors_of_service(manifest) == []
    assert manifest["spec"]["predictor"]["storageUris"] == [
        {"uri": "s3://models/run/artifacts/model/base_model", "mountPath": "/mnt/models/base"},
        {"uri": "s3://models/run/artifacts/model", "mountPath": "/mnt/models/adapter"},
    ]
    (command,) = rendered(tmp_path / "mlflow", "vllm", name="answers").commands
    assert command[2] == str(plain / "base_model") and f"answers={plain}" in command


def test_each_kind_of_model_has_its_runtime(tmp_path: Path) -> None:
    kinds = {}
    for task in TASKS:
        run = run_of(tmp_path / task, task, encoder_decoder=task == "translation")
        kinds[task] = service(run)["spec"]["predictor"]["model"]
    assert kinds["text_classification"]["modelFormat"] == {"name": "mlflow"}
    assert kinds["text_classification"]["storageUri"] == "s3://models/run"
    assert kinds["chat_completion"]["modelFormat"] == {"name": "huggingface"}
    assert kinds["chat_completion"]["storageUri"] == "s3://models/run/artifacts/model"
    assert "--task=text2text_generation" in kinds["translation"]["args"]


@pytest.mark.parametrize("model", ["", "azureml:answers:3"])
def test_azure_ml_s_loaders_take_endpoint_and_deployment(model: str, tmp_path: Path) -> None:
    from azure.ai.ml import load_online_deployment, load_online_endpoint

    run = run_of(tmp_path / "my_run", "text_classification")
    for name, text in rendered(run, "azureml", model=model, instance_count="2").files.items():
        (tmp_path / name).write_text(text)
    endpoint = load_online_endpoint(tmp_path / "endpoint.yaml")
    deployment = load_online_deployment(tmp_path / "deployment.yaml")
    assert (endpoint.name, endpoint.auth_mode) == ("my-run", "key")
    assert (deployment.endpoint_name, deployment.name, deployment.instance_count) == ("my-run", "blue", 2)
    if model:
        assert str(deployment.model) in (model, model.removeprefix("azureml:"))
    else:
        assert deployment.model.type == "mlflow_model"
        assert Path(deployment.model.path) == run / "model_export" / "mlflow_model_folder"


def test_docker_s_context_has_all_that_its_file_copies(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "chat_completion")
    found = rendered(run, "docker", tag="answers:1")
    copies = [line.split() for line in found.files["Dockerfile"].splitlines() if line.startswith("COPY")]
    assert {owner for _, owner, *_ in copies} == {"--chown=10001"}, (
        "whom the image runs as may read all, whatever umask"
    )
    copied = [name for _, _, name, _ in copies]
    assert {*copied} == {"requirements.txt", "model", "server.py"} == {*found.files, *found.folders} - {"Dockerfile"}
    assert found.commands == [["docker", "build", "--tag", "answers:1", "."]]
    assert found.files["requirements.txt"].split() == ["mlflow==3.17.2", "torch==2.8.0", "fastapi", "uvicorn"]
    compile(found.files["server.py"], "server.py", "exec")
    assert "tuneport." not in found.files["server.py"].replace("tuneport.deploy", "")


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        ("kserv", {}, "--to kserv: not valid; expected one of azureml, docker, kserve, vllm. Did you mean 'kserve'"),
        ("kserve", {}, "storage_uri=.*Field required; settings of --to kserve are storage_uri"),
        ("kserve", {"storage_uri": "/models"}, "storage_uri='/models': String should match"),
        ("kserve", {"storage_uri": "s3://m", "gpu": "1"}, "gpu='1': Extra inputs are not permitted; settings"),
        ("kserve", {"storage_uri": "s3://m", "runtime": "huggingface"}, "runtime=huggingface: answers in other words"),
        ("kserve", {"storage_uri": "s3://m", "min_replicas": "2"}, "max_replicas=1: expected >= min_replicas=2"),
        ("kserve", {"storage_uri": "s3://m", "name": "My_Name"}, "name='My_Name'"),
        ("vllm", {}, "serves decoders, not a text_classification model"),
        ("azureml", {"name": "a"}, "name='a'"),
    ],
)
def test_what_a_place_does_not_take_is_refused(place: str, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        rendered(run_of(tmp_path / "run", "text_classification"), place, **settings)


def test_a_folder_without_an_exported_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no exported model; expected the folder of a run"):
        found(tmp_path)
    (tmp_path / "MLmodel").write_text("flavors: {}")
    with pytest.raises(UserError, match="is not a model that model_export wrote"):
        found(tmp_path)


@pytest.mark.parametrize("text", ["text_classification", "7 Runs!", "ü", "a" * 80, "x"])
def test_a_run_s_name_becomes_one_that_platforms_take(text: str) -> None:
    import re

    name = dns_name(text)
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", name), name
    assert isinstance(Served(folder=Path("x"), task="t", name=name), Served)


def test_a_model_is_called_as_its_run_is_however_that_is_given(tmp_path: Path) -> None:
    run = run_of(tmp_path / "my_run", "chat_completion")
    (tmp_path / "latest").symlink_to("my_run")
    given = [run, tmp_path / "latest", run / "model_export", run / "model_export" / "mlflow_model_folder"]
    assert {(found(path).name, found(path).run) for path in given} == {("my-run", run)}
    assert {found(path).folder for path in given} == {run / "model_export" / "mlflow_model_folder"}
    alone = exported(tmp_path / "kept" / "answers", "chat_completion")
    assert (found(alone).name, found(alone).run) == ("answers", None)


def test_what_a_setting_is_by_default_or_that_it_is_required_is_said() -> None:
    text = deploy.settings_help("kserve")
    assert "  storage_uri (required): Where" in text and "  cpu='2': CPUs of a pod." in text
    assert "Undefined" not in text


def test_a_dry_run_prints_documents_and_commands_and_writes_nothing(
    tuneport: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "run", "chat_completion")
    before = sorted(tmp_path.rglob("*"))
    assert tuneport("deploy", "run", "--to", "kserve", "--dry_run", "storage_uri=s3://m") == 0
    said = capsys.readouterr().out
    assert "kind: InferenceService" in said and "kubectl apply -f inferenceservice.yaml" in said
    assert sorted(tmp_path.rglob("*")) == before
    assert tuneport("deploy", "run", "--to", "docker", "storage_uri") == 2
    assert "expected NAME=VALUE" in capsys.readouterr().err


def test_documents_are_written_and_handed_over_by_the_platform_s_own_command(
    tuneport: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "run", "chat_completion")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    given = ("deploy", "run", "--to", "docker", "name=answers")
    assert tuneport(*given) == 2
    assert "docker: is not installed here. Install it, or run this in" in capfd.readouterr().err
    (tmp_path / "bin").mkdir()
    told = tmp_path / "told.json"
    code = f"import json, os, sys; json.dump([sys.argv[1:], sorted(os.listdir())], open({str(told)!r}, 'w'))"
    for name, end in (("docker", ""), ("kubectl", "; sys.exit(3)")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code + end)} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    assert tuneport(*given) == 0
    arguments, files = json.loads(told.read_text())
    assert arguments == ["build", "--tag", "answers", "."]
    assert files == [".deployed.json", "Dockerfile", "model", "requirements.txt", "server.py"]
    assert (tmp_path / "run" / "deploy" / "docker" / "model" / "MLmodel").is_file()
    assert tuneport("deploy", "run", "--to", "kserve", "storage_uri=s3://m") == 2
    assert "ended with exit code 3" in capfd.readouterr().err
