"""A command on a pseudo-terminal, and what its screen shows."""

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

ROWS = 80


def written(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str]
) -> tuple[int, list[bytes]]:
    """Run a command on a terminal of so many columns: its exit code, and each thing it wrote."""
    pid, main = pty.fork()
    if pid == 0:
        os.chdir(folder)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        given = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        os.execvpe(command[0], command, {**given, "TERM": "xterm-256color"})
    chunks: list[bytes] = []
    read_all(main, chunks.append)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), chunks


def screens(
    command: Sequence[str], columns: int, folder: Path, environment: Mapping[str, str]
) -> tuple[int, list[list[str]]]:
    """The same with what the screen shows after each thing."""
    code, chunks = written(command, columns, folder, environment)
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    return code, [_after(stream, screen, chunk) for chunk in chunks]


def _after(stream: pyte.ByteStream, screen: pyte.Screen, chunk: bytes) -> list[str]:
    stream.feed(chunk)
    lines = [line.rstrip() for line in screen.display]
    return lines[: max((i + 1 for i, line in enumerate(lines) if line), default=0)]


def read_all(descriptor: int, take: Callable[[bytes], object]) -> None:
    """Hand on all that a terminal shows until its last writer is gone."""
    while select.select([descriptor], [], [], 60)[0]:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            return
        if not chunk:
            return
        take(chunk)
