"""`tuneport validate` finds every one of these mistakes, each alone in a configuration that is fine without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import command

DIGEST = "@sha256:" + "0" * 64
AZUREML = {"huggingface_id": "organisation/model", "train_file_path": "azureml:rows:3"}
KFP = {"huggingface_id": "organisation/model", "train_file_path": "s3://bucket/rows.jsonl"}
MODEL = "azureml://registries/r/models/m/versions/1"
DATA = "azureml://registries/r/data/d/versions/1"
COLUMNS = {"sentence1_key": "text", "label_key": "label"}
PLATFORM: dict[str, dict[str, Any]] = {
    "azureml": {"image_base": "registry/base:1", "image_trainer": "azureml:trainer:2"},
    "kfp": {"images": {"base": f"registry/base{DIGEST}", "trainer": f"registry/trainer{DIGEST}"}},
}

# target, what is planted (None: left out), what of the message tells it
MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    # types, bounds, choices
    ("local", {"num_train_epochs": "three"}, "num_train_epochs='three': not valid; expected a whole number >= 1"),
    ("local", {"num_train_epochs": 1.5}, "num_train_epochs='1.5': not valid"),
    ("local", {"learning_rate": "2e-"}, "learning_rate='2e-': not valid; expected a number"),
    ("local", {"learning_rate": 0}, "learning_rate='0': not valid; expected a number > 0"),
    ("local", {"learning_rate": "nan"}, "learning_rate='nan': not valid"),
    ("local", {"lora_dropout": 1}, "lora_dropout='1': not valid; expected a number >= 0 and < 1"),
    ("local", {"seed": -1}, "seed='-1': not valid"),
    ("local", {"seed": 2**32}, "seed='4294967296': not valid"),
    ("local", {"per_device_train_batch_size": 0}, "per_device_train_batch_size='0': not valid"),
    ("local", {"apply_lora": "maybe"}, "apply_lora='maybe': not valid; expected true or false"),
    ("local", {"precision": "8"}, "precision='8': not valid; expected one of 32, 16"),
    ("local", {"optim": "adamw_torhc"}, "Did you mean 'adamw_torch'?"),
    ("local", {"lr_scheduler_type": "linaer"}, "Did you mean 'linear'?"),
    ("local", {"evaluation_strategy": "never"}, "evaluation_strategy='never': not valid"),
    ("local", {"metric_for_best_model": "bleu"}, "metric_for_best_model='bleu': not valid"),
    ("local", {"max_steps": 0}, "max_steps=0: trains nothing"),
    ("local", {"save_total_limit": 0}, "save_total_limit=0: keeps no checkpoint"),
    # names
    ("local", {"learning_rat": 1e-4}, "Did you mean 'learning_rate'?"),
    ("local", {"platfrom": "x"}, "unknown parameter 'platfrom'"),
    ("local", {"label_key": None}, "label_key: is required by text_classification"),
    # files and columns
    ("local", {"train_file_path": None}, "no training data: expected train_file_path or train_mltable_path"),
    ("local", {"train_file_path": "trian.jsonl"}, "trian.jsonl"),
    ("local", {"train_file_path": "empty.jsonl"}, "is empty; expected at least one row"),
    ("local", {"train_file_path": "broken.jsonl"}, "broken.jsonl"),
    ("local", {"train_file_path": "rows.docx"}, "rows.docx"),
    ("local", {"validation_file_path": "absent.csv"}, "absent.csv"),
    ("local", {"train_mltable_path": "no_table"}, "no_table"),
    ("local", {"sentence1_key": "txt"}, "Did you mean 'text'?"),
    ("local", {"sentence2_key": "other"}, "sentence2_key=other"),
    ("local", {"group_key": "author"}, "group_key=author"),
    ("local", {"pytorch_model_path": "no_model"}, "no_model"),
    ("local", {"pytorch_model_path": "hollow"}, "hollow"),
    ("local", {"mlflow_model_path": "hollow", "pytorch_model_path": None}, "hollow"),
    # options that do not go together
    ("local", {"pytorch_model_path": None}, "got none of them; expected exactly one of pytorch_model_path"),
    ("local", {"huggingface_id": "a/b"}, "got both pytorch_model_path and huggingface_id"),
    ("local", {"huggingface_revision": "main"}, "has no effect without huggingface_id"),
    ("local", {"base_model_path": "model"}, "has an effect only where pytorch_model_path holds a LoRA adapter"),
    ("local", {"lora_r": 4}, "lora_r=4: no effect without apply_lora=true"),
    ("local", {"validation_split_ratio": 0.5, "test_split_ratio": 0.5}, "together leave no training rows"),
    ("local", {"resume_from_checkpoint": "no_run"}, "no_run"),
    ("local", {"evaluation_config": "https://a/b.json"}, "https://a/b.json: is an address, and no file"),
    ("local", {"evaluation_config": "https://a/b.json"}, "Addresses are read by train_file_path"),
    ("local", {"register_if": "accuracy > 0.5"}, "register_if='accuracy > 0.5': has no effect without registered"),
    ("local", {"move_champion": True}, "move_champion=True: has no effect without registered_model_name. Set that, or"),
    ("local", {"registered_model_name": "a/b"}, "registered_model_name='a/b': not valid"),
    ("local", {"apply_deepspeed": True, "deepspeed": "absent.json"}, "absent.json"),
    # machines
    ("local", {"compute_finetune": "gpu"}, "--target local has no way to honour it"),
    ("local", {"shm_size_finetune": "6g"}, "shm_size_finetune='6g': --target local has no way to honour it"),
    # platforms
    ("local", {"platform": {"azurml": {}}}, "platform.azurml: unknown target"),
    ("local", {"platform": ["azureml"]}, "holds a sequence; expected one"),
    # Azure ML
    ("azureml", {"compute_finetune": "gpu_cluster"}, "compute_finetune='gpu_cluster': not valid on Azure ML"),
    ("azureml", {"compute_finetune": "local"}, "compute_finetune='local': not valid on Azure ML"),
    ("azureml", {"compute_preprocess": "azureml:cpu"}, "compute_preprocess='azureml:cpu': not valid on Azure ML"),
    ("azureml", {"instance_type_finetune": "Standard NC6"}, "instance_type_finetune='Standard NC6': not valid"),
    ("azureml", {"shm_size_finetune": "5gb"}, "shm_size_finetune='5gb': not valid on Azure ML; expected a whole"),
    ("azureml", {"shm_size_finetune": "0g"}, "shm_size_finetune='0g': not valid on Azure ML"),
    ("azureml", {"num_nodes_finetune": 0}, "num_nodes_finetune='0': not valid"),
    ("azureml", {"train_file_path": "ftp://bucket/rows.csv"}, "is no address that Azure ML knows"),
    ("azureml", {"train_file_path": "azureml:rows"}, "train_file_path='azureml:rows': is no address"),
    ("azureml", {"train_file_path": "absent.jsonl"}, "absent.jsonl: there is no such file or folder"),
    ("azureml", {"train_file_path": "hollow"}, "hollow: is a folder; Azure ML takes one file here"),
    ("azureml", {"train_file_path": None, "train_mltable_path": "rows.jsonl"}, "rows.jsonl: is a file; Azure ML takes"),
    ("azureml", {"train_file_path": MODEL}, "names a model; expected a data asset"),
    ("azureml", {"huggingface_id": None, "mlflow_model_path": DATA}, "names a data asset; expected a model"),
    ("azureml", {"train_file_path": "rows.jsonl", "label_key": "lable"}, "Did you mean 'label'?"),
    ("azureml", {"train_file_path": None}, "no training data"),
    ("azureml", {"lr_scheduler_type": ""}, "lr_scheduler_type='': Azure ML has no empty values"),
    ("azureml", {"resume_from_checkpoint": "runs/1"}, "no stage on Azure ML can read a path of this machine"),
    ("azureml", {"sentence1_key": "${{parent.inputs.x}}"}, "which Azure ML takes for an expression of its own"),
    ("azureml", {"registered_model_name": "my model"}, "registered_model_name='my model': is not a name for a model"),
    ("azureml", {"compute_model_registration": "cpu"}, "this stage has no machine on Azure ML"),
    (
        "azureml",
        {"registered_model_name": "questions", "register_if": "accuracy > 0.5"},
        "register_if='accuracy > 0.5': not taken on Azure ML",
    ),
    ("local", {"registered_model_name": "questions", "register_if": "accuracy >"}, "expected scores, numbers, and"),
    ("azureml", {"platform.image_base": "Registry/Base:1"}, "platform.azureml.image_base='Registry/Base:1'"),
    ("azureml", {"platform.image_trainer": "azureml:trainer"}, "platform.azureml.image_trainer='azureml:trainer'"),
    ("azureml", {"platform.subscription": "mine"}, "platform.azureml.subscription='mine'"),
    ("azureml", {"platform.workspace": "w"}, "platform.azureml.workspace='w'"),
    ("azureml", {"platform.experiment_name": "my experiment"}, "platform.azureml.experiment_name='my experiment'"),
    ("azureml", {"platform.identity": "me"}, "platform.azureml.identity='me'"),
    ("azureml", {"platform.environment_variables": {"A-B": "1"}}, "platform.azureml.environment_variables.A-B"),
    ("azureml", {"platform.wrokspace": "w"}, "platform.azureml.wrokspace"),
    ("azureml", {"platform.stages": {"fintune": {}}}, "platform.azureml.stages.fintune: no such stage"),
    ("azureml", {"platform.stages": {"finetune": {"timeout": 0}}}, "platform.azureml.stages.finetune.timeout=0"),
    # Kubeflow
    ("kfp", {"compute_finetune": "gpu"}, "--target kfp has no way to honour it"),
    ("kfp", {"train_file_path": "rows.jsonl"}, "is a path that no stage on the cluster sees"),
    ("kfp", {"train_file_path": "wasbs://c@a/rows.jsonl"}, "expected a URI with s3, gs, minio, oci, "),
    ("kfp", {"platform.images": {"base": "base:1", "trainer": "trainer:1"}}, "expected images by digest"),
    ("kfp", {"platform.images": None}, "platform.kfp.images"),
    ("kfp", {"platform.memory_limit": "16GB"}, "platform.kfp.memory_limit='16GB'"),
    ("kfp", {"platform.namespace": "Team_A"}, "platform.kfp.namespace='Team_A'"),
]  # fmt: skip

Validate = Callable[[str, dict[str, Any]], int]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, questions: list[dict[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "rows.docx").write_text("text")
    (folder / "empty.jsonl").touch()
    (folder / "broken.jsonl").write_text('{"text": "a", "label"\n')
    (folder / "hollow").mkdir()
    (folder / "model").symlink_to(tiny_model)
    return folder


@pytest.fixture
def validate(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Validate:
    """Validate a configuration for a target, with some of it changed."""
    monkeypatch.chdir(files)

    def run(target: str, changes: dict[str, Any]) -> int:
        here = {"pytorch_model_path": "model", "train_file_path": "rows.jsonl"}
        values: dict[str, Any] = {"local": here, "azureml": AZUREML, "kfp": KFP}[target] | COLUMNS
        settings = dict(PLATFORM.get(target, {}))
        for name, value in changes.items():
            place, key = (settings, name.removeprefix("platform.")) if name.startswith("platform.") else (values, name)
            if value is None:
                place.pop(key)
            else:
                place[key] = value
        overrides = [f"{k}={v}" for k, v in values.items() if k != "platform"]
        section = values.get("platform", {target: settings} if settings else None)
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump({"platform": section} if section else {}))
        argv = ["validate", "text_classification", "--config", str(config), "--target", target, *overrides]
        return command(argv)

    return run


@pytest.mark.parametrize("target", ["local", "azureml", "kfp"])
def test_without_a_mistake_the_configuration_is_valid(
    target: str, validate: Validate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(target, {}) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("valid: text_classification (model_import → preprocess → finetune → ")


@pytest.mark.parametrize(
    ("target", "changes", "message"), MISTAKES, ids=[f"{m[0]}-{next(iter(m[1]))}" for m in MISTAKES]
)
def test_a_mistake_is_found(
    target: str, changes: dict[str, Any], message: str, validate: Validate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate(target, changes) == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n       ", "\n")
    assert error.startswith("error: ")


def test_the_tokenizers_batch_size_is_not_taken_for_that_of_training(
    tuneport: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl(tmp_path / "many.jsonl", [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)])
    given = ["train_file_path=many.jsonl", "huggingface_id=a/b", "sentence1_key=text", "label_key=label"]
    assert tuneport("validate", "text_classification", *given, "batch_size=32") == 0
    assert "note: batch_size=32: is how many rows the tokenizer takes" in capsys.readouterr().out
