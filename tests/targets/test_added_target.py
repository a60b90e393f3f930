"""A target in a folder of the user's is a target like any other: here one that writes a Makefile."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = '''
"""make runs the stages."""

import shlex

from pydantic import BaseModel

from tuneport.targets import Target
from tuneport.runner.run import compile_plan


class Settings(BaseModel):
    before: str = ""


class Makefile(Target):
    def settings(self):
        return Settings

    def compile(self, pipeline, values, request):
        before = Settings(**request.platform.get("makefile", {})).before
        goals = []
        for stage in compile_plan(pipeline, values, request).stages:
            sources = [str(artifact.path) for artifact in stage.inputs.values()]
            places = [str(artifact.path) for artifact in stage.outputs.values()]
            recipe = f"{before} {shlex.join(stage.argv)}".strip().replace("$", "$$")
            goals.append((places[0], f"{places[0]}: {' '.join(sources)}\\n\\t{recipe}\\n"))
        return f"all: {' '.join(place for place, _ in goals)}\\n" + "".join(rule for _, rule in goals)

    def write(self, document, output):
        output.write_text(document)

    def submit(self, document):
        raise NotImplementedError
'''


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUNEPORT_TARGETS": str(folder / "targets"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "makefile.py").write_text(MAKEFILE, "utf-8")
    return tmp_path


def test_one_file_in_a_folder_is_a_target_in_help_schema_and_validation(folder: Path) -> None:
    tuneport = (sys.executable, "-m", "pipelines")
    assert "makefile" in run(folder, *tuneport, "compile", "--help").stdout
    schema = run(folder, *tuneport, "schema", "text_classification")
    assert "makefile" in json.loads(schema.stdout)["properties"]["platform"]["properties"], schema.stderr
    values = ("sentence1_key=text", "label_key=label", "train_file_path=rows.jsonl", "pytorch_model_path=model")
    wrong = run(
        folder, *tuneport, "validate", "text_classification", "--target", "makefile", *values, "num_nodes_finetune=2"
    )
    assert wrong.returncode == 2 and "num_nodes_finetune=2: --target makefile has no way to honour it" in wrong.stderr


@pytest.mark.slow
def test_what_it_compiles_runs_to_the_pipelines_end(
    folder: Path, tiny_model: Path, questions: Any, write_jsonl: Callable[[Path, Iterable[Any]], Path]
) -> None:
    config = {
        "pytorch_model_path": str(tiny_model),
        "train_file_path": str(write_jsonl(folder / "rows.jsonl", questions)),
        "sentence1_key": "text",
        "label_key": "label",
        "max_steps": 4,
        "platform": {"makefile": {"before": "env STAGE=1"}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config), "utf-8")
    compile_ = (sys.executable, "-m", "pipelines", "compile", "text_classification", "--target", "makefile")
    done = run(folder, *compile_, "--config", "run.yaml", "-o", "Makefile")
    assert done.returncode == 0, done.stderr
    assert (folder / "Makefile").read_text("utf-8").count("\tenv STAGE=1 ") == 5
    made = run(folder, "make")
    assert made.returncode == 0, made.stderr
    assert list(folder.rglob("report.html")) and list(folder.rglob("MLmodel"))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, "-m", "pipelines", "--help")
    assert done.returncode == 2 and "TUNEPORT_TARGETS=" in done.stderr and "Traceback" not in done.stderr
