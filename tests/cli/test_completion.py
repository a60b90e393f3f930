"""What bash completes, asked of bash itself, and what zsh and fish are told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
eval "$(tuneport completion bash)"
compopt() { echo "option $2"; }
while read -r -a COMP_WORDS; do
    [ "${COMP_WORDS[-1]}" = _ ] && COMP_WORDS[-1]=""
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _tuneport_completion tuneport
    echo "${COMPREPLY[@]}"
done
"""
TYPED = {  # as bash splits them; _ stands for the empty word that is begun
    "tuneport ru": "run runs",
    "tuneport run text_": "text_classification text_generation",
    "tuneport run text_classification learning_r": "option nospace\nlearning_rate=",
    "tuneport run text_classification apply_lora = _": "true false",
    "tuneport run text_classification precision = b": "bf16",
    "tuneport run text_classification precision = bf16 --target d": "docker",
    "tuneport run text_classification no_such = _": "",
    "tuneport runs sh": "show",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which the command is called tuneport."""
    program = tmp_path / "bin" / "tuneport"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def test_bash_completes_commands_pipelines_parameters_and_values(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", SCRIPT],
        input="\n".join([*TYPED, ""]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "".join(f"{answer}\n" for answer in TYPED.values()), done.stderr


@pytest.mark.parametrize(("shell", "word"), [("zsh", "compdef"), ("fish", "complete --no-files")])
def test_other_shells_have_a_script(tuneport, capsys, shell: str, word: str) -> None:  # type: ignore[no-untyped-def]
    assert tuneport("completion", shell) == 0
    assert word in capsys.readouterr().out


def test_help_is_as_wide_as_the_terminal(environment: dict[str, str]) -> None:
    widths = {}
    for columns in (60, 150):
        done = subprocess.run(
            ["tuneport", "run", "--help"],
            env={**environment, "COLUMNS": str(columns)},
            capture_output=True,
            text=True,
            check=True,
        )
        widths[columns] = max(map(len, done.stdout.splitlines()))
    assert 100 < widths[150] <= 150 and widths[60] < 100
