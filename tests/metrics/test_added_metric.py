"""A metric is one record: added to a task's table, it is a choice, it chooses the checkpoint, and it is reported."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sklearn.metrics import cohen_kappa_score, zero_one_loss

ROOT = Path(__file__).parents[2]
TABLE = "METRICS: tuple[Metric[ClassifiedRows], ...] = (\n"
KAPPA = """
    Metric(
        name="cohen_kappa",
        title="Cohen's kappa",
        compute=lambda rows: __import__("sklearn.metrics").metrics.cohen_kappa_score(rows.truth, rows.predicted),
        chooses_checkpoint=True,
    ),
"""
ERRORS = """
    Metric(
        name="zero_one_loss",
        title="Wrong answers",
        compute=lambda rows: 1 - rows.right.mean(),
        greater_is_better=False,
        chooses_checkpoint=True,
    ),
"""


class Added(NamedTuple):
    """A record, how the report names it, which of its values is best, and what it should give."""

    name: str
    record: str
    title: str
    best: Callable[[Iterable[float]], float]
    expected: Callable[[list[str], list[str]], float]


ADDED = (
    Added("cohen_kappa", KAPPA, "Cohen&#39;s kappa", max, cohen_kappa_score),
    Added("zero_one_loss", ERRORS, "Wrong answers", min, zero_one_loss),
)


def package_with(record: str, folder: Path) -> Path:
    """The packages in a folder of their own, with one more record in the table of text classification."""
    for package in ("tuneport", "steps", "pipelines"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    module = folder / "tuneport" / "metrics" / "classification.py"
    source = module.read_text("utf-8")
    assert source.count(TABLE) == 1
    module.write_text(source.replace(TABLE, TABLE + record.lstrip("\n")), "utf-8")
    return folder


def run(package: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = (sys.executable, "-m", *command)
    done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_record_is_a_choice_of_the_task_that_has_it_and_of_no_other(tmp_path: Path) -> None:
    package = package_with(KAPPA, tmp_path)
    schemas = {
        task: json.loads(run(package, "pipelines", "schema", task))["properties"]["metric_for_best_model"]["enum"]
        for task in ("text_classification", "token_classification")
    }
    assert schemas["text_classification"][:3] == ["loss", "cohen_kappa", "accuracy"]
    assert "cohen_kappa" not in schemas["token_classification"]
    assert "cohen_kappa" in run(package, "steps", "finetune", "--task_name", "text_classification", "--help")


@pytest.mark.slow
@pytest.mark.parametrize("added", ADDED, ids=lambda added: added.name)
def test_one_record_chooses_the_checkpoint_and_is_in_the_report_with_its_interval(
    added: Added,
    tmp_path: Path,
    tiny_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Callable[[Path, Iterable[Any]], Path],
) -> None:
    name = added.name
    package, output = package_with(added.record, tmp_path / "package"), tmp_path / "run"
    run(
        package,
        *(
            "pipelines",
            "run",
            "text_classification",
            f"pytorch_model_path={tiny_model}",
            f"metric_for_best_model={name}",
        ),
        *("sentence1_key=text", "label_key=label", "num_train_epochs=6", "learning_rate=3e-3", "max_seq_length=32"),
        *("per_device_train_batch_size=8", "test_split_ratio=0.3", "validation_split_ratio=0.3"),
        f"train_file_path={write_jsonl(tmp_path / 'rows.jsonl', questions)}",
        *("--output_dir", str(output)),
    )

    state = json.loads(next(output.rglob("trainer_state.json")).read_text("utf-8"))
    logged = {entry["step"]: entry[f"eval_{name}"] for entry in state["log_history"] if f"eval_{name}" in entry}
    assert len(set(logged.values())) > 1, "the metric tells the checkpoints apart"
    assert state["best_metric"] == added.best(logged.values()) == logged[state["best_global_step"]]

    report = next(output.rglob("metrics.json")).parent
    metrics = json.loads((report / "metrics.json").read_text("utf-8"), parse_constant=pytest.fail)
    lines = [json.loads(line) for line in (report / "predictions.jsonl").read_text("utf-8").splitlines()]
    value = metrics["tuned"]["metrics"][name]
    low, high = metrics["tuned"]["intervals"][name]
    assert value == pytest.approx(added.expected([x["label"] for x in lines], [x["tuned"]["label"] for x in lines]))
    assert low <= value <= high and name in metrics["base"]["intervals"]
    (row,) = re.findall(rf"<tr><th>{added.title}.*?</tr>", (report / "report.html").read_text("utf-8"))
    assert f"{value:.3f}<small>{low:.3f} to {high:.3f}</small>" in row
    assert ("lower is better" in row) == (added.best is min)
