"""A process that does not outlive the one that started it."""

import signal
import subprocess
import sys

import pytest

CODE = """
import os, sys
from tuneport.launchers.parent_death import signalled_at_death_of_parent
signalled_at_death_of_parent({number}, {parent})()
print("goes on")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own call")
@pytest.mark.parametrize(
    ("parent", "said", "status"), [("os.getppid()", "goes on\n", 0), ("os.getppid() + 1", "", -signal.SIGKILL)]
)
def test_one_whose_parent_has_ended_before_it_could_say_so_ends_at_once(parent: str, said: str, status: int) -> None:
    code = CODE.format(number=int(signal.SIGTERM), parent=parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (said, status), done.stderr
