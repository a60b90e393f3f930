"""A pipeline of every task as Azure ML's YAML: hub models and Azure ML's own, images built there and named ones."""

import dataclasses as dc
import re
from pathlib import Path
from typing import Any

import yaml

import pipelines
from tests.golden import FIRST, difference, dumped, plain, without
from tuneport import tasks
from tuneport.runner.request import Request
from tuneport.targets import load
from tuneport.targets.azureml.documents import DOCKERFILES, Document, Folded, Spec

GOLDEN = Path(__file__).parents[1] / "golden" / "azureml"
TASKS = tasks.names()
MODEL = "azureml://registries/azureml/models/bert-base-uncased/versions/12"
COLUMNS: dict[str, dict[str, Any]] = {
    "chat_completion": {
        "messages_key": "turns",
        "benchmark_tasks": "arc_easy",
        "benchmark_folder": "azureml:benchmarks:1",
    },
    "question_answering": {"question_key": "question", "context_key": "context", "answers_key": "answers"},
    "summarization": {"document_key": "article", "summary_key": "highlights", "summarization_lang": "en"},
    "text_classification": {"sentence1_key": "question", "label_key": 'it\'s \\ a "label"'},
    "text_generation": {"text_key": "prompt", "ground_truth_key": "answer"},
    "token_classification": {"token_key": "tokens", "tag_key": "ner_tags"},
    "translation": {"source_lang": "en", "target_lang": "de", "train_mltable_path": "azureml:pairs@latest"},
}
# Each in its own way: a hub model or one of Azure ML, images built there or named, one machine or several.
GIVEN: dict[str, dict[str, Any]] = {
    task: {"huggingface_id": "organisation/model", "train_file_path": "azureml:rows:3", **columns}
    for task, columns in COLUMNS.items()
}
GIVEN["text_classification"] |= {
    "huggingface_id": None,
    "pytorch_model_path": MODEL,
    "test_file_path": "https://account.blob.core.windows.net/data/test.jsonl",
    "learning_rate": 3e-5,
    "apply_lora": True,
    "compute_finetune": "gpu-cluster",
    "number_of_gpu_to_use_finetuning": 4,
    "num_nodes_finetune": 2,
    "shm_size_finetune": "16g",
    "registered_model_name": "sms-spam",
}
PLATFORM: dict[str, dict[str, Any]] = {
    "summarization": {
        "subscription": "00000000-0000-0000-0000-000000000000",
        "resource_group": "nlp",
        "workspace": "nlp-workspace",
        "experiment_name": "short-texts",
        "image_base": "registry.example.com:5000/tuneport/base@sha256:" + "0" * 64,
        "image_trainer": "azureml:tuneport-trainer:7",
        "identity": "managed",
        "output_mode": "upload",
        "environment_variables": {"HF_TOKEN": "set-me"},
        "tags": {"team": "nlp"},
        "force_rerun": True,
        "stages": {"finetune": {"timeout": 86400, "job_tier": "spot", "environment_variables": {"NCCL_DEBUG": "INFO"}}},
    }
}


def compiled(task: str) -> Document:
    pipeline = pipelines.load(task)
    given = {name: value for name, value in GIVEN[task].items() if name in pipeline.params}
    if task == "translation":
        del given["train_file_path"]
    request = Request(
        output_dir=Path("/nowhere"), folder=Path("/"), environment={}, platform={"azureml": PLATFORM.get(task, {})}
    )
    document: Document = load("azureml").compile(pipeline, pipeline.resolve(given), request)
    return document


def kept(document: Document) -> Document:
    """A document without most plain parameters."""
    return dc.replace(document, files={name: _kept(spec) for name, spec in document.files.items()})


def _kept(spec: Spec) -> Spec:
    found = {**spec, "inputs": without(plain(), spec["inputs"])}
    if "command" in spec:
        flags = "|".join(sorted(plain()))
        found["command"] = Folded(re.sub(rf" \$\[\[--({flags}) '\$\{{\{{inputs\.\1\}}\}}'\]\]", "", spec["command"]))
    if "jobs" in spec:
        jobs = spec["jobs"].items()
        found["jobs"] = {name: {**job, "inputs": without(plain(), job["inputs"])} for name, job in jobs}
    return found


def written(document: Document, folder: Path) -> Path:
    """The folder that `tuneport compile` writes, its images' source a stand-in."""
    source = folder / "source"
    for name in (*DOCKERFILES.values(), "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("FROM scratch\n")
    for package in ("tuneport", "steps", "pipelines"):
        (source / package).mkdir()
    assert (document.source is None) == (document.pipeline in PLATFORM)
    written = dc.replace(document, source=document.source and source)
    load("azureml").write(written, folder / document.pipeline)
    return folder / document.pipeline


def texts(folder: Path) -> dict[str, str]:
    """By name, the YAML files below a folder."""
    found = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.yaml")}
    return dict(sorted(found.items()))


def parsed(folder: Path) -> dict[str, Any]:
    """What the YAML files below a folder say."""
    return {name: yaml.load(text, Loader=yaml.CSafeLoader) for name, text in texts(folder).items()}


def golden(task: str, folder: Path) -> dict[str, str]:
    """What stands in a task's golden files, by their names; they are written below a folder first."""
    found = written(kept(compiled(task)), folder)
    if task == FIRST:
        return {f"{task}/{name}": text for name, text in texts(found).items()}
    first = written(kept(compiled(FIRST)), folder / "first")
    return {f"{task}.yaml": dumped(difference(parsed(first), parsed(found)))}
