"""What Azure ML's YAML says of a pipeline: the reference component's inputs, limits, machines, wiring."""

from pathlib import Path
from typing import Any

import pytest

import pipelines
from tuneport import tasks
from tuneport.runner.request import Request
from tuneport.targets import load
from tuneport.targets.azureml.documents import Document

SETTINGS = {"image_base": "registry/base:1", "image_trainer": "azureml:trainer:1"}
# The finetune pipeline component of Azure's model catalogue, by its own description: type and default of each input.
# A switch that it takes as the text "true" or "false" is a boolean here, which takes both.
REFERENCE: dict[str, tuple[str, Any]] = {
    "pytorch_model_path": ("custom_model", None),
    "mlflow_model_path": ("mlflow_model", None),
    **{f"{split}_file_path": ("uri_file", None) for split in ("train", "validation", "test")},
    **{f"{split}_mltable_path": ("mltable", None) for split in ("train", "validation", "test")},
    **{
        f"compute_{s}": ("string", "serverless") for s in ("model_import", "preprocess", "finetune", "model_evaluation")
    },
    "instance_type_model_import": ("string", "Standard_d12_v2"),
    "instance_type_preprocess": ("string", "Standard_d12_v2"),
    "instance_type_finetune": ("string", "Standard_nc24rs_v3"),
    "instance_type_model_evaluation": ("string", "Standard_nc24rs_v3"),
    "number_of_gpu_to_use_finetuning": ("integer", 1),
    "num_nodes_finetune": ("integer", 1),
    "batch_size": ("integer", 1000),
    "max_seq_length": ("integer", -1),
    "pad_to_max_length": ("boolean", False),
    "apply_lora": ("boolean", False),
    "lora_alpha": ("integer", 128),
    "lora_r": ("integer", 8),
    "lora_dropout": ("number", 0.0),
    "apply_deepspeed": ("boolean", False),
    "deepspeed": ("uri_file", None),
    "deepspeed_stage": ("string", "2"),
    "num_train_epochs": ("integer", 1),
    "max_steps": ("integer", -1),
    "per_device_train_batch_size": ("integer", 1),
    "per_device_eval_batch_size": ("integer", 1),
    "auto_find_batch_size": ("boolean", False),
    "learning_rate": ("number", 2e-5),
    "lr_scheduler_type": ("string", "linear"),
    "warmup_steps": ("integer", 0),
    "optim": ("string", "adamw_hf"),
    "weight_decay": ("number", 0.0),
    "gradient_accumulation_steps": ("integer", 1),
    "precision": ("string", "32"),
    "seed": ("integer", 42),
    "evaluation_strategy": ("string", "epoch"),
    "eval_steps": ("integer", 500),
    "logging_strategy": ("string", "steps"),
    "logging_steps": ("integer", 10),
    "save_total_limit": ("integer", -1),
    "apply_early_stopping": ("boolean", False),
    "early_stopping_patience": ("integer", 1),
    "max_grad_norm": ("number", 1.0),
    "resume_from_checkpoint": ("string", "false"),
}
OUTPUTS = {
    "pytorch_model_folder": "uri_folder",
    "mlflow_model_folder": "mlflow_model",
    "evaluation_result": "uri_folder",
}


def compiled(task: str = "text_classification", settings: dict[str, Any] | None = None, **given: Any) -> Document:
    pipeline = pipelines.load(task)
    columns = {p.name: p.name for p in pipeline.params.values() if p.required}
    base = {"huggingface_id": "organisation/model", "train_file_path": "azureml:rows:1", **columns}
    platform = {"azureml": {**SETTINGS, **(settings or {})}}
    request = Request(output_dir=Path("/o"), folder=Path("/"), environment={}, platform=platform)
    document = load("azureml").compile(pipeline, pipeline.resolve({**base, **given}), request)
    assert isinstance(document, Document)
    return document


