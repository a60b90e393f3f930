"""Several processes of one machine that answer the rows of a split together; the first one joins what they found.

They meet at torch's key-value store and hand over answers as files. None ever waits in a collective: whoever waits
looks again and again, for as long as the other still says that it is there.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import typing as t
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tuneport.step import Context

LOOK_SECONDS = 0.5
BEAT_SECONDS = 10.0
SILENT_SECONDS = 600.0  # after which a process that said nothing is taken for dead
START = timedelta(days=1)  # until all processes are there: the first one verifies the inputs meanwhile


class Ranks:
    """This process among those that answer rows; alone, it answers all of them."""

    def __init__(self, rank: int = 0, count: int = 1, store: t.Any = None) -> None:
        self.rank, self.count, self.store = rank, count, store
        self.folder: Path | None = None  # of the first process alone

    @classmethod
    @contextmanager
    def joined(cls, context: Context, scratch: Path) -> Iterator[Ranks]:
        """All processes of a stage, ``scratch`` being a folder of the first one's that all of them can write to."""
        if context.world_size == 1:
            yield cls()
            return
        from torch.distributed.rendezvous import rendezvous

        store, rank, count = next(rendezvous("env://", timeout=START))
        ranks, ended = cls(rank, count, store), threading.Event()
        beating = threading.Thread(target=ranks._beat, args=(ended,), daemon=True)
        beating.start()
        try:
            if rank:
                yield ranks
                return
            with tempfile.TemporaryDirectory(prefix=".answers-", dir=scratch) as folder:
                store.set("answers/folder", folder)
                ranks.folder = Path(folder)
                yield ranks
        finally:
            ended.set()
            beating.join()

    def own(self, places: Sequence[int]) -> list[int]:
        """Those of the rows that are this process's part."""
        return list(places[self.rank :: self.count])

    def all(self, name: str, holds: bool) -> bool:
        """Whether something holds for every process; asked once under each name, by all of them."""
        if self.count == 1:
            return holds
        self.store.set(f"answers/{name}/{self.rank}", str(int(holds)))
        return all(self._said(f"answers/{name}/{rank}", rank) == b"1" for rank in range(self.count))

    def alone(self) -> Ranks | None:
        """The first process by itself; None for the others, which have no part in what follows."""
        return Ranks() if self.rank == 0 else None

    def join(self, name: str, part: Sequence[t.Any]) -> list[t.Any] | None:
        """Lists of what `own` named, by all processes, as one list in the order of the rows; None but for the first."""
        if self.count == 1:
            return list(part)
        if self.rank:
            folder = Path(self._said("answers/folder", 0).decode())
            (folder / f"{name}-{self.rank}.json").write_text(json.dumps(part), encoding="utf-8")
            self.store.set(f"answers/{name}/{self.rank}", "written")
            return None
        parts = [part]
        for rank in range(1, self.count):
            self._said(f"answers/{name}/{rank}", rank)
            parts.append(json.loads((t.cast(Path, self.folder) / f"{name}-{rank}.json").read_text("utf-8")))
        return [parts[i % self.count][i // self.count] for i in range(sum(map(len, parts)))]

    def _beat(self, ended: threading.Event) -> None:
        beats = 0
        while not ended.wait(BEAT_SECONDS if beats else 0):
            beats += 1
            self.store.set(f"answers/beat/{self.rank}", str(beats))

    def _said(self, key: str, rank: int) -> bytes:
        """What a process sets under a key, waited for while it lives.

        Raises RuntimeError where it has not been heard of for `SILENT_SECONDS`.
        """
        alive = _Alive(lambda: self._get(f"answers/beat/{rank}"))
        while (found := self._get(key)) is None:
            if not alive():
                raise RuntimeError(f"process {rank} has not been heard of for {SILENT_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)
        return found

    def _get(self, key: str) -> bytes | None:
        return t.cast(bytes, self.store.get(key)) if self.store.check([key]) else None


class _Alive:
    """Whether a process still counts; one that has not begun to is not dead, as its launcher would have ended all."""

    def __init__(self, count: Callable[[], bytes | None]) -> None:
        self.count, self.last, self.since = count, count(), time.monotonic()

    def __call__(self) -> bool:
        now = self.count()
        if now != self.last or now is None:
            self.last, self.since = now, time.monotonic()
        return time.monotonic() - self.since < SILENT_SECONDS
