"""Runs Python programs, each in a fork of its own of a process that has imported the large libraries, but no tuneport.

`python tests/fork_server.py` reads a program a line, as JSON, and answers each with the exit status of its process.
"""

import gc
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn


class ForkServer:
    """Started once; `run` is as `subprocess.run` of ``python -c code *arguments``, without the time for the imports."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        command = [sys.executable, "-P", __file__]
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )

    def run(self, code: str, *arguments: str, input: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        self.count += 1
        files = {name: self.folder / f"{self.count}.{name}" for name in ("input", "output", "errors")}
        files["input"].write_text(input, "utf-8")
        program = {"code": code, "argv": ["-c", *arguments], "cwd": str(cwd)}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(program | {name: str(file) for name, file in files.items()}) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline()
        assert status, "the fork server has ended"
        output, errors = (files[name].read_text("utf-8") for name in ("output", "errors"))
        return subprocess.CompletedProcess([code, *arguments], int(status), output, errors)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    import mlflow  # noqa: F401
    import pandas as pd  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedModel, Trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        if not (child := os.fork()):
            run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(program: dict[str, Any]) -> NoReturn:
    """In the child: be the program, and end with it."""
    status = 1
    try:
        for descriptor, name, flags in (
            (0, "input", os.O_RDONLY),
            (1, "output", os.O_WRONLY | os.O_CREAT),
            (2, "errors", os.O_WRONLY | os.O_CREAT),
        ):
            os.dup2(os.open(program[name], flags, 0o600), descriptor)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (what was read ahead is not its own)
        os.chdir(program["cwd"])
        sys.argv[:] = program["argv"]
        sys.path.insert(0, "")
        exec(compile(program["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
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
    serve()
