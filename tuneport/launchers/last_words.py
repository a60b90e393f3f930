"""What a process says at its end, left where it can be read after its pod is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "TUNEPORT_LAST_WORDS"  # the places, separated by ':': folders that machines share, and files of the machine
TERMINATION_LOG = "/dev/termination-log"  # the kubelet puts what it holds into the pod's status
LONGEST = 4096  # bytes, of which the kubelet takes no more


def places(folder: Path) -> str:
    """The value of `VARIABLE` for the machines that share a folder."""
    return os.pathsep.join((str(folder), TERMINATION_LOG))


def leave(environment: Mapping[str, str], message: str) -> None:
    """Write a message to every place that there is, and may be written to: it is said anyway."""
    for place in filter(None, environment.get(VARIABLE, "").split(os.pathsep)):
        path = Path(place)
        try:
            file = path / socket.gethostname() if path.is_dir() else path
            if path.exists():
                file.write_bytes(message.encode()[:LONGEST])
        except OSError:
            continue


def read(folder: Path) -> dict[str, str]:
    """What was left in a folder, by the name of the machine, which is its pod's."""
    try:
        return {file.name: file.read_text("utf-8", "replace").strip() for file in sorted(folder.iterdir())}
    except OSError:
        return {}
