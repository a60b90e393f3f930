"""The document of every task, compared whole with what stands in tests/targets/golden/kfp and read by kfp's loader.

`python tests/targets/kfp/test_golden.py` writes those files anew: look at what git says has changed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pipelines
from tuneport import tasks
from tuneport.runner.request import Request
from tuneport.targets import load

GOLDEN = Path(__file__).parent.parent / "golden" / "kfp"
DIGEST = "sha256:" + 64 * "0"
PLATFORM = {
    "images": {
        "base": f"registry.example/tuneport/base:1.0@{DIGEST}",
        "trainer": f"registry.example/tuneport/trainer:1.0@{DIGEST}",
    },
    "image_pull_policy": "IfNotPresent",
    "image_pull_secrets": ["registry"],
    "security": {"run_as_user": 1000, "run_as_group": 1000},
    "cpu_request": 2,
    "cpu_limit": 4,
    "memory_request": "8Gi",
    "memory_limit": "16Gi",
    "volumes": [{"claim": "data", "path": "/mnt/data"}, {"claim": "models", "path": "/mnt/models", "sub_path": "hub"}],
    "secrets": [
        {"name": "hub", "environment": {"HF_TOKEN": "token"}},
        {"name": "object-store", "environment": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}},
        {"name": "certificates", "path": "/etc/tuneport/certificates"},
    ],
    "tracking_uri": "http://mlflow.tuneport:5000",
    "labels": {"team": "language"},
    "stages": {
        "finetune": {
            "accelerator_type": "nvidia.com/gpu",
            "memory_limit": "64Gi",
            "node_selector": {"node.kubernetes.io/instance-type": "gpu-large"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "retries": {"count": 1, "backoff": "2m"},
            "timeout": "24h",
            "environment": {"NCCL_DEBUG": "WARN"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "model_evaluation": {"accelerator_type": "nvidia.com/gpu", "shm_size": "2Gi"},
    },
}
MODEL, DATA = {"pytorch_model_path": "s3://models/base"}, {"train_file_path": "s3://data/train.jsonl"}
VALUES: dict[str, dict[str, object]] = {  # so that every kind of source and every optional stage stands in one of them
    "chat_completion": {"huggingface_id": "acme/chat", **DATA, "apply_lora": True},
    "question_answering": {
        **MODEL,
        **DATA,
        "question_key": "question",
        "context_key": "context",
        "answers_key": "answers",
    },
    "summarization": {
        "mlflow_model_path": "gs://models/summaries",
        "train_mltable_path": "minio://data/table",
        "document_key": "document",
        "summary_key": "summary",
    },
    "text_classification": {
        **MODEL,
        **DATA,
        "validation_file_path": "/mnt/data/validation.csv",
        "test_file_path": "https://data.example/test.csv",
        "sentence1_key": "text",
        "label_key": "label",
        "number_of_gpu_to_use_finetuning": 2,
        "shm_size_finetune": "512m",
        "registered_model_name": "questions",
        "num_train_epochs": 3,
    },
    "text_generation": {"pytorch_model_path": "oci://registry.example/models/base:1", **DATA, "text_key": "text"},
    "token_classification": {
        "pytorch_model_path": "/mnt/models/base",
        "train_file_path": "/mnt/data/train",
        "token_key": "tokens",
        "tag_key": "tags",
    },
    "translation": {**MODEL, **DATA, "source_lang": "en", "target_lang": "fr"},
}


SEVERAL = {
    "shared_volume": {"claim": "training", "path": "/mnt/training"},
    "service_account": "pipeline-runner",
    "multi_node": {"queue": "gpus", "pending_timeout": "2h"},
    "image_pull_policy": None,
}
VARIANTS: dict[str, tuple[dict[str, object], dict[str, object]]] = {  # by the ending of the file: settings, values
    "": ({}, {}),
    ".pytorchjob": (SEVERAL, {"num_nodes_finetune": 2}),
    ".trainjob": ({**SEVERAL, "kubeflow_job": "trainjob"}, {"num_nodes_finetune": 3}),
}
FILES = [task + variant for task in VALUES for variant in VARIANTS]


def compiled(file: str) -> str:
    task, _, kind = file.partition(".")
    settings, values = VARIANTS[f".{kind}" if kind else ""]
    pipeline = pipelines.load(task)
    request = Request(
        output_dir=Path("/runs/1"), folder=Path("/home/me"), environment={}, platform={"kfp": {**PLATFORM, **settings}}
    )
    text: str = load("kfp").compile(pipeline, pipeline.resolve({**VALUES[task], **values}), request).text
    return text


def test_every_task_has_its_golden_file() -> None:
    assert set(tasks.names()) == set(VALUES)
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_the_compiled_pipeline_is_the_one_in_the_golden_file(file: str) -> None:
    expected = (GOLDEN / f"{file}.yaml").read_text("utf-8")
    assert compiled(file) == expected, "if the change is meant: python tests/targets/kfp/test_golden.py"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_kfps_loader_takes_every_golden_file(path: Path) -> None:
    from kfp import components

    loaded = components.load_component_from_text(path.read_text("utf-8"))
    spec = yaml.safe_load(path.read_text("utf-8").split("\n---\n")[0])
    assert set(loaded.component_spec.inputs) == set(spec["root"]["inputDefinitions"]["parameters"])
    assert set(loaded.component_spec.outputs) == {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"}
    executors = loaded.platform_spec.platforms["kubernetes"].deployment_spec.executors
    assert set(executors) == {name for name in spec["deploymentSpec"]["executors"] if "importer" not in name}


def test_a_task_in_a_folder_of_the_users_compiles_like_any_other(tmp_path: Path) -> None:
    source = Path(tasks.load("token_classification").__module__.replace(".", "/") + ".py")
    root = Path(__file__).parents[3]
    own = (root / source).read_text("utf-8").replace('name = "token_classification"', 'name = "eighth"')
    (tmp_path / "eighth.py").write_text(own.replace("token_key", "piece_key"), "utf-8")
    config = {**VALUES["token_classification"], "piece_key": "tokens", "platform": {"kfp": PLATFORM}}
    del config["token_key"]
    (tmp_path / "run.yaml").write_text(json.dumps(config), "utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines",
            "compile",
            "eighth",
            "--config",
            "run.yaml",
            "--target",
            "kfp",
            "-o",
            "p.yaml",
        ],
        env={**os.environ, "TUNEPORT_TASKS": str(tmp_path), "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load((tmp_path / "p.yaml").read_text("utf-8").split("\n---\n")[0])
    assert spec["pipelineInfo"]["name"] == "eighth"
    assert spec["root"]["inputDefinitions"]["parameters"]["piece_key"]["defaultValue"] == "tokens"
    assert spec["deploymentSpec"]["executors"]["exec-finetune"]["container"]["args"][:2] == ["--task_name", "eighth"]


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (GOLDEN / f"{name}.yaml").write_text(compiled(name), "utf-8")
