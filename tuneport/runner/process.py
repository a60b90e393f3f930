"""Run one stage as a process of its own: its output line by line, and one chance to clean up when we are stopped."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
import types
import typing as t
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tuneport.launchers.parent_death import signalled_at_death_of_parent
from tuneport.secrets import credentials, masked

PASSED_ON = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
LONGEST_LINE = 1 << 16
WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGUSR1: "asked to stop",
    signal.SIGHUP: "the terminal was closed",
}


class Interrupted(BaseException):
    """A signal stopped the run, and no stage is running any more."""

    def __init__(self, number: int) -> None:
        super().__init__(WORDS[signal.Signals(number)])
        self.signal = number


class Signals:
    """While entered: the first signal goes on to the running stage, the next one kills it and all it started.

    A stage is a process group of its own, so that a Ctrl-C at the terminal reaches it once, from here.
    """

    def __init__(
        self,
        on_first: Callable[[str], None],
        lock: int,
        send: Callable[[subprocess.Popen[bytes], int], None],
        kill: Callable[[subprocess.Popen[bytes]], None],
    ) -> None:
        self.on_first = on_first
        self.lock = lock  # a stage holds it, too: it may outlive us
        self.send, self.kill = send, kill
        self.received: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.starting = False
        self.previous: dict[int, t.Any] = {}

    def __enter__(self) -> t.Self:
        for number in PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and shells' background jobs, mean it
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def raise_if_received(self) -> None:
        """Raise `Interrupted` if a signal came while a stage ran."""
        if self.received is not None:
            raise Interrupted(self.received)

    def start(self, argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        self.starting = True
        try:
            self.process = subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=(self.lock,),
                # Killed, we can ask it for nothing: the kernel asks it to stop, which it does as for a signal from us.
                preexec_fn=signalled_at_death_of_parent(signal.SIGTERM, os.getpid()),  # noqa: PLW1509  (loads nothing)
            )
        finally:
            self.starting = False
        write_holders(self.lock, os.getpid(), self.process.pid)
        if self.received is not None:
            self.send(self.process, PASSED_ON[signal.Signals(self.received)])
        return self.process

    def ended(self) -> None:
        self.process = None

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        again = self.received is not None
        self.received = self.received or number
        if self.process is None:
            if not self.starting:
                raise Interrupted(number)
        elif again:
            self.kill(self.process)
        else:
            self.send(self.process, PASSED_ON[signal.Signals(number)])
            self.on_first(WORDS[signal.Signals(number)])


def write_holders(lock: int, *pids: int) -> None:
    """Write into a run's lock which processes hold it."""
    os.truncate(lock, 0)
    os.pwrite(lock, "\n".join(map(str, pids)).encode(), 0)


def holders(lock: int) -> list[int]:
    """The processes that hold a run's lock and are there, the run itself first."""
    return [pid for pid in map(int, re.findall(rb"\d+", os.pread(lock, 100, 0))) if _is_there(pid)]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone; no number of a process, as the file was damaged
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def kill_group(pid: int) -> None:
    """Kill a stage and every process it started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], None],
    signals: Signals,
) -> int:
    """Run a command to its end; its output goes line by line to ``log`` and to ``on_line``, without the secrets of
    addresses and of its environment. Returns its exit code, negative where a signal ended it.

    Raises `OSError` where it cannot be started or the log cannot be opened.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    known = credentials(environment)

    def shown(line: bytes) -> bytes:
        return masked(line.decode("utf-8", "surrogateescape"), known).encode("utf-8", "surrogateescape")

    with log.open("wb") as sink:
        sink.write(shown(f"$ {shlex.join(argv)}\n".encode("utf-8", "surrogateescape")))
        sink.flush()
        process = signals.start(argv, environment)
        reader = threading.Thread(target=_read, args=(process.stdout, sink, on_line, shown), daemon=True)
        reader.start()
        try:
            code = process.wait()
        finally:
            signals.ended()
        reader.join(timeout=2)
        if reader.is_alive():  # something that the stage left behind holds its output open
            kill_group(process.pid)
            reader.join(timeout=2)
    return code


def _read(
    source: t.BinaryIO, sink: t.BinaryIO, on_line: Callable[[str], None], shown: Callable[[bytes], bytes]
) -> None:
    """Copy a stage's output; never stops reading, as a stage whose output nobody reads stands still."""
    pending = b""
    while chunk := source.read1(LONGEST_LINE):  # type: ignore[attr-defined]
        *lines, pending = re.split(rb"(?<=[\r\n])(?![\r\n])", pending + chunk)
        if len(pending) > LONGEST_LINE:
            lines, pending = [*lines, pending], b""
        _copy([shown(line) for line in lines], sink, on_line)
    _copy([shown(pending)], sink, on_line)


def _copy(lines: Sequence[bytes], sink: t.BinaryIO, on_line: Callable[[str], None]) -> None:
    with suppress(OSError, ValueError):  # the disk is full, or the run is over
        sink.write(b"".join(lines))
        sink.flush()
    for line in lines:
        _show(line.rstrip(b"\r\n"), on_line)


def _show(line: bytes, on_line: Callable[[str], None]) -> None:
    if not line.strip():
        return
    with suppress(OSError, ValueError):  # whoever read our output may be gone
        on_line(line.decode(errors="replace"))
