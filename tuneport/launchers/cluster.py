"""Run a job on Kubernetes: create or adopt it, follow it and its log, end with its result.

Whatever happens to the one who follows, there is one job: its name follows from the run, so that a launcher that was
killed and started again finds it. One that is asked to stop (SIGTERM) deletes it.
"""

from __future__ import annotations

import dataclasses as dc
import logging
import os
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

from urllib3.exceptions import HTTPError

from tuneport.errors import UserError
from tuneport.launchers.job import RUN, SPEC, Job, Kind, Manifest, State
from tuneport.stage import Terminated

log = logging.getLogger("tuneport.launch")

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUT = (10, 60)  # seconds to connect and between bytes
LAST_LINES = 30  # of a failing pod's log
PENDING_SECONDS = 1800.0
TRANSIENT = (429, 500, 502, 503, 504)


@dc.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the launcher waits for what, in seconds."""

    pending: float = PENDING_SECONDS  # until a pod of the job runs; time in a queue does not count
    watch: float = 30.0  # for a change, before the job is looked at anyway
    deletion: float = 120.0  # for a job that is to make room for a new one
    retries: int = 10  # of a request that met a transient error, at growing intervals
    backoff: float = 0.5
    log_retry: float = 2.0


class NeverRan(UserError):
    """No pod of a job could start."""


class Cluster:
    """The Kubernetes API, as far as a launcher needs it."""

    def __init__(self, namespace: str | None = None, patience: Patience | None = None) -> None:
        from kubernetes import client, config
        from urllib3.util import Retry

        self.patience = patience or Patience()
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            try:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
            except (config.ConfigException, OSError) as e:
                raise UserError(
                    f"no Kubernetes API: this is no pod of a cluster, and there is no kubeconfig ({e})."
                ) from None
        settings.retries = Retry(
            total=self.patience.retries,
            backoff_factor=self.patience.backoff,
            backoff_max=30,
            status_forcelist=TRANSIENT,
            allowed_methods=None,  # creating twice ends in a conflict, which is handled
            raise_on_status=False,
        )
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._client = client.ApiClient(settings)
        self.objects = client.CustomObjectsApi(self._client)
        self.core = client.CoreV1Api(self._client)
        self.namespace = namespace or _namespace()

    def owner(self, pod: str | None) -> Manifest | None:
        """What owns a pod, the workflow of its run, as an owner reference: the job goes when that goes."""
        from kubernetes.client import ApiException

        if not pod:
            return None
        try:
            references = self.core.read_namespaced_pod(pod, self.namespace, _request_timeout=TIMEOUT)
        except ApiException as e:
            log.warning("the job has no owner, as pod %s cannot be read (%s)", pod, e.reason)
            return None
        found = references.metadata.owner_references or []
        if not found:
            return None
        first = found[0]
        return {"apiVersion": first.api_version, "kind": first.kind, "name": first.name, "uid": first.uid}


def _namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text("utf-8").strip()
    except OSError:
        from kubernetes import config

        context = config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))[1]
        return t.cast(str, context["context"].get("namespace", "default"))


def run(cluster: Cluster, kind: Kind, job: Job, owner: Manifest | None, say: Callable[[str], None]) -> None:
    """Run a job to its end; ``say`` gets the lines of rank 0's log.

    Raises `UserError` with the last words of the pod that failed, or with why no pod can start. A signal that asks us
    to stop has the job deleted; an API server that is gone for long has not, so that the next attempt can go on.
    """
    found = _create_or_adopt(cluster, kind, job, owner)
    done = threading.Event()
    reader = threading.Thread(target=_follow_log, args=(cluster, kind.leader(found), say, done), daemon=True)
    reader.start()
    try:
        state = _follow(cluster, kind, job.name)
    except (Terminated, KeyboardInterrupt, NeverRan):
        log.warning("deleting %s %s", kind.PLURAL, job.name)
        _delete(cluster, kind, job.name)
        raise
    finally:
        done.set()
    reader.join(timeout=cluster.patience.log_retry * 5)
    if state.phase == "failed":
        raise UserError(_last_words(cluster, kind, job.name, state))


def _create_or_adopt(cluster: Cluster, kind: Kind, job: Job, owner: Manifest | None) -> Manifest:
    """The job of this run: one that is there already and does the same is taken, one that failed is replaced."""
    from kubernetes.client import ApiException

    manifest = kind.render(job, owner)
    kind.check(manifest)
    until = time.monotonic() + cluster.patience.deletion
    while True:
        try:
            created = cluster.objects.create_namespaced_custom_object(
                *_place(cluster, kind), manifest, _request_timeout=TIMEOUT
            )
        except ApiException as e:
            if e.status != 409:
                raise _refused(e, f"create {kind.PLURAL} {job.name}") from None
        except HTTPError as e:
            raise _unreachable(e) from None
        else:
            log.info("created %s %s in %s: %d nodes", kind.PLURAL, job.name, cluster.namespace, job.nodes)
            return t.cast(Manifest, created)
        found = _read(cluster, kind, job.name)
        if found is not None and not found["metadata"].get("deletionTimestamp"):
            _check_ours(found, manifest)
            if kind.state(found).phase != "failed":
                log.info("found %s %s, started earlier for this run: going on with it", kind.PLURAL, job.name)
                return found
            log.info("%s %s of an earlier attempt has failed: replacing it", kind.PLURAL, job.name)
            _delete(cluster, kind, job.name)
        if time.monotonic() > until:
            raise UserError(
                f"{kind.PLURAL} {job.name}: is being deleted, for {cluster.patience.deletion:.0f} s now. Look at what "
                "holds it (its finalizers), and run the pipeline again."
            )
        time.sleep(min(1.0, cluster.patience.watch))


def _check_ours(found: Manifest, wanted: Manifest) -> None:
    theirs, ours = found["metadata"], wanted["metadata"]
    if (theirs.get("labels") or {}).get(RUN) != ours["labels"][RUN]:
        raise UserError(f"{found['kind']} {ours['name']}: exists already, and is of another run. Delete it.")
    if (theirs.get("annotations") or {}).get(SPEC) != ours["annotations"][SPEC]:
        raise UserError(
            f"{found['kind']} {ours['name']}: exists already for this run, with other settings. Delete it, or start a "
            "new run."
        )


def _place(cluster: Cluster, kind: Kind) -> tuple[str, str, str, str]:
    return kind.GROUP, kind.VERSION, cluster.namespace, kind.PLURAL


def _read(cluster: Cluster, kind: Kind, name: str) -> Manifest | None:
    """The job as it is now; None where there is none."""
    from kubernetes.client import ApiException

    try:
        found = cluster.objects.get_namespaced_custom_object(*_place(cluster, kind), name, _request_timeout=TIMEOUT)
    except ApiException as e:
        if e.status == 404:
            return None
        raise _refused(e, f"read {kind.PLURAL} {name}") from None
    except HTTPError as e:
        raise _unreachable(e) from None
    return t.cast(Manifest, found)


def _delete(cluster: Cluster, kind: Kind, name: str) -> None:
    from kubernetes.client import ApiException

    try:
        cluster.objects.delete_namespaced_custom_object(
            *_place(cluster, kind), name, propagation_policy="Background", _request_timeout=TIMEOUT
        )
    except ApiException as e:
        if e.status != 404:
            raise _refused(e, f"delete {kind.PLURAL} {name}") from None


def _refused(error: t.Any, what: str) -> UserError:
    """What a user can do about an answer that no retry mends."""
    if error.status == 404:
        hint = "The cluster does not know this kind of job: install Kubeflow's operator for it."
    elif error.status in (401, 403):
        hint = "Give the run's service account the right to (docs/kubeflow.md)."
    elif error.status in TRANSIENT:
        hint = "The API server does not recover; try again later."
    else:
        hint = "Mend what it names."
    return UserError(f"cannot {what}: {error.status} {error.reason}: {(error.body or '').strip()[:500]}. {hint}")


def _unreachable(error: Exception) -> UserError:
    return UserError(f"the Kubernetes API cannot be reached: {error}. Try again later: a job that runs goes on.")


# -- following ---------------------------------------------------------------------------------------------------------


def _follow(cluster: Cluster, kind: Kind, name: str) -> State:
    """Wait for the end of a job; returns how it ended."""
    said = ""
    waiting_since: float | None = None
    while True:
        found = _read(cluster, kind, name)
        if found is None or found["metadata"].get("deletionTimestamp"):
            raise UserError(f"{kind.PLURAL} {name}: was deleted by someone else while it ran. Run the pipeline again.")
        state = kind.state(found)
        if state.phase in ("succeeded", "failed"):
            log.info("%s %s has %s", kind.PLURAL, name, state.phase)
            return state
        line = f"{state.phase}: {_counts(cluster, kind, name)}"
        if line != said:
            log.info("%s %s is %s", kind.PLURAL, name, line)
            said = line
        if state.phase != "waiting":
            waiting_since = None
        elif waiting_since is None:
            waiting_since = time.monotonic()
        elif time.monotonic() - waiting_since > cluster.patience.pending:
            raise NeverRan(_why_pending(cluster, kind, name))
        _wait_for_change(cluster, kind, found)


def _counts(cluster: Cluster, kind: Kind, name: str) -> str:
    phases = [pod.status.phase for pod in _pods(cluster, kind.pods(name))]
    return ", ".join(f"{phases.count(phase)} {phase.lower()}" for phase in sorted(set(phases))) or "no pods yet"


def _pods(cluster: Cluster, selector: str) -> list[t.Any]:
    from kubernetes.client import ApiException

    try:
        found = cluster.core.list_namespaced_pod(cluster.namespace, label_selector=selector, _request_timeout=TIMEOUT)
    except ApiException as e:
        raise _refused(e, "list pods") from None
    except HTTPError as e:
        raise _unreachable(e) from None
    return t.cast("list[t.Any]", found.items)


def _wait_for_change(cluster: Cluster, kind: Kind, found: Manifest) -> None:
    """Return when a job changes, or after a while; a watch that breaks off or is too old (410) ends the wait."""
    from kubernetes import watch
    from kubernetes.client import ApiException

    meta = found["metadata"]
    started = time.monotonic()
    try:
        stream = watch.Watch().stream(
            cluster.objects.list_namespaced_custom_object,
            *_place(cluster, kind),
            field_selector=f"metadata.name={meta['name']}",
            resource_version=meta.get("resourceVersion"),
            timeout_seconds=max(1, int(cluster.patience.watch)),
            _request_timeout=(TIMEOUT[0], cluster.patience.watch + 10),
        )
        for event in stream:
            if event["type"] != "BOOKMARK":
                return
    except (ApiException, HTTPError) as e:
        log.debug("watch: %s", e)
    time.sleep(max(0.0, min(1.0, cluster.patience.watch) - (time.monotonic() - started)))


def _follow_log(cluster: Cluster, selector: str, say: Callable[[str], None], done: threading.Event) -> None:
    """Hand on the lines of a pod's log until the job ends; a stream that breaks off is taken up where it was."""
    from kubernetes.client import ApiException

    last: dict[str, str] = {}  # by pod: the time stamp of its last line
    while True:
        ended = done.is_set()
        try:
            for pod in _pods(cluster, selector):
                name = pod.metadata.name
                if pod.status.phase != "Pending":
                    for stamp, line in _lines(cluster, name, last.get(name)):
                        last[name] = stamp
                        say(line)
        except (ApiException, HTTPError, UserError) as e:
            log.debug("log: %s", e)
        if ended:
            return
        done.wait(cluster.patience.log_retry)


