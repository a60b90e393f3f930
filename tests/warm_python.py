"""Stages of slow tests without the seconds that each process takes to import the large libraries.

`python -m tests.warm_python FOLDER` imports them once and forks for each program that `warm_client.py` hands on, which
stands in the place of Python itself while slow tests run: what they start, and what that starts, comes here. A program
is a process of its own with the signals, the exit status and the end of any other. `TUNEPORT_COLD=1` does without.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tests import warm_client

COLD = {warm_client.FOLDER: ""}  # as a variable of what is to be started as ever, all that it starts included
F_SETSIG = 10  # of linux/fcntl.h
ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "transformers.trainer", "datasets", "pandas", "sklearn.metrics", "peft", "mlflow")
OURS = (
    "pipelines.__main__",
    "steps.finetune",
    "steps.model_evaluation",
    "steps.model_export",
    "tuneport.training.train",
)


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Let `sys.executable` be the client, beside all that stands beside Python itself, and its server run."""
    python = Path(sys.executable)
    folder = Path(tempfile.mkdtemp(prefix="tuneport-warm-"))
    programs = folder / "bin"
    programs.mkdir()
    for program in python.parent.iterdir():
        if program.name.startswith("python"):  # a link would not be found to belong to its environment
            (programs / program.name).write_text(f'#!/bin/sh\nexec {program} "$@"\n', "utf-8")
            (programs / program.name).chmod(0o755)
        else:
            (programs / program.name).symlink_to(program)
    client = programs / python.name
    client.write_text(f"#!{python} -IS\n" + Path(warm_client.__file__).read_text("utf-8"), "utf-8")
    client.chmod(0o755)
    before = {"PYTHON_EXEC": os.environ.get("PYTHON_EXEC"), warm_client.FOLDER: os.environ.get(warm_client.FOLDER)}
    server = subprocess.Popen(
        [python, "-P", "-m", "tests.warm_python", folder],
        stdin=subprocess.PIPE,  # it ends with us, however we end
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.environ |= {"PYTHON_EXEC": str(client), warm_client.FOLDER: str(folder)}  # the first is torchrun's
    sys.executable = str(client)
    try:
        yield
    finally:
        sys.executable = str(python)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.kill()
        server.wait()
        shutil.rmtree(folder)


class Server:
    """Forks, and says how each fork ended to the client that asked for it."""

    def __init__(self, folder: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(str(folder / warm_client.DOOR))
        self.door.listen(64)
        self.selector.register(self.door, selectors.EVENT_READ, self.open)
        self.selector.register(sys.stdin, selectors.EVENT_READ, self.close)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                key.data()

    def close(self) -> NoReturn:
        os._exit(0)

    def open(self) -> None:
        client, _ = self.door.accept()
        head, files, _, _ = socket.recv_fds(client, 8, 3)
        data, size = b"", int.from_bytes(head, "big")
        while len(data) < size:
            data += client.recv(size - len(data))
        pid = os.fork()
        if not pid:
            os.setsid()
            self.selector.close()
            self.door.close()
            kill_once_readable(client, os.getpid())
            be(json.loads(data), files)
        for file in files:
            os.close(file)
        client.sendall(pid.to_bytes(8, "big"))
        handle = os.pidfd_open(pid)

        def ended() -> None:
            self.selector.unregister(handle)
            os.close(handle)
            fcntl.fcntl(client, fcntl.F_SETFL, 0)  # what the program has left behind lives on
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with contextlib.suppress(OSError):  # the client was killed
                client.sendall(status.to_bytes(8, "big", signed=True))
            client.close()

        self.selector.register(handle, selectors.EVENT_READ, ended)


def kill_once_readable(client: socket.socket, group: int) -> None:
    """Let the kernel kill the processes of a group once the client is gone: no program outlives what it seems to be."""
    fcntl.fcntl(client, fcntl.F_SETOWN, -group)
    fcntl.fcntl(client, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(client, fcntl.F_SETFL, fcntl.fcntl(client, fcntl.F_GETFL) | os.O_ASYNC)


def be(asked: dict[str, Any], files: list[int]) -> NoReturn:
    """In the fork: be the program, and end as an interpreter does."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.umask(asked["umask"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # where that is, is asked of the environment once
    os.chdir(asked["cwd"])
    sys.path[:0] = asked["path"]
    sys.executable = str(Path(asked["environment"][warm_client.FOLDER]) / "bin" / Path(sys.executable).name)
    sys.argv = [asked["module"], *asked["argv"]]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=os.isatty(1) or stream is sys.stderr, write_through=asked["unbuffered"])
    status = 1
    try:
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # as an interpreter ends
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(status)


def main(folder: Path) -> None:
    for module in (*LIBRARIES, *OURS):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    server = Server(folder)
    facts = {"surroundings": warm_client.surroundings(os.environ), "root": str(ROOT)}
    file = folder / warm_client.FACTS
    file.with_suffix(".new").write_text(json.dumps(facts), "utf-8")
    file.with_suffix(".new").rename(file)
    server.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
