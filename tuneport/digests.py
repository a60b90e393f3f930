"""SHA-256 of files: as they are written, several at once, and not again of a file that is known not to have changed.

What was found stands in memory and, where a record is named, in a file of lines that other processes of this machine
read. A file counts as unchanged while device, inode, size and both times are as they were; every write changes a time.
"""

from __future__ import annotations

import dataclasses as dc
import hashlib
import io
import json
import os
import platform
import time
import typing as t
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

BLOCK = 1 << 20
SMALL = 1 << 20  # bytes; a smaller file is read again each time, as that costs nothing
# The clock of a file system stands still for some milliseconds, or for a second or two where it knows no fractions of
# one; a second write within that changes no time. In nanoseconds:
SETTLED, SETTLED_COARSE = 20_000_000, 2_000_000_000
SECOND = 1_000_000_000
BOOT = Path("/proc/sys/kernel/random/boot_id")
VARIABLE = "TUNEPORT_DIGESTS"  # names the record to a stage of a run


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dc.dataclass(frozen=True, kw_only=True)
class _Known:
    """What a file was when its digest was found, and when that was; times in nanoseconds."""

    size: int
    written: int
    changed: int
    seen: int
    sha256: str

    def is_of(self, now: os.stat_result) -> bool:
        same = (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (self.size, self.written, self.changed)
        return same and self.seen - self.written > (SETTLED if self.written % SECOND else SETTLED_COARSE)


class KnownDigests:
    """Digests of large files, by device and inode."""

    def __init__(self) -> None:
        self.files: dict[tuple[int, int], _Known] = {}
        self.record: Path | None = None

    def of(self, path: Path) -> str:
        """A file's SHA-256: as it is known, or read now."""
        before = path.stat()
        if before.st_size < SMALL:
            return sha256(path)
        known = self.files.get((before.st_dev, before.st_ino))
        if known is not None and known.is_of(before):
            return known.sha256
        seen = time.time_ns()
        found = sha256(path)
        after = path.stat()
        if (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns):
            self._keep(after, found, seen)
        return found

    def note(self, path: Path, digest: str) -> None:
        """Keep the digest of a file that this process has just written and closed."""
        now = path.stat()
        self._keep(now, digest, now.st_mtime_ns + SETTLED_COARSE + 1)

    def read_own(self, path: Path) -> None:
        """Read such a file and keep its digest: what writes it hashes nothing."""
        self.note(path, sha256(path))

    @contextmanager
    def carried(self, path: Path) -> Iterator[None]:
        """While entered, only a file's mode or number of names changes, and so one of its times, but no byte of it."""
        before = path.stat()
        known = self.files.get((before.st_dev, before.st_ino))
        yield
        after = path.stat()
        if known is not None and known.is_of(before) and after.st_mtime_ns == before.st_mtime_ns:
            self._keep(after, known.sha256, known.seen)

    def _keep(self, status: os.stat_result, digest: str, seen: int) -> None:
        if status.st_size < SMALL:
            return
        place = (status.st_dev, status.st_ino)
        known = _Known(
            size=status.st_size, written=status.st_mtime_ns, changed=status.st_ctime_ns, seen=seen, sha256=digest
        )
        self.files[place] = known
        if self.record is not None:
            line = json.dumps([_boot(), *place, *dc.astuple(known)]) + "\n"
            with suppress(OSError), self.record.open("a", encoding="ascii") as f:  # a full disk costs a reading later
                f.write(line)  # in one piece, as several processes may do so

    def read(self, record: Path) -> None:
        """Take what a record says of this machine since it was started; damaged lines say nothing."""
        try:
            lines = record.read_text("ascii", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                boot, device, inode, size, written, changed, seen, digest = json.loads(line)
                known = _Known(size=size, written=written, changed=changed, seen=seen, sha256=digest)
            except (ValueError, TypeError):
                continue
            if boot == _boot() and len(str(digest)) == len(hashlib.sha256().hexdigest()):
                self.files[device, inode] = known


known = KnownDigests()  # of this process: facts about files, which no caller needs to hand on


def _boot() -> str:
    """This machine since it was started: numbers of devices hold no longer. A container has its machine's."""
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:
        return platform.node()


@contextmanager
def recorded(record: Path | None) -> Iterator[None]:
    """While entered, digests are taken from a record and added to it; None: each file is read by this process."""
    if record is None:
        yield
        return
    try:
        record.touch()
    except OSError:  # a read-only volume
        yield
        return
    known.read(record)
    before, known.record = known.record, record
    try:
        yield
    finally:
        known.record = before


def of_all(paths: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of files by path, in their order; several are read at once."""
    files = list(paths)
    with ThreadPoolExecutor(_threads(), thread_name_prefix="sha256") as threads:
        return dict(zip(files, threads.map(known.of, files), strict=True))


def _threads() -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


class HashedFile(io.RawIOBase):
    """A new file whose digest is made as it is written, by a thread beside the one that writes; closing it notes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb", buffering=0)
        self.digest = hashlib.sha256()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")

    def writable(self) -> bool:
        return True

    def write(self, data: t.Any) -> int:
        """Write all of ``data``, which may change once this returns."""
        view = memoryview(data).cast("B")
        hashed: Future[None] | None = None
        if len(view) >= BLOCK:
            hashed = self.thread.submit(self.digest.update, view)
        else:
            self.digest.update(view)
        rest = view
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        finally:
            if hashed is not None:
                hashed.result()
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.thread.shutdown()
            self.file.close()
            known.note(self.path, self.digest.hexdigest())
        finally:
            super().close()
