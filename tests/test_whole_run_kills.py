"""A whole run that is killed in any stage, in any way, ends as one that nobody killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_killed_in_any_stage_ends_as_if_nobody_had() -> None:
    """More than `make test` has time for: ``TUNEPORT_KILLS=100``."""
    kills = os.environ.get("TUNEPORT_KILLS", "12")
    script = str(Path(__file__).with_name("kill_whole_runs.py"))
    command = [sys.executable, script, "--kills", kills]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
