"""What a stage's result depends on, and what it does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tuneport
from tuneport.artifacts import CustomMLflowModel, CustomModel, Dataset, File, write_manifest
from tuneport.runner.cache import Digests, Record, record, remember, stale


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    dataset = Dataset(tmp_path / "stage" / "data")
    dataset.path.mkdir(parents=True)
    (dataset.path / "rows").write_text("x")
    write_manifest(dataset, "stage", "1", {}, {})
    return dataset


def made(rate: float = 0.1, commit: str | None = None, **inputs: Dataset) -> Record:
    origins = {"huggingface_id": commit} if commit else {}
    return record("stage", {"rate": rate}, inputs, ["tuneport"], Digests(), origins=origins)


def test_a_remembered_result_stands_until_something_it_depends_on_differs(dataset: Dataset) -> None:
    folder, outputs = dataset.path.parent, {"data": dataset}
    assert stale(folder, made(), outputs) == "no finished result"
    remember(folder, made(), outputs, 1.0)
    assert stale(folder, made(), outputs) == ""
    assert stale(folder, made(rate=0.2), outputs) == "changed: parameter rate"
    assert stale(folder, made(rate=0.2, more=dataset), outputs) == "changed: parameter rate, input more"
    newer = {**made(), "libraries": {"torch": "99"}, "key": "other"}
    assert "changed: library" in stale(folder, newer, outputs)
    assert "library torch" in stale(folder, newer, outputs)


def test_a_moved_hub_model_is_imported_anew_and_one_that_nobody_can_ask_for_stands(dataset: Dataset) -> None:
    folder, outputs = dataset.path.parent, {"data": dataset}
    remember(folder, made(commit="1" * 40), outputs, 1.0)
    assert stale(folder, made(commit="1" * 40), outputs) == ""
    assert stale(folder, made(commit="2" * 40), outputs) == "changed: version of huggingface_id"
    assert stale(folder, made(), outputs) == ""


def test_another_manifest_than_the_stage_wrote_is_not_its_result(dataset: Dataset) -> None:
    folder, outputs = dataset.path.parent, {"data": dataset}
    remember(folder, made(), outputs, 1.0)
    write_manifest(dataset, "other", "1", {}, {})
    assert stale(folder, made(), outputs) == "its data is not the one it wrote"


def test_a_users_file_counts_by_its_bytes_and_a_uri_by_its_text(tmp_path: Path) -> None:
    def digest(path: Path | str) -> str:
        return Digests().of(File(Path(path)))

    first, second = tmp_path / "a" / "rows.csv", tmp_path / "b" / "rows.csv"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text("x")
    assert digest(first) == digest(second)
    second.write_text("y")
    assert digest(first) != digest(second)
    assert Digests().of(CustomMLflowModel(Path("models:/a/3"))) != Digests().of(CustomMLflowModel(Path("models:/b/3")))


def test_a_users_folder_counts_by_its_bytes_even_if_it_holds_a_manifest(tmp_path: Path) -> None:
    model = CustomModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    write_manifest(model, "finetune", "1", {}, {})
    before = Digests().of(model)
    (tmp_path / "config.json").write_text("[]")
    assert Digests().of(model) != before


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("step.py", True),
        ("data/readers.py", True),
        ("cli/main.py", False),
        ("runner/run.py", False),
        ("config.py", False),
        ("targets/__init__.py", False),
    ],
)
def test_the_code_that_counts_is_the_code_that_a_stage_runs(tmp_path: Path, file: str, counts: bool) -> None:
    copy = tmp_path / "tuneport"
    shutil.copytree(Path(tuneport.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = "from tuneport.runner.cache import code_digest; print(code_digest('tuneport'))"

    def digest() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True)

    before = digest()
    assert digest() == before
    with (copy / file).open("a") as f:
        f.write("# changed\n")
    assert (digest() != before) is counts
