"""`tuneport examples`: what is listed and copied, and that a copy stands alone."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipelines
from tuneport import tasks
from tuneport.cli import cmd_examples
from tuneport.config import from_file

ROOT = Path(__file__).parents[1]
Command = Callable[..., int]


def test_every_task_has_one_and_a_line_on_it(tuneport: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuneport("examples", "list") == 0
    listed = dict(re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines())
    assert set(listed) == set(tasks.names())
    assert listed["text_classification"] == "what is this question asking for?"
    assert tuneport("examples") == 0
    assert capsys.readouterr().out.startswith("Usage: tuneport examples ")


@pytest.mark.parametrize("name", tasks.names())
def test_a_copy_stands_alone_and_the_printed_commands_name_it(
    tuneport: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert tuneport("examples", "copy", name, "my own/place") == 0
    wrote, *commands = capsys.readouterr().out.splitlines()
    assert wrote == "wrote my own/place. Fetch its model and data, then run it:"
    place = tmp_path / "my own" / "place"
    assert {"README.md", "config.yaml", "fetch.py", "fetching.py"} <= {path.name for path in place.iterdir()}
    assert (place / "debian.py").exists() == ("from debian" in (place / "fetch.py").read_text("utf-8"))

    fetch, run = (shlex.split(line) for line in commands)
    assert fetch[-1] == "my own/place/fetch.py"
    shown = subprocess.run([*fetch, "--help"], capture_output=True, text=True, check=True, env=alone())
    assert shown.stdout.startswith("usage: python ")
    assert run[run.index("run") + 1] == name
    pipeline = pipelines.load(name)
    values = from_file(pipeline, tmp_path / run[run.index("--config") + 1])
    assert values["train_file_path"].path.is_relative_to(place / "data")


def alone() -> dict[str, str]:
    """An environment in which this checkout is not on the Python path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_copy_s_pages_name_no_folder_of_the_checkout(tuneport: Command, tmp_path: Path) -> None:
    assert tuneport("examples", "copy", "question_answering") == 0
    place = tmp_path / "question_answering"
    text = "".join(path.read_text("utf-8") for path in place.iterdir())
    assert "examples/question_answering" not in text
    assert "python question_answering/fetch.py" in text
    for link in re.findall(r"]\(([\w./]+)\)", (place / "README.md").read_text("utf-8")):
        assert (place / link).is_file()


def test_the_commands_are_full_where_another_python_is_on_the_path(
    tuneport: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert tuneport("examples", "copy", "summarization") == 0
    _, fetch, run = capsys.readouterr().out.splitlines()
    assert fetch == f"  {sys.executable} summarization/fetch.py"
    assert run == f"  {sys.executable} -m pipelines run summarization --config summarization/config.yaml"


def test_a_folder_that_holds_something_is_left_as_it_is(
    tuneport: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.yaml").write_text("mine", "utf-8")
    assert tuneport("examples", "copy", "translation", "here") == 2
    assert capsys.readouterr().err == (
        "error: here: is not empty, and nothing in it is overwritten. Name another folder.\n"
    )
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["config.yaml"]
    assert tuneport("examples", "copy", "translation", "here/config.yaml") == 2
    assert capsys.readouterr().err == "error: here/config.yaml: is a file. Name another folder.\n"
    assert tuneport("examples", "copy", "translation", "here/config.yaml/below") == 2
    assert "here/config.yaml/below: cannot be written (Not a directory)." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["copy", "text_clasification"], "Did you mean 'text_classification'?"),
        (["copy", "text_clasification"], "unknown example 'text_clasification'; there are: chat_completion, "),
        (["copy"], "Missing argument 'NAME'."),
        (["lst"], "unknown command 'lst'; there are: copy, list. Did you mean 'list'?"),
    ],
)
def test_a_mistake_is_named(
    tuneport: Command, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert tuneport("examples", *argv) == 2
    assert message in capsys.readouterr().err


def test_where_none_are_installed_it_says_so(
    tuneport: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cmd_examples, "CHECKOUT", tmp_path / "none")
    assert tuneport("examples", "list") == 2
    assert "none: holds no examples; expected those of a checkout or of an installed wheel." in capsys.readouterr().err
