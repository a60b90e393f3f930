"""A task that learns numbers, not labels, is one file as well."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUNEPORT_TASKS": str(folder / "tasks"), "PYTHONPATH": str(HERE.parents[1])}
    command = (sys.executable, "-m", "pipelines", *command)
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    shutil.copyfile(HERE / "added_regression.py", tmp_path / "tasks" / "regression.py")
    return tmp_path


def numbered() -> list[dict[str, Any]]:
    """Texts whose colour and animal say a number from 100 to 200."""
    colours, animals = ("red", "blue", "green", "yellow", "purple"), ("cat", "dog", "horse", "sheep")
    rng = random.Random(0)
    return [
        {"says": f"{colour} {animal} {number}", "price": 100 + 20 * c + 5 * a + rng.random()}
        for (c, colour), (a, animal), number in itertools.product(enumerate(colours), enumerate(animals), range(12))
    ]


def test_a_column_of_one_number_is_refused_by_what_the_task_sees_of_it(
    folder: Path, tiny_model: Path, write_jsonl: Callable[[Path, Iterable[Any]], Path]
) -> None:
    rows = write_jsonl(folder / "rows.jsonl", [{**row, "price": 7} for row in numbered()])
    common = ("--task_name", "regression", "--text_key", "says", "--number_key", "price")
    imported = run(
        folder, "stage", "model_import", "--pytorch_model_path", str(tiny_model), "--model_selector_output", "base"
    )
    assert imported.returncode == 0, imported.stderr
    places = ("--model_selector_output", "base", "--train_file_path", str(rows), "--preprocess_output", "data")
    done = run(folder, "stage", "preprocess", *common, *places)
    assert done.returncode == 2 and "column 'price' holds 7 in every training row" in done.stderr, done.stderr


@pytest.mark.slow
def test_targets_of_100_to_200_are_learnt_better_than_by_their_mean(
    folder: Path, tiny_model: Path, write_jsonl: Callable[[Path, Iterable[Any]], Path]
) -> None:
    done = run(
        folder,
        *("run", "regression", f"pytorch_model_path={tiny_model}", "text_key=says", "number_key=price"),
        f"train_file_path={write_jsonl(folder / 'rows.jsonl', numbered())}",
        *("num_train_epochs=12", "learning_rate=3e-3", "per_device_train_batch_size=8", "metric_for_best_model=mae"),
        *("max_seq_length=16", "--output_dir", "run"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = next((folder / "run").rglob("metrics.json"))
    metrics = json.loads(report.read_text("utf-8"))
    tuned, mean = metrics["tuned"]["metrics"]["mae"], metrics["baselines"]["mean"]["metrics"]["mae"]
    assert 20 < mean < 40  # of numbers spread evenly over a hundred: a quarter of that
    assert tuned < mean / 4
    assert metrics["tuned"]["intervals"]["mae"][1] < metrics["baselines"]["mean"]["intervals"]["mae"][0]
    state = json.loads(next((folder / "run").rglob("trainer_state.json")).read_text("utf-8"))
    assert state["best_metric"] == min(entry["eval_mae"] for entry in state["log_history"] if "eval_mae" in entry)
    served = next((folder / "run").rglob("MLmodel")).parent
    asked = [{"says": "purple sheep 3"}]
    script = f"import mlflow; print(mlflow.pyfunc.load_model({str(served)!r}).predict({asked}).number[0])"
    fenced = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=folder
    )
    assert float(fenced.stdout.split()[-1]) == pytest.approx(195, abs=12)
