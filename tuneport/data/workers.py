"""Work on the items of a stream in several processes, with the results in the order of the items.

Threads would not do: most of what preparing a row takes is Python. The processes are forks, as what they work with, an
encoder of a task, cannot be sent to another process. Each goes through the whole stream and works on every n-th item.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import select
import signal
import struct
import traceback
import typing as t
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneport.errors import UserError

log = logging.getLogger("tuneport.preprocess")

Buffer: t.TypeAlias = "bytes | bytearray | memoryview"
T = t.TypeVar("T")
R = t.TypeVar("R")

CGROUP = Path("/sys/fs/cgroup/cpu.max")
PATIENCE = 120.0  # seconds without a sign from a process, after which its items are worked on here
PIPE_BYTES = 1 << 20  # that a process may be ahead
HEADER = struct.Struct("<BQ")  # what follows, and its size
RESULT, MISTAKE, DEFECT = range(3)


def cores() -> int:
    """How many CPUs this process may use: by its affinity, and by its cgroup's share of them."""
    if not hasattr(os, "sched_getaffinity"):
        return 1  # a fork is not safe there
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP.read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


@dataclass(frozen=True, kw_only=True)
class Work(t.Generic[T, R]):
    """What is made of an item, and how that travels from one process to another."""

    make: Callable[[T], R]
    pack: Callable[[R], Buffer]
    unpack: Callable[[Buffer], R]


def mapped(
    work: Work[T, R], source: Callable[[], Iterator[T]], processes: int, *, theirs: Callable[[int, int], Iterator[T]]
) -> Generator[tuple[T, R], None, None]:
    """Each item that ``source`` gives, with what is made of it, in order; with one process all happens here.

    ``theirs`` gives the other processes the same items; it is told the first one that a process works on, and how many
    it goes on by each time. What the work raises is raised here, at its item: a `UserError`
    as that, anything else as a RuntimeError with its traceback. Where a process ends or says nothing for `PATIENCE`
    seconds, its items are worked on here.
    """
    workers = [] if processes < 2 else _forked(work, theirs, processes)
    try:
        for number, item in enumerate(source()):
            found = workers[number % processes].receive() if workers else None
            yield item, work.make(item) if found is None else work.unpack(found)
    finally:
        for worker in workers:
            worker.end()


@contextlib.contextmanager
def aside(work: Work[None, R], processes: int) -> Iterator[Callable[[], R]]:
    """What another process makes from now on, given by a function that waits for it.

    With one process it is made here when it is asked for, and so it is where the other process is lost. Raises as
    `mapped` does.
    """
    workers = [] if processes < 2 else _forked(work, lambda *_: iter([None]), 1)

    def made() -> R:
        found = workers[0].receive() if workers else None
        return work.make(None) if found is None else work.unpack(found)

    try:
        yield made
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that works on every n-th item, as its parent sees it."""

    def __init__(self, process: int, pipe: int) -> None:
        self.process, self.pipe, self.lost = process, pipe, False

    def receive(self) -> Buffer | None:
        """The result of its next item; None where it is lost. Raises what the work raised."""
        if self.lost:
            return None
        try:
            kind, size = HEADER.unpack(self._read(HEADER.size))
            data = self._read(size)
        except EOFError as e:
            log.warning("a process that prepares rows %s; its rows are prepared here", e)
            self.lost = True
            return None
        if kind == RESULT:
            return data
        raise (UserError if kind == MISTAKE else RuntimeError)(data.decode("utf-8", "surrogatepass"))

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            if not select.select([self.pipe], [], [], PATIENCE)[0]:
                raise EOFError(f"says nothing for {PATIENCE:.0f} seconds")
            found = os.readv(self.pipe, [rest])
            if not found:
                raise EOFError("has ended early")
            rest = rest[found:]
        return data

    def end(self) -> None:
        os.close(self.pipe)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def _forked(work: Work[T, R], source: Callable[[int, int], Iterator[T]], processes: int) -> list[_Worker]:
    workers: list[_Worker] = []
    for number in range(processes):
        read, write = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # a user's pipes have so much memory in all, and no more
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the tokenizers' are not used then
                process = os.fork()
        except OSError as e:
            log.warning("rows are prepared by one process, as no other can be started (%s)", e.strerror)
            os.close(read)
            os.close(write)
            for worker in workers:
                worker.end()
            return []
        if not process:
            for pipe in (read, *(worker.pipe for worker in workers)):
                os.close(pipe)  # so that writing fails when the parent is gone
            _run(work, source, number, processes, write)
        os.close(write)
        workers.append(_Worker(process, read))
    return workers


def _run(work: Work[T, R], source: Callable[[int, int], Iterator[T]], first: int, step: int, pipe: int) -> t.NoReturn:
    """What a forked process does; nothing of its parent's is finished or closed by it."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the parent are not here
        gc.freeze()  # what the parent has imported is not gone through, nor copied for that
        for kind, data in _results(work, source(first, step), first, step):
            _send(pipe, kind, data)
    except OSError:
        pass  # the parent needs no more
    finally:
        os._exit(0)


def _results(work: Work[T, R], items: Iterator[T], first: int, step: int) -> Iterator[tuple[int, Buffer]]:
    """Of each own item what is made of it, up to the first that nothing can be made of, or that cannot be had."""
    try:
        for number, item in enumerate(items):
            if number % step == first:
                yield RESULT, work.pack(work.make(item))
    except UserError as e:
        yield MISTAKE, str(e).encode("utf-8", "surrogatepass")
    except Exception:
        yield DEFECT, traceback.format_exc().encode("utf-8", "surrogatepass")


def _send(pipe: int, kind: int, data: Buffer) -> None:
    for part in (HEADER.pack(kind, len(data)), data):
        view = memoryview(part)
        while view:
            view = view[os.write(pipe, view) :]
