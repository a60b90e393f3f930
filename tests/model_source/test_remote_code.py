"""What comes with a model beside its weights: licences are carried on, code is not."""

import json
import shutil
from pathlib import Path

import pytest

import steps
from steps.model_import import ModelImport
from tuneport.artifacts import CustomModel, Model
from tuneport.licences import carry_notices, notices
from tuneport.stage import execute


@pytest.fixture
def licensed(tiny_model: Path, tmp_path: Path) -> Path:
    """A model with licences, and with code of its own that transformers needs not."""
    folder = tmp_path / "licensed"
    shutil.copytree(tiny_model, folder)
    (folder / "LICENSE").write_text("Be kind.")
    (folder / "NOTICE.txt").write_text("Ours.")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        known = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        known |= {"auto_map": {"AutoModel": "code.Model"}, "nested": {"auto_map": 1, "kept": [{"auto_map": 2, "x": 1}]}}
        (folder / name).write_text(json.dumps(known))
    return folder


def test_auto_map_is_taken_out_of_every_config_and_said(
    licensed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    execute(ModelImport(pytorch_model_path=CustomModel(licensed), model_selector_output=Model(output)))
    assert not [path for path in output.glob("*.json") if "auto_map" in path.read_text("utf-8")]
    assert json.loads((output / "config.json").read_text())["nested"] == {"kept": [{"x": 1}]}
    said = [r.getMessage() for r in caplog.records if "is taken out" in r.getMessage()]
    assert len(said) == 1
    assert "config.json, generation_config.json, tokenizer_config.json: auto_map" in said[0]


def test_licences_and_notices_are_told_by_name_and_carried(licensed: Path, tmp_path: Path) -> None:
    assert notices(["README.md", "NOTICE", "LICENSE.md", "sub/LICENSE", "model.safetensors"]) == [
        "LICENSE.md",
        "NOTICE",
    ]
    assert carry_notices(licensed, tmp_path) == ["LICENSE", "NOTICE.txt"]
    assert (tmp_path / "LICENSE").read_text() == "Be kind."


def test_the_best_model_and_the_exported_one_carry_the_base_models_licence(
    licensed: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    from tuneport.artifacts import Dataset, digest, read_manifest, write_manifest

    imported, prepared = tmp_path / "imported", tmp_path / "prepared"
    execute(ModelImport(pytorch_model_path=CustomModel(licensed), model_selector_output=Model(imported)))
    shutil.copytree(prepared_questions, prepared)
    write_manifest(Dataset(prepared), "preprocess", "0", {}, {"model_selector_output": digest(Model(imported))})
    given = {"preprocess_output": prepared, "pytorch_model_folder": tmp_path / "model"}
    task = "text_classification"
    execute(steps.load("finetune", task)(**given, model_selector_output=imported, max_steps=2))
    execute(steps.load("model_export", task)(**given, mlflow_model_folder=tmp_path / "exported"))
    for folder in (tmp_path / "model", tmp_path / "exported"):
        assert (folder / "LICENSE").read_text() == "Be kind."
        assert {"LICENSE", "NOTICE.txt"} <= json.loads((folder / "manifest.json").read_text())["files"].keys()
    assert notices(read_manifest(Model(tmp_path / "model"))["files"]) == ["LICENSE", "NOTICE.txt"]
