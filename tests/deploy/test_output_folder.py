"""A deployment is written over an earlier one, beside its model, and over nothing of the user's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_documents_of_deploy import exported, run_of

Command = Callable[..., int]


def contents(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in sorted(folder.rglob("*"))}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, on a machine whose docker builds."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return run_of(tmp_path / "run", "chat_completion")


@pytest.mark.parametrize("given", ["run", "run/model_export", "run/model_export/mlflow_model_folder", "latest"])
def test_the_documents_lie_beside_the_model_that_a_run_exported(
    given: str, tuneport: Command, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "latest").symlink_to("run")
    before = contents(run / "model_export")
    assert tuneport("deploy", given, "--to", "docker") == 0
    assert contents(run / "deploy" / "docker" / "model") == contents(run / "model_export" / "mlflow_model_folder")
    assert contents(run / "model_export") == before


def test_those_of_a_model_outside_of_a_run_lie_in_the_current_folder(
    tuneport: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "kept" / "answers", "chat_completion")
    before = contents(tmp_path / "kept")
    assert tuneport("deploy", "kept/answers", "--to", "docker") == 0
    assert (tmp_path / "deploy" / "docker" / "model" / "MLmodel").is_file()
    monkeypatch.chdir(folder)
    assert tuneport("deploy", ".", "--to", "docker") == 2
    assert "lies in the exported model" in capsys.readouterr().err
    assert contents(tmp_path / "kept") == before


@pytest.mark.parametrize("output", ["kept/model", "kept/model/artifacts/x", "link/x"])
def test_an_output_in_the_model_is_refused(
    output: str, tuneport: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "kept" / "model", "chat_completion")
    (tmp_path / "link").symlink_to("kept/model")
    before = contents(tmp_path)
    assert tuneport("deploy", "kept/model", "--to", "docker", "--output_dir", output) == 2
    assert f"--output_dir {tmp_path / output}: lies in the exported model" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_an_output_that_is_no_folder_is_refused(
    tuneport: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert tuneport("deploy", "run", "--to", "docker", "--output_dir", "out") == 2
    assert f"--output_dir {tmp_path / 'out'}: is no folder" in capsys.readouterr().err


def test_a_model_is_not_replaced_by_its_own_copy(
    tuneport: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuneport("deploy", "run", "--to", "docker", "--output_dir", "out") == 0
    before = contents(tmp_path)
    assert tuneport("deploy", "out/model", "--to", "docker", "--output_dir", "out") == 2
    assert "its folder model holds the exported model itself" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["model/weights.bin", "Dockerfile", "Dockerfile/x", "model"])
def test_what_no_deployment_wrote_is_left_as_it_is(
    name: str, tuneport: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    assert tuneport("deploy", "run", "--to", "docker", "--output_dir", "out") == 2
    assert f"{Path(name).parts[0]}: is in the way, and is not of an earlier deployment" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1


def test_an_earlier_deployment_is_replaced_but_not_what_was_changed_in_it(
    tuneport: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = tmp_path / "out", ("deploy", "run", "--to", "docker", "--output_dir", "out")
    assert tuneport(*given) == 0
    (run / "model_export" / "mlflow_model_folder" / "more").write_text("new")
    (out / "model" / "old").write_text("old")
    (out / "notes.txt").write_text("mine")
    assert tuneport(*given, "name=answers") == 0
    assert (out / "model" / "more").is_file() and not (out / "model" / "old").exists()
    assert '"answers"' in (out / "Dockerfile").read_text() and (out / "notes.txt").read_text() == "mine"
    (out / "Dockerfile").write_text("FROM mine\n")
    assert tuneport(*given, "name=others") == 2
    assert "Dockerfile: is in the way, and was changed since" in capsys.readouterr().err
    assert (out / "Dockerfile").read_text() == "FROM mine\n"
