"""Wait for another process's disk, however long that takes, as long as the process lives.

A collective operation has a timeout, and whoever waits in one cannot tell slow from dead. So no process waits in one
for another's files, digests or saves: it asks a key-value store for a word of the other, again and again. Each process
also counts up a number there every few seconds; where that number stands still for long, the wait ends with an error.

The store is the one through which the processes found each other (torch's rendezvous: a TCPStore of the launcher or of
rank 0). It answers at once and alike on every machine. Files in the output folder would need neither, but on a network
disk other machines may see a file seconds late, and clocks differ, so that nothing there tells whether a process lives.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import typing as t
from collections import Counter
from datetime import timedelta

from tuneport.errors import UserError

Store = t.Any  # torch.distributed.Store

SILENT_SECONDS = 1800.0  # without a sign of life: more than any one write of a large file, which may hold the GIL
SILENT_SECONDS_AFTER_AN_ERROR = 15.0  # less than a launcher's patience with the processes that are left
SIGN_SECONDS = 2.0  # between signs of life
LONGEST_PAUSE = 0.25  # between two questions, in seconds
MEETING = timedelta(days=7)  # rank 0 may be at the digests of a large base model when others ask for the store


class Peers:
    """The processes that train together, as one of them sees the others; one alone waits for nobody.

    What is said has a name; said again under the same name, it is another word, heard in the same order.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Store | None = None, *, silent: float | None = None
    ) -> None:
        self.rank, self.size = rank, size
        self.silent_seconds = SILENT_SECONDS if silent is None else silent
        self._store = store
        self._said: Counter[str] = Counter()
        self._heard: Counter[tuple[int, str]] = Counter()
        self._ended = threading.Event()
        self._signs: threading.Thread | None = None
        if store is not None and size > 1:
            self._signs = threading.Thread(target=self._give_signs, name="signs of life", daemon=True)
            self._signs.start()

    def say(self, what: str, value: t.Any = None) -> None:
        """Let the others know; ``value`` is anything that JSON holds."""
        self._said[what] += 1
        if self._store is not None:
            self._store.set(_key(self.rank, what, self._said[what]), json.dumps(value))

    def hear(self, rank: int, what: str) -> t.Any:
        """What a process says under that name; waits for it.

        Raises `UserError` where that process gives no sign of life for long.
        """
        self._heard[rank, what] += 1
        key, store, pause = _key(rank, what, self._heard[rank, what]), self._asked(), 0.001
        sign, since = b"", time.monotonic()
        while not store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            last, sign = sign, _sign(store, rank)
            if sign != last:
                since = time.monotonic()
            elif (silent := time.monotonic() - since) > self.silent_seconds:
                raise UserError(
                    f"rank {rank}: has given no sign of life for {silent:.0f} seconds while rank {self.rank} waited "
                    f"for it ({what}). Look at that process's log, its machine and its disk; "
                    "resume_from_checkpoint=true goes on from the last checkpoint."
                )
        return json.loads(store.get(key))

    def gather(self, what: str, value: t.Any = None) -> list[t.Any]:
        """Say a value and hear those of all, by rank."""
        if self.size == 1:
            return [value]
        self.say(what, value)
        return [self.hear(rank, what) for rank in range(self.size)]

    def share(self, what: str, value: t.Any) -> t.Any:
        """Rank 0's value; that of the others is not looked at."""
        if self.size == 1:
            return value
        if self.rank == 0:
            self.say(what, value)
        return self.hear(0, what)

    def meet(self, what: str) -> None:
        """Wait until all are here."""
        self.gather(what)

    def hurry(self) -> None:
        """After an error: another process may be dead, and whoever launched this one ends it soon."""
        self.silent_seconds = min(self.silent_seconds, SILENT_SECONDS_AFTER_AN_ERROR)

    def leave(self) -> None:
        """Say no more; rank 0, which may hold the store, leaves last."""
        if self._store is None:
            return
        self.say("goodbye")
        if self.rank == 0:
            self.hurry()  # all that they waited for is there
            with contextlib.suppress(UserError):  # whoever launched it says that a process has died
                for rank in range(1, self.size):
                    self.hear(rank, "goodbye")
        self._ended.set()
        if self._signs is not None:
            self._signs.join()

    def _asked(self) -> Store:
        if self._store is None:
            raise RuntimeError("a process alone waits for no other")
        return self._store

    def _give_signs(self) -> None:
        number = 0
        while not self._ended.wait(SIGN_SECONDS):
            number += 1
            try:
                self._asked().set(_sign_key(self.rank), str(number))
            except Exception:  # the store is gone, and whoever waits says so
                return


def join(world_size: int, timeout: timedelta, backend: str) -> Peers:
    """Find the other processes, wait until all are here, and start the group whose collectives have that timeout."""
    import torch

    if world_size == 1:
        return Peers()
    distributed: t.Any = torch.distributed
    store, rank, size = next(iter(distributed.rendezvous("env://", timeout=MEETING)))
    peers = Peers(rank, size, distributed.PrefixStore("tuneport", store))
    peers.meet("start")
    own = distributed.PrefixStore("group", store)
    distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)
    return peers


def _key(rank: int, what: str, number: int) -> str:
    return f"said/{rank}/{number}/{what}"


def _sign_key(rank: int) -> str:
    return f"alive/{rank}"


def _sign(store: Store, rank: int) -> bytes:
    """A process's last sign of life."""
    return bytes(store.get(_sign_key(rank))) if store.check([_sign_key(rank)]) else b""