def _lines(cluster: Cluster, pod: str, after: str | None) -> Iterator[tuple[str, str]]:
    """Time stamp and text of a pod's lines, from ``after`` on, until it ends or the stream breaks off."""
    since = None if after is None else max(1, int(time.time() - _seconds(after)) + 2)
    answer = cluster.core.read_namespaced_pod_log(
        pod,
        cluster.namespace,
        follow=True,
        timestamps=True,
        since_seconds=since,
        _preload_content=False,
        _request_timeout=TIMEOUT,
    )
    with answer:
        rest = b""
        for block in answer.stream(amt=1 << 16, decode_content=False):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                stamp, _, text = line.decode("utf-8", "replace").partition(" ")
                if after is None or stamp > after:
                    yield stamp, text


def _seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp[:19] + "+00:00").timestamp()


# -- what went wrong ---------------------------------------------------------------------------------------------------


def _last_words(cluster: Cluster, kind: Kind, name: str, state: State) -> str:
    """The pod that failed first, with its reason, its last lines and its events."""
    failed = [(end, pod) for pod in _pods(cluster, kind.pods(name)) if (end := _end(pod)) is not None]
    lines = [f"{kind.PLURAL} {name} failed: {state.message or 'no reason given'}"]
    if not failed:
        return "\n".join([*lines, "None of its pods says why."])
    end, pod = min(failed, key=lambda pair: (pair[0].exit_code == 143, str(pair[0].finished_at)))
    lines.append(f"pod {pod.metadata.name}: exit code {end.exit_code} ({end.reason or 'Error'}). Its last lines:")
    lines += [f"  {line}" for line in _tail(cluster, pod.metadata.name)]
    if end.reason == "OOMKilled":
        lines.append("It used more memory than its limit: raise memory_limit, or try a smaller batch.")
    return "\n".join([*lines, *_events(cluster, pod.metadata.name)])


