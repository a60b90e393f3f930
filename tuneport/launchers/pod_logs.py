"""Follow the logs of a job's pods: rank 0's is handed on, of the others the last lines are kept.

A log is taken up after the last line that was read, by the time stamp that the API puts before each. Stamps carry their
node's time zone and nine digits of a second; two lines may have the same one.
"""

from __future__ import annotations

import collections
import dataclasses as dc
import json
import logging
import re
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from urllib3.exceptions import HTTPError

from tuneport.artifacts import write_atomically
from tuneport.launchers.job import Manifest
from tuneport.launchers.kubernetes_api import Api, Lines, Refused

log = logging.getLogger("tuneport.launch")

LAST_LINES = 30  # of a pod's log, kept for when it fails
LONGEST_PAUSE = 30.0  # seconds between two looks at a log that has nothing to say
SAVED_EVERY = 1.0  # seconds, of how far rank 0's log was handed on
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\d*(Z|[+-]\d\d:\d\d)")


@dc.dataclass
class Place:
    """How far a log was read: the last line's time in ns since 1970, and how many lines of that time there were."""

    time: int = 0
    count: int = 0


def nanoseconds(stamp: str) -> int:
    """An RFC 3339 time stamp as ns since 1970. Raises `ValueError` for what is none."""
    if not (match := STAMP.fullmatch(stamp)):
        raise ValueError(f"{stamp!r} is not a time stamp")
    whole = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return int(whole.timestamp()) * 10**9 + int((match[2] or "").ljust(9, "0"))


class Logs:
    """The logs of a job's pods.

    ``say`` gets the lines of the pods that ``leads`` names, each once; ``saved``: a file that keeps how far they were
    handed on, so that another launcher goes on there.
    """

    def __init__(
        self,
        api: Api,
        container: str,
        say: Callable[[str], None],
        leads: Callable[[Manifest], bool],
        saved: Path | None,
    ) -> None:
        self.api, self.container, self.say, self.leads, self.saved = api, container, say, leads, saved
        self.places = _load(saved)
        self.last: dict[str, collections.deque[str]] = {}  # by the pod's uid
        self._threads: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()  # uids of pods that say no more
        self._done = threading.Event()  # the job has ended: what its pods have said is still read
        self._over = threading.Event()  # nothing is read any more
        self._open: dict[str, Lines] = {}
        self._lock = threading.Lock()
        self._saved_at = 0.0
        self._refused = False

    def follow(self, pod: Manifest, deleted: bool) -> None:
        """Read a pod's log from the moment on when its container has started; call it with each state of the pod."""
        uid, phase = pod["metadata"]["uid"], pod.get("status", {}).get("phase")
        if deleted or phase in ("Succeeded", "Failed"):
            self._ended.add(uid)
        if uid in self._threads or phase == "Pending" or self._done.is_set():
            return
        self.last[uid] = collections.deque(maxlen=LAST_LINES)
        self._threads[uid] = threading.Thread(target=self._follow, args=(pod,), daemon=True, name=f"log {uid}")
        self._threads[uid].start()

    def end(self, seconds: float) -> None:
        """Wait for the logs' last lines, so many seconds at most, and leave off."""
        until = time.monotonic() + seconds
        self._done.set()
        for thread in self._threads.values():
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self._over.set()
        for found in list(self._open.values()):
            found.cut()
        for thread in self._threads.values():
            thread.join(timeout=1.0)
        if self.saved is not None:
            self._save(self.saved)

    def _follow(self, pod: Manifest) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        shown = self.leads(pod)
        pause = self.api.patience.log_retry
        while True:
            ended = uid in self._ended or self._done.is_set()
            try:
                for line in self._lines(uid, name):
                    pause = self.api.patience.log_retry
                    self.last[uid].append(line)
                    if shown:
                        self.say(line)
                        self._keep()
            except Refused as e:
                if e.status in (401, 403) and not self._refused:
                    self._refused = True
                    log.warning("%s The job goes on, but its log is not shown here.", e)
                log.debug("log of %s: %s", name, e)
            except (HTTPError, OSError, ValueError) as e:
                log.debug("log of %s: %s", name, e)
            if ended or self._over.is_set():
                return
            if uid not in self._ended:
                self._done.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _lines(self, uid: str, name: str) -> Iterator[str]:
        """The lines after those that were read, until the container ends or the stream breaks off."""
        place = self.places.setdefault(uid, Place())
        query: dict[str, str | bool] = {"container": self.container, "follow": True, "timestamps": True}
        if place.time:  # of whole seconds, and by the API's clock, not by ours
            query["sinceTime"] = datetime.fromtimestamp(place.time // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = self.api.path("", "v1", "pods", name, "log")
        self._open[uid] = found = self.api.lines(f"read the log of {name}", path, query, self.api.patience.log_silence)
        seen = place.count  # lines of the last line's time, which are sent again
        last = place.time
        for line in found:
            stamp, _, text = line.decode("utf-8", "replace").rstrip("\r").partition(" ")
            at = nanoseconds(stamp)
            if at < last:
                continue
            if at == last and seen:
                seen -= 1
                continue
            if self._over.is_set():
                return
            place.count = place.count + 1 if at == place.time else 1
            place.time = at
            yield text

    # -- for the launcher that comes after this one --------------------------------------------------------------------

    def _keep(self) -> None:
        if self.saved is not None and time.monotonic() - self._saved_at > SAVED_EVERY:
            self._saved_at = time.monotonic()
            self._save(self.saved)

    def _save(self, file: Path) -> None:
        with self._lock:
            places = {uid: dc.astuple(place) for uid, place in list(self.places.items()) if place.time}
            try:
                write_atomically(file, json.dumps(places))
            except OSError as e:
                log.debug("%s: %s", file, e)


def _load(file: Path | None) -> dict[str, Place]:
    try:
        found: dict[str, t.Any] = json.loads(file.read_text("utf-8")) if file else {}
        return {uid: Place(int(time), int(count)) for uid, (time, count) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