@pytest.mark.parametrize("task", tasks.names())
def test_every_input_and_output_of_the_reference_component_is_there(task: str) -> None:
    pipeline = compiled(task).files["pipeline.yaml"]
    for name, (type_, default) in REFERENCE.items():
        found = pipeline["inputs"][name]
        assert (found["type"], found.get("default")) == (type_, default), name
        assert found["optional"] and found["description"], name
    assert {name: output["type"] for name, output in pipeline["outputs"].items()} == OUTPUTS


def test_bounds_are_inclusive_and_choices_are_listed() -> None:
    inputs = compiled().files["components/finetune.yaml"]["inputs"]
    assert (inputs["num_train_epochs"]["min"], inputs["seed"]["min"], inputs["seed"]["max"]) == (1, 0, 2**32 - 1)
    assert (inputs["learning_rate"]["min"], inputs["learning_rate"]["max"]) == (0, 1)
    assert inputs["learning_rate"]["description"].endswith("Expected: a number > 0 and <= 1.")
    assert inputs["evaluation_strategy"]["enum"] == ["epoch", "steps"]
    assert "" not in inputs["optim"]["enum"]
    assert "task_name" not in inputs


def test_machines_are_what_the_pipelines_inputs_say() -> None:
    jobs = compiled().files["pipeline.yaml"]["jobs"]
    finetune = jobs["finetune"]
    assert finetune["compute"] == "${{parent.inputs.compute_finetune}}"
    assert finetune["resources"] == {
        "instance_type": "${{parent.inputs.instance_type_finetune}}",
        "instance_count": "${{parent.inputs.num_nodes_finetune}}",
        "shm_size": "${{parent.inputs.shm_size_finetune}}",
    }
    assert finetune["distribution"] == {
        "type": "pytorch",
        "process_count_per_instance": "${{parent.inputs.number_of_gpu_to_use_finetuning}}",
    }
    assert "distribution" not in jobs["preprocess"]
    assert jobs["preprocess"]["environment_variables"]["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in jobs["model_import"]["environment_variables"]


def test_only_what_gives_the_same_result_again_is_taken_from_an_earlier_job() -> None:
    def deterministic(**given: Any) -> dict[str, bool]:
        files = compiled(**given).files
        return {p[11:-5]: spec["is_deterministic"] for p, spec in files.items() if p.startswith("components/")}

    assert deterministic(huggingface_revision="0" * 40) == {
        "model_import": True,
        "preprocess": True,
        "finetune": False,
        "model_export": True,
        "model_evaluation": True,
    }
    assert not deterministic()["model_import"]  # a hub model's newest version


def test_a_registered_name_names_the_output_and_is_no_stage() -> None:
    files = compiled(registered_model_name="kinds-of.questions_2").files
    assert files["job.yaml"]["outputs"]["mlflow_model_folder"]["name"] == "kinds-of.questions_2"
    assert "components/model_registration.yaml" not in files
    assert "registered_model_name" not in files["pipeline.yaml"]["inputs"]
    assert "name" not in compiled().files["job.yaml"]["outputs"]["mlflow_model_folder"]


def test_a_stages_own_settings_go_before_those_of_all() -> None:
    settings = {
        "environment_variables": {"A": "1", "B": "1"},
        "identity": "user_identity",
        "stages": {"finetune": {"environment_variables": {"B": "2"}, "timeout": 60, "job_tier": "spot"}},
    }
    jobs = compiled(settings=settings).files["pipeline.yaml"]["jobs"]
    assert {k: v for k, v in jobs["finetune"]["environment_variables"].items() if k in "AB"} == {"A": "1", "B": "2"}
    assert {k: v for k, v in jobs["preprocess"]["environment_variables"].items() if k in "AB"} == {"A": "1", "B": "1"}
    assert jobs["finetune"]["limits"] == {"timeout": 60}
    assert jobs["finetune"]["queue_settings"] == {"job_tier": "spot"}
    assert all(job["identity"] == {"type": "user_identity"} for job in jobs.values())
    assert "limits" not in jobs["preprocess"]


def test_compiling_twice_gives_the_same() -> None:
    assert compiled() == compiled()
    assert compiled(seed=1) != compiled(seed=2)
