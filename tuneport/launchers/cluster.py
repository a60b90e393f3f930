"""Run a job on Kubernetes: create or adopt it, follow it and its logs, end with its result.

Whatever happens to the one who follows, there is one job: its name follows from the run, so that a launcher that was
killed and started again finds it. One that is asked to stop (SIGTERM) deletes it.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import logging
import queue
import time
import typing as t
from collections.abc import Callable, Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.launchers import causes
from tuneport.launchers.job import EVICTED, RUN, SPEC, Job, Kind, Manifest, State
from tuneport.launchers.job_events import Change, Watch
from tuneport.launchers.kubernetes_api import Api, Refused
from tuneport.launchers.pod_logs import Logs, nanoseconds
from tuneport.stage import Terminated

log = logging.getLogger("tuneport.launch")

TICK = 0.5  # seconds between two looks at what is due
SETTLE_SECONDS = 3.0  # for what pods say of their end to arrive after the job's


class NeverRan(UserError):
    """A job that did not start."""


class TooLong(UserError):
    """A job that ran for longer than it may."""


@dc.dataclass(frozen=True, kw_only=True)
class Reports:
    """Where a job's words come from and go to."""

    say: Callable[[str], None]  # gets the lines of rank 0's log
    seen: Path | None = None  # a file that keeps how far they were handed on, for a launcher that comes after this one
    left: Callable[[], Mapping[str, str]] = dict  # by pod, what its process wrote down at its end
    clear: Callable[[], object] = dict  # called before a job is created: what an earlier one wrote down goes
    abandon: Callable[[], object] = dict  # called where a job is to end and the API cannot be told


def run(
    api: Api, kind: Kind, job: Job, owner: Manifest | None, reports: Reports, *, suspend_for: str | None = None
) -> None:
    """Run a job to its end.

    ``suspend_for``: the launcher's own pod; where that is evicted or pre-empted, the job is suspended for the next one.

    Raises `UserError` with the last words of the pod that failed, or with why the job does not start. A signal that
    asks us to stop has the job deleted; an API server that is gone for long has not: the next attempt can go on.
    """
    follower = _Follower(api, kind, job, reports)
    patience = 0.0
    try:
        follower.begin(owner)
        state = follower.follow()
        patience = api.patience.last_lines
    except (Terminated, KeyboardInterrupt):
        if not (suspend_for and _is_evicted(api, suspend_for) and _suspend(api, kind, job.name)):
            _farewell(api, kind, job.name, reports)
        raise
    except (NeverRan, TooLong):
        log.warning("deleting %s %s", kind.PLURAL, job.name)
        _delete(api, kind, job.name)
        raise
    finally:
        follower.stop(patience)
    if state.phase == "failed":
        raise UserError(follower.last_words(state))
    if kind.state(follower.found).phase != "succeeded":  # it would wait for a machine that it needs no more
        try:
            _delete(api, kind, job.name)
        except UserError as e:
            log.warning("%s", e)


def _place(api: Api, kind: Kind, name: str = "") -> str:
    return api.path(kind.GROUP, kind.VERSION, kind.PLURAL, name)


def _delete(api: Api, kind: Kind, name: str, seconds: float | None = None) -> None:
    try:
        query = {"propagationPolicy": "Background"}
        api.ask(f"delete {kind.PLURAL} {name}", "DELETE", _place(api, kind, name), query, seconds=seconds)
    except Refused as e:
        if e.status != 404:
            raise


def _is_evicted(api: Api, pod: str) -> bool:
    """Whether a pod is ended by the cluster for its own reasons: a node is drained, or another pod goes before it."""
    own = api.found(f"read pod {pod}", api.path("", "v1", "pods", pod)) or {}
    conditions = own.get("status", {}).get("conditions") or []
    return any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions)


def _suspend(api: Api, kind: Kind, name: str) -> bool:
    """Suspend the job for the launcher that comes next; returns whether that was done."""
    patch = {**kind.suspension(True), "metadata": {"annotations": {EVICTED: "true"}}}
    try:
        what = f"suspend {kind.PLURAL} {name}"
        api.ask(what, "PATCH", _place(api, kind, name), body=patch, seconds=api.patience.farewell)
    except UserError as e:
        log.error("%s", e)
        return False
    log.warning("this pod is evicted: %s %s is suspended, and resumed by the next attempt", kind.PLURAL, name)
    return True


def _farewell(api: Api, kind: Kind, name: str, reports: Reports) -> None:
    """Delete the job in the time that is left to a process that was asked to stop."""
    log.warning("deleting %s %s", kind.PLURAL, name)
    try:
        _delete(api, kind, name, api.patience.farewell)
    except UserError as e:
        reports.abandon()
        log.error(
            "%s The job stays: another attempt of this run takes it over, and it goes with the run's workflow. To "
            "end it now: kubectl -n %s delete %s.%s %s",
            e,
            api.namespace,
            kind.PLURAL,
            kind.GROUP,
            name,
        )


