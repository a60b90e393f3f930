"""A pipeline of every task as KFP's document, with everything that a platform section can say."""

from functools import cache
from pathlib import Path
from typing import Any

import kfp
import yaml

import pipelines
from tests.golden import FIRST, difference, dumped, plain, without
from tuneport.runner.request import Request
from tuneport.targets import load

GOLDEN = Path(__file__).parents[1] / "golden" / "kfp"
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


def compiled(file: str, **values: object) -> str:
    """The document of a task and variant, as in ``translation.trainjob``, with values of its own."""
    return _compiled(file, tuple(values.items()))


@cache
def _compiled(file: str, own: tuple[tuple[str, object], ...]) -> str:
    task, _, kind = file.partition(".")
    settings, values = VARIANTS[f".{kind}" if kind else ""]
    pipeline = pipelines.load(task)
    request = Request(
        output_dir=Path("/runs/1"), folder=Path("/home/me"), environment={}, platform={"kfp": {**PLATFORM, **settings}}
    )
    given = pipeline.resolve({**VALUES[task], **values, **dict(own)})
    text: str = load("kfp").compile(pipeline, given, request).text
    return text


def parsed(text: str) -> list[dict[str, Any]]:
    """The pipeline's half of a document and the cluster's."""
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def kept(file: str, **values: object) -> dict[str, Any]:
    """Both halves of a document without most plain parameters."""
    spec, cluster = parsed(compiled(file, **values))
    assert spec.pop("sdkVersion") == f"kfp-{kfp.__version__}"
    sections = [spec["root"]["inputDefinitions"]]
    sections += [component["inputDefinitions"] for component in spec["components"].values()]
    sections += [task["inputs"] for task in spec["root"]["dag"]["tasks"].values()]
    for section in sections:
        if "parameters" in section:
            section["parameters"] = without(plain(), section["parameters"])
    return {"pipeline": spec, "cluster": cluster}


WHOLE = [FIRST + variant for variant in VARIANTS]
GOLDEN_FILES = [*WHOLE, *(task for task in VALUES if task != FIRST)]


def golden(name: str) -> str:
    """What stands in a golden file."""
    return dumped(kept(name) if name in WHOLE else difference(kept(FIRST), kept(name)))