def _end(pod: t.Any) -> t.Any:
    """How a pod's container ended, where that was badly."""
    for status in pod.status.container_statuses or []:
        for state in (status.state, status.last_state):
            if state and state.terminated and state.terminated.exit_code != 0:
                return state.terminated
    return None


def _tail(cluster: Cluster, pod: str) -> list[str]:
    from kubernetes.client import ApiException

    try:
        text: str = cluster.core.read_namespaced_pod_log(
            pod, cluster.namespace, tail_lines=LAST_LINES, _request_timeout=TIMEOUT
        )
    except ApiException as e:
        return [f"(its log cannot be read: {e.reason})"]
    return text.splitlines()


def _events(cluster: Cluster, pod: str) -> list[str]:
    from kubernetes.client import ApiException

    try:
        found = cluster.core.list_namespaced_event(
            cluster.namespace, field_selector=f"involvedObject.name={pod}", _request_timeout=TIMEOUT
        )
    except ApiException:
        return []
    return [f"event: {e.reason}: {e.message}" for e in found.items if e.type != "Normal"][-5:]


def _why_pending(cluster: Cluster, kind: Kind, name: str) -> str:
    lines = [f"{kind.PLURAL} {name}: no pod of it ran for {cluster.patience.pending:.0f} s, so it was deleted."]
    for pod in _pods(cluster, kind.pods(name)):
        reasons = [c.message for c in pod.status.conditions or [] if c.status != "True" and c.message]
        waiting = [s.state.waiting for s in pod.status.container_statuses or [] if s.state and s.state.waiting]
        reasons += [f"{w.reason}: {w.message or ''}".rstrip(": ") for w in waiting]
        lines.append(f"pod {pod.metadata.name} is {pod.status.phase}: {'; '.join(reasons) or 'no reason given'}")
        lines += _events(cluster, pod.metadata.name)
    lines.append(
        "Ask for less (accelerators, memory, nodes), free some room on the cluster, or wait longer: pending_timeout."
    )
    return "\n".join(lines)
