"""`tuneport verify`: artifacts, checkpoints and whole runs, each byte of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import command as tuneport_command
from tuneport.artifacts import MANIFEST, Model, write_manifest

ARTIFACTS = {
    "finetune/pytorch_model_folder": "Model of finetune",
    "finetune/tuned_model": "Model of finetune",
    "model_evaluation/evaluation_result": "Report of model_evaluation",
    "model_export/logged_model_folder": "LoggedModel of model_export",
    "model_export/mlflow_model_folder": "MLflowModel of model_export",
    "model_import/model_selector_output": "Model of model_import",
    "model_import/tokenizer_folder": "Tokenizer of model_import",
    "model_registration/registration_details_folder": "Registration of model_registration",
    "preprocess/preprocess_output": "Dataset of preprocess",
}
Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Verify:
    """Exit code, and what was said."""

    def command(*arguments: Any) -> tuple[int, str]:
        capfd.readouterr()
        argv = ["verify", *map(str, arguments)]
        code = tuneport_command(argv)
        return code, "".join(capfd.readouterr())

    return command


def test_a_whole_run_is_one_line_an_artifact(whole_run: Path, verify: Verify) -> None:
    code, said = verify(whole_run)
    assert code == 0
    lines = said.splitlines()
    assert len(lines) == len(ARTIFACTS)
    for line, (path, what) in zip(lines, ARTIFACTS.items(), strict=True):
        assert line.startswith(f"whole    {whole_run / path}: {what}, ") and line.endswith(" bytes")


@pytest.mark.parametrize("path", [*ARTIFACTS, "preprocess", "finetune/pytorch_model_folder/checkpoints/checkpoint-4"])
def test_an_artifact_a_stage_and_a_checkpoint_alone_are_checked(path: str, whole_run: Path, verify: Verify) -> None:
    code, said = verify(whole_run / path)
    assert code == 0 and said.count("whole ") == 1


def test_a_checkpoint_is_read_in_full_though_no_later_stage_reads_it(run: Path, verify: Verify) -> None:
    part = run / "finetune" / "pytorch_model_folder" / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    for path in (run, run / "finetune" / "pytorch_model_folder", part.parent):
        code, said = verify(path)
        assert code == 2 and f"{part}: was altered after it was written" in said and said.count("damaged") == 1


def test_checkpoints_of_a_training_under_way_are_checked(run: Path, verify: Verify) -> None:
    stage = run / "finetune"
    (stage / "pytorch_model_folder").rename(stage / ".pytorch_model_folder.partial")
    (stage / ".pytorch_model_folder.partial" / MANIFEST).unlink()
    (stage / "stage.json").unlink()
    code, said = verify(stage)
    assert code == 0 and said.count("Checkpoint of finetune") == 2


def test_every_fault_of_an_artifact_is_named(run: Path, verify: Verify) -> None:
    folder = run / "preprocess" / "preprocess_output"
    (folder / "dataset.json").unlink()
    (folder / "data_report.json").write_text("{")
    (folder / "encoded" / "train-00001.arrow").touch()
    code, said = verify(run)
    assert code == 2 and said.count("damaged") == 1 and said.count("whole ") == len(ARTIFACTS) - 1
    for fault in ("dataset.json: is missing", "data_report.json: has 1 bytes", "train-00001.arrow: was added"):
        assert fault in said
    code, said = verify(run, "--json")
    found = {Path(entry["path"]).name: entry for entry in json.loads(said)}
    assert code == 2 and len(found["preprocess_output"]["faults"]) == 3
    assert found["evaluation_result"]["faults"] == [] and found["evaluation_result"]["files"] > 2


def test_an_artifact_made_from_another_one_than_stands_beside_it_is_told(run: Path, verify: Verify) -> None:
    write_manifest(Model(run / "model_import" / "model_selector_output"), "model_import", "0", {}, {})
    code, said = verify(run)
    assert code == 2
    assert f"{run / 'finetune' / 'tuned_model'}: was made from another model_selector_output than" in said
    assert "model_selector_output/manifest.json: is not the one that model_import wrote last" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": 1}', "\xff"])
def test_a_damaged_manifest_is_a_damaged_artifact(text: str, run: Path, verify: Verify) -> None:
    manifest = run / "finetune" / "pytorch_model_folder" / MANIFEST
    manifest.write_text(text, "latin-1")
    code, said = verify(run)
    assert code == 2 and f"{manifest}: is damaged" in said and "Traceback" not in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outputs": 3}', "\xff"])
def test_a_damaged_record_of_a_stage_is_told(text: str, run: Path, verify: Verify) -> None:
    (run / "finetune" / "stage.json").write_text(text, "latin-1")
    code, said = verify(run)
    assert code == 2 and "stage.json: is damaged" in said and "The stage will run again" in said


def test_an_artifact_that_is_gone_is_told_by_the_record_of_its_stage(run: Path, verify: Verify) -> None:
    (run / "finetune" / "pytorch_model_folder" / MANIFEST).unlink()
    shutil.rmtree(run / "preprocess" / "preprocess_output")
    code, said = verify(run)
    assert code == 2
    for port in ("finetune/pytorch_model_folder", "preprocess/preprocess_output"):
        assert f"{run / port}: has no manifest.json, but stage.json says that it was written" in said


def test_a_folder_without_a_manifest_is_no_artifact(run: Path, tmp_path: Path, verify: Verify) -> None:
    code, said = verify(tmp_path / "nothing")
    assert code == 2 and "no such folder; expected a run's folder, an artifact or a checkpoint" in said
    code, said = verify(run / "logs")
    assert code == 2 and "holds no manifest.json, which every finished artifact has: it is something else" in said
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".incomplete").touch()
    code, said = verify(tmp_path / "new")
    assert code == 2 and "the step that writes it has not finished" in said
    assert verify()[0] == 2


def test_it_imports_no_torch(whole_run: Path) -> None:
    code = (
        "import sys; from tuneport.runner.verification import check; "
        f"print(len(list(check(__import__('pathlib').Path({str(whole_run)!r}))))); "
        "print([m for m in ('torch', 'transformers', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(len(ARTIFACTS)), "[]"]
