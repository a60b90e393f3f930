"""Ctrl-C, and a disk that is full from the start, end a command with one message, whatever it is doing."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tuneport.cli.exit_codes import guard

# Sends Ctrl-C to itself when a module is about to be imported, then runs the package as a command.
RUN = """
import os, runpy, signal, sys
wanted, package, *sys.argv[1:] = sys.argv[1:]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            sys.meta_path.remove(finder)
            os.kill(os.getpid(), signal.SIGINT)
finder = Finder()
sys.meta_path.insert(0, finder)
runpy.run_module(package, run_name="__main__", alter_sys=True)
"""
STAGE = ("steps", "preprocess", "--task_name", "text_classification", "--help")
PIPELINE = ("pipelines", "validate", "text_classification")


@pytest.mark.parametrize("command", [STAGE, PIPELINE], ids=["stage", "pipeline"])
@pytest.mark.parametrize("module", ["click", "tuneport.step", "tuneport.tasks", "tuneport.tasks.text_classification"])
def test_ctrl_c_while_modules_are_imported_gives_one_line(command: tuple[str, ...], module: str) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, module, *command], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "error: interrupted"
    assert done.returncode in (130, -signal.SIGINT)


def test_an_interrupt_that_an_import_made_another_error_of_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as e:
            raise ImportError("numpy failed") from e

    assert guard(work) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_full_disk_before_the_work_begins_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/.lock")

    assert guard(work) == 2
    assert capsys.readouterr().err == (
        "error: runs/.lock: the disk is full. Free some space, or write to another disk.\n"
    )


def test_a_device_without_room_is_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        Path("/dev/full").write_text("x")
        return 0

    assert guard(work) == 2
    assert "the disk is full" in capsys.readouterr().err
