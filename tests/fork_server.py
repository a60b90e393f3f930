"""Runs Python programs, each in a fork of its own of a process that has imported the large libraries.

`python tests/fork_server.py MODULE…` imports the modules, then reads a request a line, as JSON: a program to start, to
which the answer is the process id, or a process to look at or wait for, to which the answer is its exit status.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = ("mlflow", "pandas", "torch", "transformers.trainer")  # and no tuneport
TRAINING = (*LIBRARIES, "steps.finetune", "tuneport.training.train")
STAGE = "import runpy; runpy.run_module('steps', run_name='__main__', alter_sys=True)"  # python -m steps


class Forked:
    """A program under way: what tests use of `subprocess.Popen`."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask({"of": self.pid, "wait": False})
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self.server.ask({"of": self.pid, "wait": True})
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class ForkServer:
    """Starts programs without the time for the imports, each in a session of its own."""

    def __init__(self, environment: dict[str, str], folder: Path, modules: Sequence[str] = LIBRARIES) -> None:
        command = [sys.executable, "-P", __file__, *modules]
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the fork server has ended"
        return json.loads(answer)

    def start(
        self, code: str, arguments: Sequence[str], *, output: Path, errors: Path, input: Path | None = None, cwd: Path
    ) -> Forked:
        """As ``python -c code *arguments``; what it says is added to the files."""
        files = {"input": str(input or os.devnull), "output": str(output), "errors": str(errors), "cwd": str(cwd)}
        return Forked(self, self.ask({"code": code, "argv": ["-c", *arguments], **files}))

    def run(self, code: str, *arguments: str, input: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of ``python -c code *arguments``."""
        self.count += 1
        files = {name: self.folder / f"{self.count}.{name}" for name in ("input", "output", "errors")}
        files["input"].write_text(input, "utf-8")
        status = self.start(code, arguments, **files, cwd=cwd).wait()
        output, errors = (files[name].read_text("utf-8") for name in ("output", "errors"))
        return subprocess.CompletedProcess([code, *arguments], status, output, errors)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@functools.cache
def _training() -> ForkServer:
    folder = tempfile.TemporaryDirectory()
    server = ForkServer({**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, Path(folder.name), TRAINING)
    atexit.register(lambda: (server.close(), folder.cleanup()))
    return server


def run_stage(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As ``python -m steps *arguments``, on a CPU and one thread; for a stage that starts no processes."""
    return _training().run(STAGE, *arguments, input="", cwd=Path.cwd())


def serve(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "code" in request:
            answer: int | None = os.fork() or run(request)
        else:
            pid, status = os.waitpid(request["of"], 0 if request["wait"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def run(program: dict[str, Any]) -> NoReturn:
    """In the child: be the program, and end with it."""

    def work() -> None:
        os.setsid()
        for descriptor, name, flags in (
            (0, "input", os.O_RDONLY),
            (1, "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            (2, "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        ):
            os.dup2(os.open(program[name], flags, 0o600), descriptor)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (what was read ahead is not its own)
        os.chdir(program["cwd"])
        sys.argv[:] = program["argv"]
        sys.path.insert(0, "")
        exec(compile(program["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102

    end_with(work)


def end_with(work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked process and end it with the exit status that an interpreter would have."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # as an interpreter ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1:])
