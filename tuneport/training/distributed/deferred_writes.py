"""DeepSpeed's checkpoints, written outside of its collectives: inside, the others would wait there for each write."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Deferred:
    """Stands for DeepSpeed's own writer of checkpoints: keeps what it would write, until `write`."""

    def __init__(self, own: t.Any) -> None:
        self._own = own
        self._kept: list[tuple[t.Any, Path]] = []

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._own, name)

    def save(self, state_dict: t.Any, path: str) -> None:
        self._kept.append((state_dict, Path(path)))

    def write(self) -> list[Path]:
        """Write it all, and return which files; the weights must not have changed since."""
        kept, self._kept = self._kept, []
        for state, path in kept:
            self._own.save(state, str(path))
        return [path for _, path in kept]


@contextmanager
def deferred(engine: t.Any) -> Iterator[Deferred]:
    """While entered, ``engine.save_checkpoint`` of a DeepSpeed engine gathers and writes nothing; None: no engine."""
    if engine is None:
        yield Deferred(None)
        return
    own = engine.checkpoint_engine
    engine.checkpoint_engine = kept = Deferred(own)
    try:
        yield kept
    finally:
        engine.checkpoint_engine = own
