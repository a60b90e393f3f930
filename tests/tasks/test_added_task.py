"""A task in a folder of the user's is a task like any other."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tuneport.tasks import token_classification


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TUNEPORT_TASKS": str(folder), "PYTHONPATH": str(root)}
    command = (sys.executable, "-m", *command)
    where = folder if folder.is_dir() else root
    return subprocess.run(command, env=environment, cwd=where, capture_output=True, text=True, check=False)


def add_task(folder: Path) -> None:
    source = Path(token_classification.__file__).read_text("utf-8")
    own = source.replace('name = "token_classification"', 'name = "eighth"').replace("token_key", "piece_key")
    (folder / "eighth.py").write_text(own, "utf-8")


def test_one_file_in_a_folder_is_a_task_in_help_schema_and_stages(tmp_path: Path) -> None:
    add_task(tmp_path)
    assert "eighth" in run(tmp_path, "pipelines", "--help").stdout
    schema = run(tmp_path, "pipelines", "schema", "eighth")
    assert "piece_key" in json.loads(schema.stdout)["properties"], schema.stderr
    assert "--piece_key" in run(tmp_path, "steps", "preprocess", "--task_name", "eighth", "--help").stdout


@pytest.mark.slow
def test_a_task_in_a_folder_runs_to_its_report_and_its_served_model(
    tmp_path: Path, tiny_model: Path, write_jsonl: Callable[[Path, Iterable[Any]], Path]
) -> None:
    add_task(tmp_path)
    rows = [{"w": [f"{w}", f"{n}", "cat"], "t": ["W", "N", "C"]} for n in range(20) for w in ("red", "why", "i")]
    output = tmp_path / "run"
    done = run(
        tmp_path,
        *("pipelines", "run", "eighth", f"pytorch_model_path={tiny_model}", "piece_key=w", "tag_key=t"),
        f"train_file_path={write_jsonl(tmp_path / 'rows.jsonl', rows)}",
        *("max_steps=4", "per_device_train_batch_size=8", "--output_dir", str(output)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(output.rglob("report.html")) and list(output.rglob("MLmodel"))
    dataset = json.loads(next(output.rglob("dataset.json")).read_text())
    assert dataset["task_name"] == "eighth"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path / "none", "pipelines", "--help")
    assert done.returncode == 2 and "TUNEPORT_TASKS=" in done.stderr and "Traceback" not in done.stderr
