"""How many rows are done, logged every two seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("tuneport.preprocess")
PROGRESS_SECONDS = 2.0


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Log nothing below this level of preparing rows: whoever looks at some of them says it in other words."""
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


class RowProgress:
    """Logs ``[done/total] …`` with rows a second, every two seconds."""

    def __init__(self, doing: str, total: int | None = None) -> None:
        self.doing, self.total, self.done = doing, total, 0
        self.started = self.logged = time.monotonic()

    def advance(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if now - self.logged < PROGRESS_SECONDS:
            return
        self.logged = now
        rate = f"{self.done / (now - self.started):,.0f} rows/s"
        if self.total is None:
            log.info("%s: %s rows, %s", self.doing, f"{self.done:,}", rate)
        else:
            log.info("[%d/%d] %s, %s", self.done, self.total, self.doing, rate)
