"""A training parameter is one `param(…)` line and its effect; all else follows, and no other file changes."""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "eval_on_start"
GROUP = '    """Evaluation, logging and checkpoints."""\n'
DECLARED = f'    {NAME}: bool = param("Evaluate before the first step, too.", default=False)\n'
EFFECT = ("seed=options.seed,\n", f"{NAME}=options.{NAME},\n        ")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with one parameter more."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tuneport", "steps", "pipelines", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    changed(folder / "tuneport" / "training" / "parameters.py", GROUP, GROUP + DECLARED)
    changed(folder / "tuneport" / "training" / "train.py", EFFECT[0], EFFECT[1] + EFFECT[0])
    return folder


def changed(file: Path, before: str, after: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(before) == 1
    file.write_text(text.replace(before, after), "utf-8")


def run(copy: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = (sys.executable, *command)
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_a_flag_of_every_task_and_in_the_schema(copy: Path) -> None:
    for task in ("text_classification", "chat_completion"):
        assert f"--{NAME}" in run(copy, "-m", "steps", "finetune", "--task_name", task, "--help")
        assert f'"{NAME}"' in run(copy, "-m", "pipelines", "schema", task)


def test_the_reference_page_gets_its_line_and_no_other(copy: Path) -> None:
    run(copy, "docs/generate_parameters.py")
    before = (ROOT / "docs" / "parameters.md").read_text("utf-8").splitlines()
    after = (copy / "docs" / "parameters.md").read_text("utf-8").splitlines()
    added = [line for line in after if line not in before]
    assert len(added) == 1 and NAME in added[0] and "Evaluate before the first step, too." in added[0]
    assert [line for line in after if line not in added] == before


def test_it_has_its_effect(copy: Path) -> None:
    script = (
        "from pathlib import Path; from types import SimpleNamespace as N\n"
        "from tuneport.training.parameters import TrainingParams\n"
        "from tuneport.training.train import training_arguments\n"
        "values = {n: p.default for n, p in TrainingParams.ports().items()} | {'deepspeed': None}\n"
        f"for on in (True, False): print(training_arguments(N(**{{**values, '{NAME}': on}}), Path('x')).{NAME})"
    )
    assert run(copy, "-c", script).split() == ["True", "False"]


@pytest.mark.slow
def test_no_golden_file_changes(copy: Path) -> None:
    folders = [Path("tests", "targets", "golden"), Path("tests", "launchers", "golden")]
    for folder in folders:
        shutil.rmtree(copy / folder)
    run(copy, "-m", "tests.rewrite_golden")
    for folder in folders:
        files = [file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file()]
        assert len(files) > 3
        same, different, absent = filecmp.cmpfiles(ROOT, copy, [str(file) for file in files], shallow=False)
        assert (different, absent) == ([], []) and len(same) == len(files)
