"""What happens to a job and its pods, as it happens: each is listed once, then watched from that list's version on."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import queue
import threading
import time
import typing as t
from collections.abc import Mapping

from urllib3.exceptions import HTTPError

from tuneport.errors import UserError
from tuneport.launchers.job import Manifest
from tuneport.launchers.kubernetes_api import Api, Lines, Refused

log = logging.getLogger("tuneport.launch")

GONE = 410  # the version is older than what the API server remembers


@dc.dataclass(frozen=True)
class Change:
    """An object that was added, changed or deleted; ``kind``: what was watched."""

    kind: str
    deleted: bool
    object: Manifest


class Watch:
    """Lists what a selector names, and puts each change from then on into a queue, from a thread of its own.

    A version that is too old, or a connection that breaks off, leads to a new list and watch. Where watching is
    refused, the list is read again every `Patience.poll` seconds. An error that does not pass is put into the queue.
    """

    def __init__(self, api: Api, kind: str, path: str, selector: Mapping[str, str]) -> None:
        self.api, self.kind, self.path, self.selector = api, kind, path, dict(selector)
        self.objects: dict[str, Manifest] = {}  # by uid, as they were last seen
        self._version = ""
        self._open: Lines | None = None
        self._done = threading.Event()
        self.list()

    def list(self) -> list[Change]:
        """Read all of it; returns what has changed since.

        Raises `UserError` where it is refused.
        """
        answer = self.api.ask(f"list {self.kind}", "GET", self.path, self.selector, ended=self._done)
        self._version = answer["metadata"].get("resourceVersion", "")
        items: dict[str, Manifest] = {item["metadata"]["uid"]: item for item in answer["items"]}
        gone = [Change(self.kind, True, item) for uid, item in self.objects.items() if uid not in items]
        new = [
            Change(self.kind, False, item)
            for uid, item in items.items()
            if uid not in self.objects or _version(self.objects[uid]) != _version(item)
        ]
        self.objects = items
        return gone + new

    def start(self, into: queue.Queue[Change | UserError]) -> None:
        """Watch, in a thread, until `stop`."""
        threading.Thread(target=self._run, args=(into,), daemon=True, name=f"watch {self.kind}").start()

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        if self._open is not None:
            self._open.cut()

    def _run(self, into: queue.Queue[Change | UserError]) -> None:
        refused = False
        while not self._done.is_set():
            began = time.monotonic()
            try:
                self._watch(into)
                refused = False
                self._done.wait(self.api.patience.backoff - (time.monotonic() - began))  # where it ends at once
                continue
            except Refused as e:
                if e.status in (401, 403) and not refused:
                    log.warning("%s They are looked at every %.0f s instead.", e, self.api.patience.poll)
                    refused = True
                wait = 0.0 if e.status == GONE else self.api.patience.poll
            except (HTTPError, OSError, ValueError) as e:
                log.debug("watch of %s: %s", self.kind, e)
                wait = self.api.patience.backoff
            if self._done.wait(max(wait, self.api.patience.backoff - (time.monotonic() - began))):
                return
            try:
                for change in self.list():
                    into.put(change)
            except UserError as e:
                if not self._done.is_set():
                    into.put(e)
                return

    def _watch(self, into: queue.Queue[Change | UserError]) -> None:
        """One watch, to its end. Raises `Refused` where it is refused or its version is too old."""
        seconds = self.api.patience.watch
        query: dict[str, str | int | bool] = {
            **self.selector,
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": self._version,
            "timeoutSeconds": max(1, round(seconds)),
        }
        self._open = self.api.lines(f"watch {self.kind}", self.path, query, silence=seconds + 30)
        if self._done.is_set():  # stopped while it was opened
            self._open.cut()
        for line in self._open:
            event = json.loads(line)
            found: Manifest = event["object"]
            if event["type"] == "ERROR":
                raise Refused(f"watch {self.kind}", found.get("code", 0), found.get("reason", ""), found["message"])
            self._version = _version(found)
            if event["type"] != "BOOKMARK":
                self._note(event["type"] == "DELETED", found)
                into.put(Change(self.kind, event["type"] == "DELETED", found))

    def _note(self, deleted: bool, found: Manifest) -> None:
        uid = found["metadata"]["uid"]
        if deleted:
            self.objects.pop(uid, None)
        else:
            self.objects[uid] = found


def _version(found: Manifest) -> str:
    return t.cast(str, found["metadata"].get("resourceVersion", ""))
