"""A compiled folder is written whole or not at all, and holds what its images are built of."""

import dataclasses as dc
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines
import tuneport
from tuneport.errors import UserError
from tuneport.runner.request import Request
from tuneport.targets import load
from tuneport.targets.azureml import SOURCES, write
from tuneport.targets.azureml.documents import DOCKERFILES, Document

ROOT = Path(tuneport.__file__).parent.parent


def compiled(folder: Path, source: Path | None = None, **settings: Any) -> Document:
    pipeline = pipelines.load("text_classification")
    values = {"huggingface_id": "a/b", "train_file_path": "azureml:rows:1", "sentence1_key": "x", "label_key": "y"}
    request = Request(output_dir=folder, folder=folder, environment={}, platform={"azureml": settings})
    document = load("azureml").compile(pipeline, pipeline.resolve(values), request)
    assert isinstance(document, Document)
    return dc.replace(document, source=source) if source else document


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in SOURCES:
        path = folder / name
        path.mkdir(parents=True) if (ROOT / name).is_dir() or name == "images" else path.write_text(f"# {name}\n")
    for name in DOCKERFILES.values():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("FROM scratch\nUSER 1000\n")
    (folder / "tuneport" / "__pycache__").mkdir()
    (folder / "tuneport" / "module.py").write_text("1\n")
    return folder


def test_the_build_context_holds_the_source_and_its_images_end_as_root(tmp_path: Path, source: Path) -> None:
    write(compiled(tmp_path, source), tmp_path / "job")
    context = tmp_path / "job" / "context"
    assert (context / "tuneport" / "module.py").is_file()
    assert not (context / "tuneport" / "__pycache__").exists()
    for stage in (tmp_path / "job" / "components").iterdir():
        build = yaml.safe_load(stage.read_text())["environment"]["build"]
        dockerfile = stage.parent / build["path"] / build["dockerfile_path"]
        assert dockerfile.read_text().splitlines()[-1] == "USER root"


@pytest.mark.skipif(not (ROOT / DOCKERFILES["base"]).is_file(), reason="no Dockerfiles in this tree")
def test_what_the_dockerfiles_copy_is_in_the_context(tmp_path: Path) -> None:
    write(compiled(tmp_path), tmp_path / "job")
    for name in DOCKERFILES.values():
        text = (tmp_path / "job" / "context" / name).read_text("utf-8")
        for line in re.findall(r"^(?:COPY|ADD) (?!--from)(.+)$", text, re.MULTILINE):
            for copied in line.split()[:-1]:
                assert (tmp_path / "job" / "context" / copied).exists(), line


def test_a_folder_of_ours_is_replaced_and_another_is_refused(tmp_path: Path) -> None:
    images = {"image_base": "a:1", "image_trainer": "b:1"}
    write(compiled(tmp_path, **images), tmp_path / "job")
    (tmp_path / "job" / "stale.yaml").touch()
    write(compiled(tmp_path, **images), tmp_path / "job")
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["components", "job.yaml", "pipeline.yaml"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="exists and was not written by tuneport compile"):
        write(compiled(tmp_path, **images), tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job", "mine"]


def test_without_dockerfiles_built_images_must_be_named(tmp_path: Path, source: Path) -> None:
    (source / DOCKERFILES["trainer"]).unlink()
    with pytest.raises(UserError, match=r"no Dockerfiles to build the images from .*image_base and image_trainer"):
        write(compiled(tmp_path, source), tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, source: Path) -> None:
    (source / "LICENSE").unlink()
    with pytest.raises(UserError, match="cannot be written"):
        write(compiled(tmp_path, source), tmp_path / "job")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
