"""metric_for_best_model=file.py:function: a function of the user's chooses the checkpoint, in its own direction."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pipelines
import steps
from tuneport import tasks
from tuneport.cli.stage_command import stage_command
from tuneport.config import json_schema
from tuneport.errors import UserError
from tuneport.metrics.answers import AnsweredRows
from tuneport.metrics.own import OwnMetric
from tuneport.stage import execute

SEEN = """
import json, os
from pathlib import Path
found = []

def worse_each_time(predictions, references, rows):
    found.append([predictions, references, len(rows)])
    Path(__file__).with_name(f"seen-{os.getpid()}.json").write_text(json.dumps(found))
    return [len(text) - 1000 * len(found) for text in predictions]

def better_each_time(predictions, references, rows):
    words = sum(len(text.split()) for text in predictions)
    return {"words": words, "wrong": worse_each_time(predictions, references, rows)}

better_each_time.greater_is_better = False

def rouge1(predictions, references, rows):
    return 1.0

def fails(predictions, references, rows):
    return [1 / 0 for text in predictions]

def nothing(predictions, references, rows):
    return {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SEEN)
    return path


def train(ready: Callable[[str], Any], task: str, output: Path, **values: Any) -> dict[str, Any]:
    given = {"max_steps": 2, "evaluation_strategy": "steps", "eval_steps": 1, "per_device_train_batch_size": 8}
    given |= {"validation_max_new_tokens": 4, "pytorch_model_folder": output}
    execute(ready(task).stage(**given, **values))
    found: dict[str, Any] = json.loads((output / "trainer_state.json").read_text())
    return found


@pytest.mark.parametrize("task", ["text_generation", "summarization"])
def test_a_function_chooses_the_checkpoint_by_what_it_is_given(
    task: str, ready: Callable[[str], Any], file: Path, tmp_path: Path
) -> None:
    state = train(
        ready, task, tmp_path / "out", metric_for_best_model="mine.py:worse_each_time", validation_metric_file=file
    )
    (seen,) = tmp_path.glob("seen-*.json")
    calls = json.loads(seen.read_text())
    values = [entry["eval_worse_each_time"] for entry in state["log_history"] if "eval_loss" in entry]
    expected = [sum(len(text) for text in texts) / len(texts) - 1000 * n for n, (texts, *_) in enumerate(calls, 1)]
    assert values == pytest.approx(expected) and len(values) == 2
    assert state["best_global_step"] == 1
    assert all(rows == len(truth) == len(texts) == 6 for texts, truth, rows in calls)
    training = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (training["metric_for_best_model"], training["best_metric"]) == (
        "worse_each_time",
        pytest.approx(expected[0]),
    )


def test_of_a_dict_one_value_is_named_and_lower_may_be_better(
    ready: Callable[[str], Any], file: Path, tmp_path: Path
) -> None:
    given = {"validation_metric_file": file, "metric_for_best_model": "mine.py:better_each_time.wrong"}
    state = train(ready, "text_generation", tmp_path / "out", **given)
    assert state["best_global_step"] == 2
    assert [entry["eval_wrong"] < 0 for entry in state["log_history"] if "eval_loss" in entry] == [True, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:better_each_time", r"returned words, wrong; say which one, as in mine.py:better_each_time.words"),
        ("mine.py:better_each_time.word", r"returned no word, but words, wrong. Did you mean 'words'"),
        ("mine.py:fails", "^metric_for_best_model: 'fails' failed at .*: ZeroDivisionError"),
        ("mine.py:nothing", r"^metric_for_best_model: 'nothing' returned \{\} for 6 rows; expected at least one"),
        ("mine.py:absent", "validation_metric_file=.*: has no function 'absent'"),
        ("mine.py:rouge1", "'rouge1' is the name of another metric; give the function another one"),
    ],
)
def test_a_function_that_cannot_choose_is_refused_and_nothing_is_left(
    name: str, message: str, ready: Callable[[str], Any], file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(ready, "text_generation", tmp_path / "out", metric_for_best_model=name, validation_metric_file=file)
    assert not (tmp_path / "out").exists()


def test_a_function_without_its_file_and_a_file_without_function_are_refused_before_anything_runs(
    ready: Callable[[str], Any], file: Path
) -> None:
    with pytest.raises(UserError, match="names a function of a file, and validation_metric_file is not set"):
        ready("text_generation").stage(metric_for_best_model="mine.py:fails").check()
    with pytest.raises(UserError, match=r"has no effect with metric_for_best_model=loss; set that to mine.py:function"):
        ready("text_generation").stage(validation_metric_file=file).check()


@pytest.mark.parametrize("task", tasks.names())
def test_tasks_that_write_text_take_a_function_and_others_refuse_it(task: str) -> None:
    port = pipelines.load(task).params["metric_for_best_model"]
    if "validation_metric_file" in pipelines.load(task).params:
        assert port.parse("mine.py:f") == "mine.py:f" and "or file.py:function" in port.wanted
        schema = json_schema(pipelines.load(task), {})["properties"]["metric_for_best_model"]
        assert jsonschema.Draft202012Validator(schema).is_valid("mine.py:f")
        assert not jsonschema.Draft202012Validator(schema).is_valid("los")
    else:
        with pytest.raises(UserError, match=r"metric_for_best_model='mine.py:f': not valid; expected one of"):
            port.parse("mine.py:f")
    with pytest.raises(UserError, match="metric_for_best_model='los': not valid"):
        port.parse("los")


def test_the_help_of_the_stage_says_how_a_function_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stage_command(steps.load("finetune", "text_generation"), lambda given: 0).main(["--help"])
    assert "[or file.py:function, of a dict file.py:function.name; default: 'loss']" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_function_that_returns_an_empty_dict_is_refused_in_the_evaluation_too() -> None:
    rows = AnsweredRows(truth=["a", "b"], predicted=["a", "c"], raw=[{}, {}], total=2)
    with pytest.raises(UserError, match=r"^metrics: 'f' returned \{\} for 2 rows"):
        OwnMetric(name="f", function=lambda predictions, references, rows: {}, file="")(rows)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["worse_each_time", "fails"])
def test_of_several_processes_the_first_one_calls_the_function_and_all_go_by_what_it_finds(
    function: str, ready: Callable[[str], Any], file: Path, tmp_path: Path
) -> None:
    made, output = ready("text_generation"), tmp_path / "out"
    given = {
        "model_selector_output": made.model,
        "preprocess_output": made.prepared,
        "pytorch_model_folder": output,
        "metric_for_best_model": f"mine.py:{function}",
        "validation_metric_file": file,
        "number_of_gpu_to_use_finetuning": 2,
        "max_steps": 2,
        "evaluation_strategy": "steps",
        "eval_steps": 1,
        "per_device_train_batch_size": 4,
        "validation_max_new_tokens": 4,
        "apply_early_stopping": True,
    }
    argv = [sys.executable, "-m", "steps", "finetune", "--task_name", "text_generation"]
    argv += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    if function == "fails":
        assert done.returncode == 2 and "'fails' failed at" in said and not output.exists(), said
        return
    assert done.returncode == 0, said
    (seen,) = tmp_path.glob("seen-*.json")
    assert [rows for _, _, rows in json.loads(seen.read_text())] == [6, 6]
    assert json.loads((output / "trainer_state.json").read_text())["best_global_step"] == 1


def test_the_file_is_an_input_of_finetune_as_any_other() -> None:
    ports = steps.load("finetune", "text_generation").ports()
    assert (ports["validation_metric_file"].kind, ports["validation_metric_file"].type.__name__) == ("input", "File")
