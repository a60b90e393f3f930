"""The `sys.executable` of slow tests: hands a stage to the server in `warm_python.py`, and starts Python for all else.

A program is forked there only where that makes no difference: ``python -m steps …`` and ``-m pipelines run …`` of this
checkout, by the same user, in the same namespaces and with the same limits as the server, and where no variable differs
that libraries read as they are imported. What is asked of this process by a signal, or by its death, its program gets.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

FOLDER = "TUNEPORT_WARM_PYTHON"  # names the folder of the server's socket
DOOR, FACTS = "door", "facts.json"
RANK = "TUNEPORT_LAUNCHED"  # set for what dies with its launcher
READ_BY_IMPORTS = (  # and left alone by what pytest's own process has imported
    *(
        "FSSPEC",
        "HOME",
        "HF_DATASETS",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB",
        "LANG",
        "LC_",
        "LD_",
        "MALLOC",
        "MKL",
        "OMP",
        "OPENBLAS",
    ),
    *("PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONWARNINGS", "TORCHDYNAMO", "TRANSFORMERS", "TRITON", "TZ", "XDG"),
)
LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def surroundings(environment: Mapping[str, str]) -> dict[str, Any]:
    """What must be alike here and in the server, as JSON gives it back."""
    top = Path("/").stat()
    return {
        "variables": {name: value for name, value in environment.items() if name.startswith(READ_BY_IMPORTS)},
        "limits": [list(resource.getrlimit(limit)) for limit in LIMITS],
        "namespaces": [str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("mnt", "net", "pid", "user")],
        "user": [os.geteuid(), os.getegid(), top.st_dev, top.st_ino],
    }


def program(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What is to be run, where the server runs such."""
    flags = [word for word in argv[:2] if word in ("-P", "-u")]
    words = list(argv[len(flags) :])
    if (words[:2] != ["-m", "steps"] and words[:3] != ["-m", "pipelines", "run"]) or {"-h", "--help"} & {*words}:
        return None
    unbuffered = "-u" in flags or bool(environment.get("PYTHONUNBUFFERED"))
    return {"module": words[1], "argv": words[2:], "safe_path": "-P" in flags, "unbuffered": unbuffered}


def request(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What the server is asked for, None where Python itself is to be started."""
    found = program(argv, environment)
    if found is None or not environment.get(FOLDER):
        return None
    facts = Path(environment[FOLDER]) / FACTS
    while not facts.exists():  # it is importing
        if not facts.parent.exists():
            return None
        time.sleep(0.1)
    server = json.loads(facts.read_text("utf-8"))
    entries = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first = [] if found["safe_path"] else [str(Path.cwd())]
    brings = ("sitecustomize.py", "tuneport", "steps", "pipelines")
    others = [
        entry for entry in (*first, *entries) if not Path(entry).exists() or not Path(entry).samefile(server["root"])
    ]
    if surroundings(environment) != server["surroundings"]:
        return None
    if any((Path(entry) / name).exists() for entry in others for name in brings):
        return None
    ignored = [int(number) for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    os.umask(umask := os.umask(0))
    return {
        **found,
        "path": [*first, *entries],
        "environment": dict(environment),
        "cwd": str(Path.cwd()),
        "ignored": ignored,
        "umask": umask,
    }


def ask(asked: Mapping[str, Any], door: socket.socket) -> NoReturn:
    """Be the program that the server forks, as far as others see."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    if RANK in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    data = json.dumps(asked).encode()
    socket.send_fds(door, [len(data).to_bytes(8, "big")], [0, 1, 2])
    door.sendall(data)
    pid = int.from_bytes(door.recv(8), "big")
    for number in {*FORWARDED} - {*asked["ignored"]}:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    status = int.from_bytes(door.recv(8), "big", signed=True)
    if status < 0:
        if status not in (-signal.SIGKILL, -signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), -status)
    os._exit(status)


def main() -> NoReturn:
    asked = request(sys.argv[1:], os.environ)
    if asked is not None:
        door = socket.socket(socket.AF_UNIX)
        door.connect(str(Path(os.environ[FOLDER]) / DOOR))
        ask(asked, door)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