class _Follower:
    """One job, from its creation to its end."""

    def __init__(self, api: Api, kind: Kind, job: Job, reports: Reports) -> None:
        self.api, self.kind, self.job, self.reports = api, kind, job, reports
        self.witness = causes.Witness()
        self.changes: queue.Queue[Change | UserError] = queue.Queue()
        # What may not be read is refused here, before there is a job that nobody follows.
        only = {"fieldSelector": f"metadata.name={job.name}"}
        self.jobs = Watch(api, kind.PLURAL, _place(api, kind), only)
        self.pods = Watch(api, "pods", api.path("", "v1", "pods"), {"labelSelector": kind.pods(job.name)})
        self.logs: Logs | None = None
        self.found: Manifest = {}
        self.foreign: set[str] = set()  # uids of pods of a job of this name before this one

    # -- its begin -----------------------------------------------------------------------------------------------------

    def begin(self, owner: Manifest | None) -> None:
        """Find the job or create it, and watch it."""
        manifest = self.kind.render(self.job, owner)
        self.kind.check(manifest)
        self.found = self._create_or_adopt(manifest)
        self.api.settled = True
        leader = self.kind.leader(self.found)
        self.logs = Logs(
            self.api,
            self.kind.CONTAINER,
            say=self.reports.say,
            leads=lambda pod: _matches(leader, pod),
            saved=self.reports.seen,
        )
        for pod in self.pods.objects.values():
            self._see(Change("pods", False, pod))
        self.jobs.start(self.changes)
        self.pods.start(self.changes)

    def stop(self, patience: float) -> None:
        """End all threads, those that read logs after so many seconds at the latest."""
        self.jobs.stop()
        self.pods.stop()
        if self.logs is not None:
            self.logs.end(patience)

    def _create_or_adopt(self, manifest: Manifest) -> Manifest:
        """The job of this run: one that is there already and does the same is taken, one that failed is replaced."""
        name, plural = self.job.name, self.kind.PLURAL
        until = time.monotonic() + self.api.patience.deletion
        while True:
            there = next(iter(self.jobs.objects.values()), None)
            if there is None:
                self.reports.clear()
                try:
                    created = self.api.ask(
                        f"create {plural} {name}", "POST", _place(self.api, self.kind), body=manifest
                    )
                except Refused as e:
                    if e.status != 409:
                        raise self.kind.explained(e.status, e.detail) or e from None
                    time.sleep(min(1.0, self.api.patience.poll))
                else:
                    log.info("created %s %s in %s: %d nodes", plural, name, self.api.namespace, self.job.nodes)
                    self.foreign = set(self.pods.objects)
                    return created
            elif not there["metadata"].get("deletionTimestamp"):
                _check_ours(there, manifest)
                if self.kind.state(there).phase != "failed":
                    log.info("found %s %s, started earlier for this run: going on with it", plural, name)
                    return self._resumed(there)
                log.info("%s %s of an earlier attempt has failed: replacing it", plural, name)
                _delete(self.api, self.kind, name)
            if time.monotonic() > until:
                raise UserError(
                    f"{plural} {name}: is being deleted, for {self.api.patience.deletion:.0f} s now. Look at what "
                    "holds it (its finalizers), and run the pipeline again."
                )
            if there is not None:
                time.sleep(min(1.0, self.api.patience.poll))
            self.jobs.list()
            self.pods.list()

    def _resumed(self, there: Manifest) -> Manifest:
        """A job that the launcher before this one suspended goes on."""
        if EVICTED not in (there["metadata"].get("annotations") or {}):
            return there
        name, plural = self.job.name, self.kind.PLURAL
        patch = {**self.kind.suspension(False), "metadata": {"annotations": {EVICTED: None}}}
        log.info("resuming %s %s", plural, name)
        return self.api.ask(f"resume {plural} {name}", "PATCH", _place(self.api, self.kind, name), body=patch)

    # -- its course ----------------------------------------------------------------------------------------------------

    def follow(self) -> State:
        """Wait for the end of the job; returns how it ended."""
        name, plural = self.job.name, self.kind.PLURAL
        said = ""
        waiting_since: float | None = None
        explain = self.api.patience.explain
        explained, explanation = time.monotonic(), list[str]()
        while True:
            state = self._state()
            if state.phase in ("succeeded", "failed"):
                log.info("%s %s has %s", plural, name, state.phase)
                self._settle(state)
                return state
            line = f"{state.phase}: {self.witness.counts()}"
            if line != said:
                log.info("%s %s is %s", plural, name, line)
                said = line
            now = time.monotonic()
            if state.phase == "running":
                waiting_since, explained = None, now
            elif now - explained > explain:
                explained, explain = now, min(explain * 2, 10 * self.api.patience.explain)
                if (found := causes.why_waiting(self.api, self.kind, self.found, self.witness)) != explanation:
                    explanation = found
                    log.info("%s %s is %s: %s", plural, name, state.phase, "; ".join(found))
            if state.phase == "waiting":
                waiting_since = now if waiting_since is None else waiting_since
                if now - waiting_since > self.api.patience.pending:
                    raise NeverRan(self._why_it_waits())
            else:
                waiting_since = None
            if state.phase == "running" and self._seconds() > (self.job.deadline_seconds or float("inf")):
                raise TooLong(
                    f"{plural} {name}: ran for longer than timeout={self.job.deadline_seconds}s, so it was deleted. "
                    "Its checkpoints are kept: another attempt goes on from the last. Allow it more time with timeout."
                )
            self._wait()

    def _state(self) -> State:
        """What the job says, or its pods: an operator may be slow to say that all of them run."""
        state = self.kind.state(self.found)
        if state.phase == "waiting" and self.witness.running() >= (self.job.elastic_min_nodes or self.job.nodes):
            return State("running", state.message)
        if self.job.elastic_min_nodes and state.phase in ("waiting", "running") and self.witness.is_done():
            return State("succeeded", state.message)  # without the machines that were lost
        return state

    def _seconds(self) -> float:
        """How long the job has been running, by what the cluster noted; time in a queue does not count."""
        started = (self.found.get("status") or {}).get("startTime") or self.witness.started()
        return time.time() - nanoseconds(started) / 1e9 if started else 0.0

    def _wait(self, seconds: float = TICK) -> None:
        """Take in what happened, or return after so many seconds."""
        try:
            self._take(self.changes.get(timeout=seconds))
            while True:
                self._take(self.changes.get_nowait())
        except queue.Empty:
            return

    def _settle(self, state: State) -> None:
        """Take in what pods said of their end, which may arrive after the job's."""
        until = time.monotonic() + SETTLE_SECONDS
        while state.phase == "failed" and not self.witness.endings and time.monotonic() < until:
            with contextlib.suppress(UserError):  # its job may go
                self._wait()
        for pod in (self.api.found("list pods", self.pods.path, self.pods.selector) or {}).get("items", []):
            self._see(Change("pods", False, pod))

    def _take(self, change: Change | UserError) -> None:
        if isinstance(change, UserError):
            raise change
        if change.kind == "pods":
            self._see(change)
            return
        if change.object["metadata"]["uid"] != self.found["metadata"]["uid"]:
            return  # the job before this one
        self.found = change.object
        if change.deleted or change.object["metadata"].get("deletionTimestamp"):
            raise UserError(
                f"{self.kind.PLURAL} {self.job.name}: was deleted by someone else while it ran. Run the pipeline again."
            )

    def _see(self, change: Change) -> None:
        if change.object["metadata"]["uid"] in self.foreign:
            return
        self.witness.see(change.object, change.deleted)
        if self.logs is not None:
            self.logs.follow(change.object, change.deleted)

    # -- its end -------------------------------------------------------------------------------------------------------

    def last_words(self, state: State) -> str:
        """Why the job failed."""
        logs = t.cast(Logs, self.logs)
        return causes.last_words(
            self.api,
            self.kind,
            self.found,
            state,
            witness=self.witness,
            lines=lambda uid: logs.last.get(uid, ()),
            left=self.reports.left(),
        )

    def _why_it_waits(self) -> str:
        reasons = causes.why_waiting(self.api, self.kind, self.found, self.witness)
        running, needed = self.witness.running(), self.job.elastic_min_nodes or self.job.nodes
        lines = [
            (
                f"{self.kind.PLURAL} {self.job.name}: did not start within {self.api.patience.pending:.0f} s "
                f"({running} of {needed} pods ran), so it was deleted."
            ),
            *(reasons or ["Nothing says why: no event, and no condition."]),
            f"{causes.remedy(reasons)} To wait longer: pending_timeout.",
        ]
        return "\n".join(lines)


def _check_ours(found: Manifest, wanted: Manifest) -> None:
    theirs, ours = found["metadata"], wanted["metadata"]
    if (theirs.get("labels") or {}).get(RUN) != ours["labels"][RUN]:
        raise UserError(f"{found['kind']} {ours['name']}: exists already, and is of another run. Delete it.")
    if (theirs.get("annotations") or {}).get(SPEC) != ours["annotations"][SPEC]:
        raise UserError(
            f"{found['kind']} {ours['name']}: exists already for this run, with other settings. Delete it, or start a "
            "new run."
        )


def _matches(selector: str, pod: Manifest) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, _, value in (part.partition("=") for part in selector.split(",")))
