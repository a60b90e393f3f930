"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h; it outlasts exec


def signalled_at_death_of_parent(number: int, parent: int | None = None) -> Callable[[], None]:
    """What a process calls to be sent a signal when its parent ends, however that ends.

    ``parent``: the process that it should have; where that has ended already, the caller ends, too. It may be called
    between fork and exec: nothing is loaded in it. Elsewhere than on Linux it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None).prctl

    def call() -> None:
        prctl(SET_PARENT_DEATH_SIGNAL, number)
        if parent is not None and os.getppid() != parent:  # it ended before it could be asked for
            os.kill(os.getpid(), signal.SIGKILL)

    return call
