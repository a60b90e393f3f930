"""The YAML of every task, compared whole with what stands in tests/targets/golden/azureml and read by azure-ai-ml.

`python tests/targets/azureml/test_golden.py` writes those files anew: look at what git says has changed.
"""

import dataclasses as dc
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines
from tuneport.runner.request import Request
from tuneport.targets import load
from tuneport.targets.azureml.documents import DOCKERFILES, Document

GOLDEN = Path(__file__).parent.parent / "golden" / "azureml"
TASKS = pipelines.names()
MODEL = "azureml://registries/azureml/models/bert-base-uncased/versions/12"
COLUMNS: dict[str, dict[str, Any]] = {
    "chat_completion": {"messages_key": "turns"},
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
    return load("azureml").compile(pipeline, pipeline.resolve(given), request)


def written(task: str, folder: Path) -> Path:
    """The folder that `tuneport compile` writes, its images' source a stand-in."""
    source = folder / "source"
    for name in (*DOCKERFILES.values(), "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("FROM scratch\n")
    for package in ("tuneport", "steps", "pipelines"):
        (source / package).mkdir()
    document = compiled(task)
    assert (document.source is None) == (task in PLATFORM)
    load("azureml").write(dc.replace(document, source=document.source and source), folder / task)
    return folder / task


def texts(folder: Path) -> dict[str, str]:
    found = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.yaml")}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_compiled_is_what_was_looked_at(task: str, tmp_path: Path) -> None:
    assert texts(written(task, tmp_path)) == texts(GOLDEN / task)


@pytest.fixture(scope="module")
def azure() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai import ml

        yield ml


@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=[] if t == "text_classification" else pytest.mark.slow) for t in TASKS],
)
def test_azure_ai_ml_takes_every_file_and_drops_nothing_of_it(task: str, tmp_path: Path, azure: Any) -> None:
    folder = written(task, tmp_path)
    for path in (*sorted((folder / "components").iterdir()), folder / "pipeline.yaml"):
        component = azure.load_component(path)
        assert component._validate().error_messages == {}
        missing(yaml.safe_load(path.read_text()), component._to_dict(), path.name)
    job = azure.load_job(folder / "job.yaml")
    assert job._validate().error_messages == {}
    request = job._to_rest_object().as_dict()["properties"]
    spec = yaml.safe_load((folder / "job.yaml").read_text())
    assert request["jobType"] == "Pipeline"
    assert set(request["inputs"]) == set(spec["inputs"])
    assert set(request["jobs"][task]["inputs"]) == set(spec["inputs"])
    assert request["experimentName"] == spec["experiment_name"]
    for name, output in spec["outputs"].items():
        assert request["outputs"][name]["jobOutputType"] == output["type"]
        assert request["outputs"][name].get("assetName") == output.get("name")


def missing(ours: Any, theirs: Any, where: str) -> None:
    """Fail for what we wrote and azure-ai-ml did not keep."""
    if isinstance(theirs, dict) and set(theirs) == {"path"} and str(ours).startswith("${{"):
        theirs = theirs["path"]
    if isinstance(ours, dict):
        for key, value in ours.items():
            if key in ("component", "environment", "name", "version", "$schema"):  # read from their files, or resolved
                continue
            assert key in theirs, f"{where}: {key} is not known"
            missing(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert list(map(str, ours)) == list(map(str, theirs)), where
    elif isinstance(ours, (int, float)) and not isinstance(ours, bool):
        assert float(ours) == float(theirs), where
    elif where.endswith(("compute", "type", "job_tier")):
        plain = str(theirs).removeprefix("azureml:").removesuffix("_identity").lower()
        assert str(ours).removesuffix("_identity").lower() == plain, where
    else:
        assert str(ours) == str(theirs), where


def main() -> None:
    import tempfile

    for task in TASKS:
        shutil.rmtree(GOLDEN / task, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts(written(task, Path(folder))).items():
                path = GOLDEN / task / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
        print("wrote", os.path.relpath(GOLDEN / task))


if __name__ == "__main__":
    main()
