"""The `tuneport` and `python -m steps` commands as a user types them: output, messages, exit codes, start-up."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import pipelines
import steps
from tuneport import __version__
from tuneport.cli.stage_command import run_stage

Command = Callable[..., int]


@pytest.fixture
def rows(tmp_path: Path, questions: list[dict[str, str]], write_jsonl: Callable[[Path, Iterable[Any]], Path]) -> str:
    write_jsonl(tmp_path / "train.jsonl", questions)
    return "train.jsonl"


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_and_the_pipelines(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuneport("--help") == 0
    text = capsys.readouterr().out
    for word in [
        "compile",
        "examples",
        "init",
        "replay",
        "run",
        "schema",
        "submit",
        "validate",
        "--version",
        f"Pipelines: {', '.join(pipelines.names())}",
    ]:
        assert word in " ".join(text.split())
    assert tuneport() == 0
    assert capsys.readouterr().out == text


def test_a_pipelines_help_lists_all_its_inputs_in_groups(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["run", "text_classification", "--help"], ["run", "--help", "text_classification"]):
        assert tuneport(*argv) == 0
        text = capsys.readouterr().out
        for name, port in pipelines.load("text_classification").params.items():
            assert f"\n  {name}=" in text
            assert f"\n{port.group or 'Parameters'}:\n" in text or port.kind == "input"
        assert "--from STAGE" in text


@pytest.mark.parametrize("command", ["run", "compile", "submit", "validate", "replay", "schema", "init"])
def test_a_command_shows_its_help_without_what_it_needs(
    tuneport: Command, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert tuneport(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"Usage: tuneport {command} ")


@pytest.mark.parametrize("command", ["compile", "submit"])
def test_a_command_that_needs_a_target_asks_for_it(
    tuneport: Command, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert tuneport(command, "text_classification", "sentence1_key=text", "label_key=label") == 2
    assert capsys.readouterr().err == "error: Missing option '--target'.\n"


def test_the_version_is_the_packages(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuneport("--version") == 0
    assert capsys.readouterr().out == f"tuneport {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "pipelines", "--help"],
        ["-m", "pipelines", "run", "text_classification", "--help"],
        ["-m", "steps", "--help"],
        ["-m", "steps", "finetune", "--help"],
        ["-m", "steps", "preprocess", "--task_name", "text_classification", "--help"],
        ["-m", "steps", "model_evaluation", "--help"],
    ],
)
def test_help_imports_no_heavy_library(argv: list[str]) -> None:
    script = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print('LOADED', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", script, *argv[1:]], capture_output=True, text=True, check=True)
    loaded = result.stdout.rpartition("LOADED ")[2].split()
    heavy = {
        "torch",
        "transformers",
        "mlflow",
        "pyarrow",
        "pandas",
        "sklearn",
        "matplotlib",
        "datasets",
        "numpy",
        "rich",
    }
    assert "click" in loaded
    assert heavy.isdisjoint(loaded)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["rnu"],
            (
                "unknown command 'rnu'; there are: compile, completion, deploy, estimate, examples, init, preview, "
                "replay, run, runs, schema, stage, submit, validate, verify. Did you mean 'run'?"
            ),
        ),
        (["run"], f"no pipeline is named; expected one of {', '.join(pipelines.names())}."),
        (["schema", "txt_clasification"], "Did you mean 'text_classification'?"),
        (
            ["run", "text_clasification"],
            f"unknown pipeline 'text_clasification'; there are: {', '.join(pipelines.names())}.",
        ),
        (["run", "text_classification", "--form", "x"], "unknown option '--form';"),
        (["run", "text_classification", "--form", "x"], "Did you mean '--from'?"),
        (["run", "text_classification", "--learning_rate", "1"], "inputs are written name=value, without dashes."),
        (["run", "text_classification", "--config"], "Option '--config' requires an argument."),
        (["run", "text_classification", "learning_rat=1"], "Did you mean 'learning_rate'?"),
        (["run", "text_classification", "learning_rate"], "'learning_rate': not valid; expected key=value"),
        (["run", "text_classification", "learning_rate=-1"], "learning_rate='-1': not valid; expected a number"),
        (["run", "text_classification"], "sentence1_key: is required by text_classification; expected text"),
        (["validate", "text_classification", "--config", "no.yaml"], "no.yaml: cannot be read (No such file"),
        (["validate", "text_classification", "--config", "https://a/b"], "https://a/b: is an address, and no file"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    tuneport: Command, capsys: pytest.CaptureFixture[str], argv: list[str], message: str, tmp_path: Path
) -> None:
    assert tuneport(*argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_says_which_there_are(
    tuneport: Command, capsys: pytest.CaptureFixture[str], rows: str, tiny_model: Path
) -> None:
    values = ["sentence1_key=text", "label_key=label", f"train_file_path={rows}", f"pytorch_model_path={tiny_model}"]
    assert tuneport("run", "text_classification", "--target", "locla", *values) == 2
    said = capsys.readouterr().err
    assert "unknown target 'locla'; there are: " in said and "Did you mean 'local'?" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["finetun"], "unknown stage 'finetun'; there are: finetune, "),
        (["finetune", "--learning_rat", "1"], "Did you mean '--learning_rate'?"),
        (["finetune", "--learning_rate", "-1"], "learning_rate='-1': not valid"),
        (["finetune", "--task_name", "text_clasification"], "task_name='text_clasification': not valid"),
    ],
)
def test_a_stages_mistakes_are_messages_as_well(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run_stage(argv, names=steps.names(), load=steps.load) == 2
    assert message in capsys.readouterr().err


# -- validate, schema, init --------------------------------------------------------------------------------------------


def test_validate_checks_values_files_and_columns_and_writes_nothing(
    tuneport: Command, capsys: pytest.CaptureFixture[str], rows: str, tiny_model: Path, tmp_path: Path
) -> None:
    values = ["sentence1_key=text", f"train_file_path={rows}", f"pytorch_model_path={tiny_model}"]
    assert tuneport("validate", "text_classification", "label_key=label", *values) == 0
    stages = "model_import → preprocess → finetune → model_export → model_evaluation"
    assert capsys.readouterr().out.startswith(f"valid: text_classification ({stages})\nhere: ")
    assert tuneport("validate", "text_classification", "label_key=lable", *values) == 2
    assert "not found in train.jsonl; it has: text, label. Did you mean 'label'?" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


def test_validate_finds_both_or_neither_of_the_two_model_inputs(
    tuneport: Command, capsys: pytest.CaptureFixture[str], rows: str, tiny_model: Path
) -> None:
    values = ["sentence1_key=text", "label_key=label", f"train_file_path={rows}"]
    assert tuneport("validate", "text_classification", *values) == 2
    assert (
        "got none of them; expected exactly one of pytorch_model_path, mlflow_model_path, huggingface_id"
        in capsys.readouterr().err
    )
    both = [f"pytorch_model_path={tiny_model}", f"mlflow_model_path={tiny_model}"]
    assert tuneport("validate", "text_classification", *values, *both) == 2
    assert "got both pytorch_model_path and mlflow_model_path" in capsys.readouterr().err


def test_the_schema_is_json_over_all_inputs(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuneport("schema", "text_classification") == 0
    schema = json.loads(capsys.readouterr().out)
    assert list(schema["properties"]) == [*pipelines.load("text_classification").params, "platform"]


def test_init_writes_a_file_that_runs_once_it_is_filled_in_and_never_overwrites_one(
    tuneport: Command, capsys: pytest.CaptureFixture[str], rows: str, tiny_model: Path, tmp_path: Path
) -> None:
    assert tuneport("init", "text_classification", "--all", "-o", "run.yaml") == 0
    text = (tmp_path / "run.yaml").read_text("utf-8")
    filled = (
        text.replace("\nsentence1_key:\n", "\nsentence1_key: text\n")
        .replace("\nlabel_key:\n", "\nlabel_key: label\n")
        .replace("\n# train_file_path:\n", f"\ntrain_file_path: {rows}\n")
        .replace("\n# pytorch_model_path:\n", f"\npytorch_model_path: {tiny_model}\n")
    )
    (tmp_path / "run.yaml").write_text(filled, "utf-8")
    assert tuneport("validate", "text_classification", "--config", "run.yaml") == 0
    assert tuneport("init", "text_classification", "--all", "-o", "run.yaml") == 2
    assert "run.yaml: exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "run.yaml").read_text("utf-8") == filled
    assert tuneport("init", "text_classification", "--all") == 0
    assert capsys.readouterr().out == text


def test_a_reader_that_goes_away_gives_no_traceback() -> None:
    command = [sys.executable, "-m", "pipelines", "run", "text_classification", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


# -- targets -----------------------------------------------------------------------------------------------------------


def test_what_a_target_cannot_honour_is_refused(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["pytorch_model_path=m", "train_file_path=t.csv", "sentence1_key=a", "label_key=b"]
    assert tuneport("validate", "text_classification", *values, "compute_finetune=big", "num_nodes_finetune=2") == 2
    error = capsys.readouterr().err
    assert "compute_finetune='big': --target local has no way to honour it" in error
    assert "num_nodes_finetune=2: --target local has no way to honour it" in error


def test_the_local_target_has_nothing_to_compile(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["pytorch_model_path=m", "train_file_path=t.csv", "sentence1_key=a", "label_key=b"]
    assert tuneport("compile", "text_classification", *values, "--target", "local", "-o", "out") == 2
    assert "--target local: has no document to write" in capsys.readouterr().err


def test_a_target_that_does_not_exist_is_refused_in_the_platform_section(
    tuneport: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = "pytorch_model_path: m\ntrain_file_path: t.csv\nsentence1_key: a\nlabel_key: b\n"
    (tmp_path / "run.yaml").write_text(values + "platform:\n  locla: {}\n", "utf-8")
    assert tuneport("validate", "text_classification", "--config", "run.yaml") == 2
    assert "platform.locla: unknown target" in capsys.readouterr().err


def test_the_local_target_has_nothing_to_send(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["pytorch_model_path=m", "train_file_path=t", "sentence1_key=text", "label_key=label"]
    assert tuneport("submit", "text_classification", *values, "--target", "local") == 2
    assert "--target local: runs here, so there is nothing to send" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["validate", "text_classification", "pytorch_model_path=LONG", "train_file_path=LONG"],
        ["run", "text_classification", "pytorch_model_path=LONG", "train_file_path=LONG", "--output_dir", "LONG"],
        ["validate", "text_classification", "--config", "LONG"],
        ["replay", "LONG"],
        ["verify", "LONG"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_name_that_no_file_can_have_is_a_user_s_mistake(
    tuneport: Command, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    columns = ["sentence1_key=text", "label_key=label"] if "text_classification" in command else []
    assert tuneport(*(word.replace("LONG", "x" * 300) for word in command), *columns) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
