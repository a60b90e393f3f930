"""Every example's model and rows are to be had, and what its configuration asks for can be made of them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines
from tuneport.config import from_file
from tuneport.digests import sha256
from tuneport.links import link_or_copy
from tuneport.runner import bind
from tuneport.stage import execute, parameters

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


@pytest.fixture(scope="module")
def import_model() -> Callable[[Any], None]:
    """Run model_import; where several examples begin with one file, it is imported once and its files are linked."""
    done: dict[str, Path] = {}

    def run(stage: Any) -> None:
        source, output = stage.pytorch_model_path, stage.model_selector_output.path
        given = {name: value for name, value in parameters(stage).items() if name != "task_name"}
        key = f"{sha256(source.path)} {given}" if source and source.path.is_file() else str(output)
        if key in done:
            shutil.copytree(done[key], output, copy_function=link_or_copy)
        else:
            execute(stage)
            done[key] = output

    return run


@pytest.mark.parametrize("config", [str(file.relative_to(EXAMPLES)) for file in CONFIGS])
def test_rows_are_made_ready_for_training(
    config: str, fetched: Path, import_model: Callable[[Any], None], tmp_path: Path
) -> None:
    file = fetched / config
    pipeline = pipelines.load(file.parent.name)
    steps = bind.instantiate(pipeline, pipeline.resolve(from_file(pipeline, file)), tmp_path)
    bind.check(steps)
    import_model(steps["model_import"])
    execute(steps["preprocess"])
    assert (tmp_path / "preprocess" / "preprocess_output" / "manifest.json").is_file()
