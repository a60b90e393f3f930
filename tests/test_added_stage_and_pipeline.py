"""A stage and a pipeline in folders of the user's are such as any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGE = '''
"""Stage `count_words`: how often each word stands in a file."""

import json
from collections import Counter

from tuneport.artifacts import File, Report
from tuneport.step import Step, consumes, param, produces


class CountWords(Step):
    """Count the words of a text file."""

    texts: File = consumes("A text file.")
    most: int = param("How many words to list.", default=10, ge=1)
    words: Report = produces("The commonest words, in words.json.")

    def run(self) -> None:
        counted = Counter(self.texts.path.read_text("utf-8").split()).most_common(self.most)
        (self.words.path / "words.json").write_text(json.dumps(dict(counted)), "utf-8")
'''
PIPELINE = '''
"""The words of a file."""

from steps.count_words import CountWords


def words():
    """Count the words of a file."""
    return {"words": CountWords().words}
'''


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    own = {f"TUNEPORT_{kind}": str(folder / kind.lower()) for kind in ("STEPS", "PIPELINES")}
    command = (sys.executable, "-m", *command)
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, name, source in (("steps", "count_words", STAGE), ("pipelines", "words", PIPELINE)):
        # Named as our packages are, and that does no harm: they are no packages.
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(source, "utf-8")
    (tmp_path / "texts.txt").write_text("a b a c a b", "utf-8")
    return tmp_path


def test_one_file_is_a_stage_with_help_defaults_and_bounds(folder: Path) -> None:
    found = run(folder, "pipelines", "stage", "--help")
    assert "count_words" in found.stdout and "Count the words of a text file." in found.stdout, found.stderr
    assert "default: 10" in run(folder, "steps", "count_words", "--help").stdout
    done = run(folder, "pipelines", "stage", "count_words", "--texts", "texts.txt", "--words", "out", "--most", "0")
    assert done.returncode == 2 and "most='0': not valid; expected a whole number >= 1" in done.stderr
    done = run(folder, "pipelines", "stage", "count_words", "--texts", "texts.txt", "--words", "out", "--most", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "out" / "words.json").read_text()) == {"a": 3, "b": 2}
    assert (folder / "out" / "manifest.json").is_file()


def test_one_file_is_a_pipeline_that_runs_is_cached_and_compiles(folder: Path) -> None:
    assert "words" in run(folder, "pipelines", "--help").stdout
    command = ("pipelines", "run", "words", "texts=texts.txt", "most=1", "--output_dir", "done")
    first, second = run(folder, *command), run(folder, *command)
    assert first.returncode == second.returncode == 0, first.stderr
    assert json.loads((folder / "done" / "count_words" / "words" / "words.json").read_text()) == {"a": 3}
    assert "cached" in second.stdout + second.stderr
    images = {"base": "registry/base:1", "trainer": "registry/trainer:1"}
    (folder / "run.yaml").write_text(
        yaml.safe_dump({"platform": {"kfp": {"images": images, "allow_image_tags": True}}})
    )
    command = ("pipelines", "compile", "words", "texts=https://host/t.txt", "--config", "run.yaml")
    done = run(folder, *command, "--target", "kfp", "-o", "p.yaml")
    assert done.returncode == 0, done.stderr
    document = next(yaml.safe_load_all((folder / "p.yaml").read_text()))
    assert document["root"]["inputDefinitions"]["parameters"]["most"]["defaultValue"] == 10


@pytest.mark.parametrize("kind", ["STEPS", "PIPELINES"])
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    environment = {**os.environ, f"TUNEPORT_{kind}": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "pipelines", "--help")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"TUNEPORT_{kind}=" in done.stderr and "Traceback" not in done.stderr
