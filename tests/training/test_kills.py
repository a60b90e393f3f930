"""Kills at random moments change nothing in the end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "kill_and_resume.py"
sys.path.insert(0, str(SCRIPT.parent))
from kill_and_resume import Start, outcome, steps_done, trainings  # noqa: E402

KILLS = {"plain": "6", "ddp": "2", "zero2": "2"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", KILLS)
def test_a_training_killed_again_and_again_ends_as_if_nobody_had(
    mode: str, imported_model: Path, prepared_questions: Path
) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(imported_model), "--rows", str(prepared_questions)]
    kills = os.environ.get("TUNEPORT_KILLS", KILLS[mode])
    done = subprocess.run([*command, "--mode", mode, "--kills", kills], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def start(imported_model: Path, prepared_questions: Path) -> Iterator[Start]:
    with trainings(imported_model, prepared_questions, num_train_epochs="4") as start:  # 48 steps
        yield start


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of a training that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "output"
    assert start(output).wait() == 0
    return outcome(output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_and_its_own_exit_code(
    number: signal.Signals, start: Start, whole: Any, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    process = start(stopped)
    while process.poll() is None and steps_done(stopped) < 8:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait() == 75
    log = (tmp_path / "stopped.log").read_text()
    assert "the state is saved in" in log and "Traceback" not in log
    assert 8 <= steps_done(stopped) < 48 and not stopped.exists()
    assert start(stopped).wait() == 0
    assert outcome(stopped) == whole
