"""Kills at random moments change nothing in the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kill_and_resume.py"
sys.path.insert(0, str(SCRIPT.parent))
from kill_and_resume import outcome, start, steps_done  # noqa: E402

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_and_its_own_exit_code(
    number: signal.Signals, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert start(imported_model, prepared_questions, whole).wait() == 0
    stopped = tmp_path / "stopped"
    process = start(imported_model, prepared_questions, stopped)
    while process.poll() is None and steps_done(stopped) < 8:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait() == 75
    log = (tmp_path / "stopped.log").read_text()
    assert "the state is saved in" in log and "Traceback" not in log
    assert 8 <= steps_done(stopped) < 120 and not stopped.exists()
    assert start(imported_model, prepared_questions, stopped).wait() == 0
    assert outcome(stopped) == outcome(whole)
