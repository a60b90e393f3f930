"""What Ctrl-C does while a command's modules are imported: the process ends with one line. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED = 130  # Ctrl-C


@contextmanager
def ends_quietly() -> Iterator[None]:
    """While entered, SIGINT ends the process with one line: there is no work yet."""

    def end(signum: int, frame: types.FrameType | None) -> None:
        os.write(2, b"error: interrupted\n")
        raise SystemExit(EXIT_INTERRUPTED)

    previous = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
