"""A task in a folder of the user's is a task like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tuneport.tasks import token_classification


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUNEPORT_TASKS": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )


def test_one_file_in_a_folder_is_a_task_in_help_schema_and_stages(tmp_path: Path) -> None:
    source = Path(token_classification.__file__).read_text("utf-8")
    own = source.replace('name = "token_classification"', 'name = "eighth"').replace("token_key", "piece_key")
    (tmp_path / "eighth.py").write_text(own, "utf-8")
    assert "eighth" in run(tmp_path, "pipelines", "--help").stdout
    schema = run(tmp_path, "pipelines", "schema", "eighth")
    assert "piece_key" in json.loads(schema.stdout)["properties"], schema.stderr
    assert "--piece_key" in run(tmp_path, "steps", "preprocess", "--task_name", "eighth", "--help").stdout


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path / "none", "pipelines", "--help")
    assert done.returncode == 2 and "TUNEPORT_TASKS=" in done.stderr and "Traceback" not in done.stderr
