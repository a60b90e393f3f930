"""Any output of ours, and MLflow's own layout, is a base model to go on from."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import steps
from steps.model_import import ModelImport
from tuneport.artifacts import read_manifest
from tuneport.errors import UserError
from tuneport.stage import execute

TASK = "text_classification"


@pytest.fixture(scope="module")
def earlier(
    imported_model: Path, prepared_questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """An earlier run that has learnt: its `model` and the MLflow model `exported` from it."""
    folder = tmp_path_factory.mktemp("earlier")
    run = SimpleNamespace(model=folder / "model", exported=folder / "exported")
    inputs = {"model_selector_output": imported_model, "preprocess_output": prepared_questions}
    values = {"learning_rate": 3e-3, "num_train_epochs": 8, "per_device_train_batch_size": 8, "save_total_limit": 1}
    execute(steps.load("finetune", TASK)(**inputs, **values, pytorch_model_folder=run.model))
    export = steps.load("model_export", TASK)
    execute(
        export(pytorch_model_folder=run.model, preprocess_output=prepared_questions, mlflow_model_folder=run.exported)
    )
    return run


def first_loss(base: Path, questions: Path, folder: Path) -> float:
    """Prepare the questions for a base model and train one step; the loss of that step."""
    prepared, out = folder / "prepared", folder / "tuned"
    columns = {"sentence1_key": "text", "label_key": "label"}
    preprocess = steps.load("preprocess", TASK)
    execute(preprocess(model_selector_output=base, train_file_path=questions, preprocess_output=prepared, **columns))
    values = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 32}
    finetune = steps.load("finetune", TASK)
    execute(finetune(model_selector_output=base, preprocess_output=prepared, pytorch_model_folder=out, **values))
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    loss: float = next(entry["loss"] for entry in log if "loss" in entry)
    return loss


@pytest.mark.parametrize("route", ["pytorch_model_folder", "a checkpoint in it", "mlflow_model_folder"])
def test_training_goes_on_from_an_output_of_ours(
    route: str,
    earlier: SimpleNamespace,
    imported_model: Path,
    questions: list[dict[str, str]],
    tmp_path: Path,
) -> None:
    tuned: Path = earlier.model
    source = {
        "pytorch_model_folder": {"pytorch_model_path": tuned},
        "a checkpoint in it": {
            "pytorch_model_path": tuned / json.loads((tuned / "training.json").read_text())["best_checkpoint"]
        },
        "mlflow_model_folder": {"mlflow_model_path": earlier.exported},
    }[route]
    base = tmp_path / "base"
    execute(ModelImport(**source, model_selector_output=base))
    assert not (base / "checkpoints").exists() and not (base / "trainer_state.json").exists()
    trained, taken = load_file(tuned / "model.safetensors"), load_file(base / "model.safetensors")
    assert all(torch.equal(trained[name], taken[name]) for name in trained), "head and all"
    labels = [json.loads((folder / "config.json").read_text())["id2label"] for folder in (tuned, base)]
    assert labels[0] == labels[1]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in questions))
    assert first_loss(base, data, tmp_path / "on") < 0.8 * first_loss(imported_model, data, tmp_path / "again")


def test_checkpoints_that_were_deleted_are_not_missed(earlier: SimpleNamespace, tmp_path: Path) -> None:
    source = Path(shutil.copytree(earlier.model, tmp_path / "source"))
    shutil.rmtree(source / "checkpoints")
    execute(ModelImport(pytorch_model_path=source, model_selector_output=tmp_path / "out"))
    (source / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"model\.safetensors: has 7 bytes"):
        execute(ModelImport(pytorch_model_path=source, model_selector_output=tmp_path / "out"))


def test_a_model_that_mlflow_transformers_saved_is_read(earlier: SimpleNamespace, tmp_path: Path) -> None:
    import mlflow.transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tuneport.artifacts import Model

    parts = {
        "model": AutoModelForSequenceClassification.from_pretrained(earlier.model),
        "tokenizer": AutoTokenizer.from_pretrained(earlier.model),
    }
    saved = tmp_path / "saved"
    mlflow.transformers.save_model(parts, saved, task="text-classification", pip_requirements=["transformers"])
    out = tmp_path / "out"
    execute(ModelImport(mlflow_model_path=saved, model_selector_output=out))
    before, after = (load_file(folder / "model.safetensors") for folder in (earlier.model, out))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert "tokenizer.json" in read_manifest(Model(out))["files"]


def test_an_mlflow_model_without_weights_names_the_hub_model_it_refers_to(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors:\n  transformers:\n    source_model_name: acme/tiny-bert\n")
    with pytest.raises(UserError, match="Set huggingface_id=acme/tiny-bert"):
        ModelImport(mlflow_model_path=tmp_path).check_files()
