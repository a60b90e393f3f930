"""Every example's model and rows are to be had, and what its configuration asks for can be made of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines
from tuneport.config import from_file
from tuneport.runner import bind
from tuneport.stage import execute

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*/*.yaml"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples in which each has been fetched."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("data", "__pycache__"), dirs_exist_ok=True)
    for script in [*sorted(folder.glob("*/fetch.py")), *folder.glob("*/make_model.py")]:
        subprocess.run([sys.executable, script], check=True)
    return folder


@pytest.mark.parametrize("config", [str(file.relative_to(EXAMPLES)) for file in CONFIGS])
def test_rows_are_made_ready_for_training(config: str, fetched: Path, tmp_path: Path) -> None:
    file = fetched / config
    pipeline = pipelines.load(file.parent.name)
    steps = bind.instantiate(pipeline, pipeline.resolve(from_file(pipeline, file)), tmp_path)
    bind.check(steps)
    for name in ("model_import", "preprocess"):
        execute(steps[name])
    assert (tmp_path / "preprocess" / "preprocess_output" / "manifest.json").is_file()
