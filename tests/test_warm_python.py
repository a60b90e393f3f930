"""What stands in the place of Python while slow tests run does what Python does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STAGE = '''
import os, subprocess, sys, time
from pathlib import Path
from tuneport.artifacts import Folder
from tuneport.step import Step, param, produces

class Act(Step):
    """Does what it is told."""

    what: str = param("What.")
    told: Folder = produces("Where it says so.")

    def run(self):
        print("said", "torch" in sys.modules, os.environ.get("GIVEN"), os.getcwd(), flush=True)
        if self.what == "dies":
            os.kill(os.getpid(), 9)
        if self.what == "waits":
            sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
            child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            Path("pids").write_text(f"{os.getpid()} {child.pid}")
            time.sleep(300)
        if self.what == "leaves":
            sys.exit(7)
        (self.told.path / "said").touch()
'''


def start(folder: Path, what: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "act.py").write_text(STAGE)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "steps", "act", "--what", what, "--told", "out"],
        cwd=folder,
        env=os.environ | {"TUNEPORT_STEPS": str(folder / "stages"), "GIVEN": "a value"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def pids(folder: Path) -> list[int]:
    file = folder / "pids"
    while not file.exists() or not file.read_text():
        time.sleep(0.01)
    return [int(word) for word in file.read_text().split()]


def lives(pid: int) -> bool:
    """Whether a process is there that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("what", "status"), [("goes on", 0), ("leaves", 7), ("dies", -signal.SIGKILL)])
def test_output_status_environment_and_folder_are_those_of_a_process(what: str, status: int, tmp_path: Path) -> None:
    process = start(tmp_path, what)
    said, _ = process.communicate(timeout=120)
    assert f"said True a value {tmp_path}\n" in said, said
    assert process.returncode == status, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_once(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, "waits")
    own, _ = pids(tmp_path)
    assert own != process.pid
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_a_program_whose_stand_in_is_killed_is_killed_with_what_it_started(tmp_path: Path) -> None:
    process = start(tmp_path, "waits")
    both = pids(tmp_path)
    assert all(lives(pid) for pid in both)
    process.kill()
    deadline = time.monotonic() + 10
    while any(lives(pid) for pid in both):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.communicate()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTHONPATH"])
def test_what_libraries_read_as_they_are_imported_is_read(variable: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('customized')")
    value = {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(tmp_path)}[variable]
    if variable == "PYTHONPATH":
        value = os.pathsep.join([value, *filter(None, [os.environ.get(variable)])])
    said, _ = start(tmp_path, "goes on", **{variable: value}).communicate(timeout=120)
    assert f"said False a value {tmp_path}\n" in said, said
    assert ("customized" in said) == (variable == "PYTHONPATH")


def test_the_other_names_of_python_beside_it_are_those_of_the_environment() -> None:
    for name in ("python", "python3"):
        command = [str(Path(sys.executable).with_name(name)), "-c", "import mlflow.tracking, sys; print(sys.prefix)"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert done.stdout.strip() == sys.prefix, done.stderr
