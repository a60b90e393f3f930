"""Why a job failed or does not start: what was seen of its pods as they came and went, and events and conditions.

The operators delete a failed job's pods when they like. So what is said at the end was remembered before, and events
are asked for by uid: other objects have the same name.
"""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Callable, Iterable, Mapping

from urllib3.exceptions import HTTPError

from tuneport.launchers.job import QUEUE, Kind, Manifest, State
from tuneport.launchers.kubernetes_api import Api, Refused

MOST = 8  # objects whose events are asked for, and events of one that are said
Related = tuple[str, str, str, str]  # group, version, plural and name of an object
LastLines = Callable[[str], t.Sequence[str]]  # of the pod with this uid


@dc.dataclass(frozen=True, kw_only=True)
class Ending:
    """How a pod, or a container of it, ended badly."""

    uid: str
    pod: str
    code: int | None  # None: the pod was ended, not its container
    reason: str
    message: str
    finished: str

    @property
    def is_cause(self) -> tuple[bool, bool, bool, str]:
        """Sorts the likeliest cause first: killed from outside, then the user's mistake, then the first to fail.

        143 is what the others are sent then.
        """
        killed = self.code in (None, 137) or self.reason == "OOMKilled"
        return self.code == 143, not killed, self.code != 2, self.finished

    def __str__(self) -> str:
        return f"pod {self.pod}: " + (
            f"{self.reason}: {self.message}" if self.code is None else f"exit code {self.code} ({self.reason})"
        )


class Witness:
    """What was seen of a job's pods, those that are gone among them."""

    def __init__(self) -> None:
        self.pods: dict[str, Manifest] = {}  # by uid
        self.gone: set[str] = set()
        self.endings: dict[tuple[str, str], Ending] = {}  # the first of each pod and container's start

    def see(self, pod: Manifest, deleted: bool) -> None:
        """Take note of a state of a pod."""
        uid = pod["metadata"]["uid"]
        self.pods[uid] = pod
        if deleted:
            self.gone.add(uid)
        for ending in _endings(pod):
            self.endings.setdefault((uid, ending.finished), ending)

    def present(self) -> list[Manifest]:
        return [pod for uid, pod in self.pods.items() if uid not in self.gone]

    def running(self) -> int:
        """How many pods run now."""
        return sum(_phase(pod) == "Running" for pod in self.present())

    def is_done(self) -> bool:
        """Whether pods have ended well and none runs any more; machines of one training end together."""
        phases = [_phase(pod) for pod in self.present()]
        return "Succeeded" in phases and "Running" not in phases

    def counts(self) -> str:
        """How many pods are in which phase."""
        phases = [_phase(pod) for pod in self.present()]
        return ", ".join(f"{phases.count(phase)} {phase.lower()}" for phase in sorted(set(phases))) or "no pods yet"

    def started(self) -> str | None:
        """When the first of the pods that are there started, as RFC 3339."""
        return min((at for pod in self.present() if (at := pod.get("status", {}).get("startTime"))), default=None)


def _phase(pod: Manifest) -> str:
    return str(pod.get("status", {}).get("phase", "Unknown"))


def _containers(status: Manifest) -> list[Manifest]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _endings(pod: Manifest) -> Iterable[Ending]:
    metadata, status = pod["metadata"], pod.get("status", {})
    name = {"uid": metadata["uid"], "pod": metadata["name"]}
    for container in _containers(status):
        for state in (container.get("lastState") or {}, container.get("state") or {}):
            ended = state.get("terminated") or {}
            if ended.get("exitCode", 0) != 0:
                yield Ending(
                    **name,
                    code=ended["exitCode"],
                    reason=ended.get("reason") or "Error",
                    message=ended.get("message") or "",
                    finished=str(ended.get("finishedAt") or ""),
                )
    disrupted = [c for c in status.get("conditions") or [] if c["type"] == "DisruptionTarget" and c["status"] == "True"]
    if status.get("phase") == "Failed" and status.get("reason"):  # Evicted, DeadlineExceeded, NodeLost
        yield Ending(**name, code=None, reason=status["reason"], message=status.get("message") or "", finished="")
    elif disrupted:
        reason, message = disrupted[0].get("reason", "DisruptionTarget"), disrupted[0].get("message", "")
        yield Ending(**name, code=None, reason=reason, message=message, finished="")


# -- a job that failed -------------------------------------------------------------------------------------------------


def last_words(
    api: Api,
    kind: Kind,
    found: Manifest,
    state: State,
    *,
    witness: Witness,
    lines: LastLines,
    left: Mapping[str, str],
) -> str:
    """The pod that failed first, with its reason, its last lines and its events; and how the others ended.

    ``left``: by pod, what its process wrote down at its end.
    """
    name = found["metadata"]["name"]
    said = [f"{kind.PLURAL} {name} failed: {state.message or 'no reason given'}"]
    endings = sorted(witness.endings.values(), key=lambda ending: ending.is_cause)
    if endings:
        first, others = endings[0], endings[1:]
        text = list(lines(first.uid)) or first.message.splitlines() or _tail(api, kind, first)
        said.append(f"{first}. Its last lines:")
        said += [f"  {line}" for line in text]
        if first.message and first.message.splitlines()[-1] not in "\n".join(text):
            said.append(f"It said at its end: {first.message}")
        if first.reason == "OOMKilled":
            said.append("It used more memory than its limit: raise memory_limit, or try a smaller batch.")
        said += [str(other) for other in others if other.pod != first.pod][:MOST]
        uids = [found["metadata"]["uid"], first.uid]
    else:
        uids = [found["metadata"]["uid"], *witness.pods][:MOST]
    said += [f"{pod} said at its end: {text}" for pod, text in list(left.items())[:MOST] if text not in "\n".join(said)]
    said += hindrances(api, kind, found, uids)
    if len(said) == 1:
        said.append("None of its pods says why.")
    return "\n".join(said)


def _tail(api: Api, kind: Kind, ending: Ending) -> list[str]:
    """The end of a log that was not followed."""
    path = api.path("", "v1", "pods", ending.pod, "log")
    try:
        text = api.lines(f"read the log of {ending.pod}", path, {"container": kind.CONTAINER, "tailLines": 30}, 10)
        return [line.decode("utf-8", "replace") for line in text]
    except Refused as e:
        return [f"(its log cannot be read: {e.detail or e.status})"]
    except HTTPError as e:
        return [f"(its log cannot be read: {e})"]


# -- a job that does not start -----------------------------------------------------------------------------------------


def why_waiting(api: Api, kind: Kind, found: Manifest, witness: Witness) -> list[str]:
    """What hinders a job: events and conditions of it, of its pods and of what was made of it."""
    said = []
    for pod in [pod for pod in witness.present() if _phase(pod) == "Pending"][:MOST]:
        status = pod["status"]
        reasons = [c["message"] for c in status.get("conditions") or [] if c["status"] != "True" and c.get("message")]
        states = [(c.get("state") or {}).get("waiting") for c in _containers(status)]
        reasons += [f"{w.get('reason', '')}: {w.get('message', '')}".strip(": ") for w in states if w]
        why = "; ".join(dict.fromkeys(reasons)) or "no reason given"
        said.append(f"pod {pod['metadata']['name']} is Pending: {why}")
    pods = [pod["metadata"]["uid"] for pod in witness.present() if _phase(pod) == "Pending"]
    return said + hindrances(api, kind, found, [found["metadata"]["uid"], *pods][:MOST])


def hindrances(api: Api, kind: Kind, found: Manifest, uids: Iterable[str]) -> list[str]:
    """Warnings among the events of these objects and of what was made of a job; and conditions of the latter."""
    said, wanted = [], list(uids)
    for made in _made_of(api, kind, found):
        wanted.append(made["metadata"]["uid"])
        said += [
            f"{made['kind']} {made['metadata']['name']}: {c.get('reason', '')}: {c['message']}"
            for c in (made.get("status") or {}).get("conditions") or []
            if c.get("message") and (c["status"] != "True") != (c["type"] in ("Failed", "Unschedulable", "Evicted"))
        ]
    for uid in dict.fromkeys(wanted):
        said += _events(api, uid)
    return list(dict.fromkeys(said))


def _made_of(api: Api, kind: Kind, found: Manifest) -> Iterable[Manifest]:
    """The objects that operators make of a job and write reasons to, as far as they are there and may be seen."""
    metadata = found["metadata"]
    for group, version, plural, name in kind.related(metadata["name"]):
        if made := api.found(f"read {plural} {name}", api.path(group, version, plural, name)):
            yield made
    if QUEUE in (metadata.get("labels") or {}):
        of_job = {"labelSelector": f"kueue.x-k8s.io/job-uid={metadata['uid']}"}
        for version in ("v1beta2", "v1beta1"):
            workloads = api.found("list workloads", api.path("kueue.x-k8s.io", version, "workloads"), of_job)
            if workloads is not None:
                yield from ({"kind": "Workload", **workload} for workload in workloads["items"])
                return


def _events(api: Api, uid: str) -> list[str]:
    events = api.found("list events", api.path("", "v1", "events"), {"fieldSelector": f"involvedObject.uid={uid}"})
    found = [event for event in (events or {}).get("items", []) if event.get("type") != "Normal"]
    return [
        f"event of {e['involvedObject'].get('kind', 'Pod')} {e['involvedObject'].get('name', '')}: "
        f"{e.get('reason', '')}: {e.get('message', '')}"
        for e in found[-MOST:]
    ]


REMEDIES = (
    ("violates PodSecurity", "Let the namespace enforce the level baseline, or use kubeflow_job: trainjob."),
    ("exceeded quota", "Ask for less (cpu, memory, accelerators, machines), or have the namespace's quota raised."),
    ("PriorityClass", "Name a PriorityClass that there is: platform.kfp.multi_node.priority_class."),
    ("serviceaccount", "Name an account that there is: platform.kfp.service_account."),
    ("ImagePull", "See that the image is there and may be pulled: platform.kfp.images and image_pull_secrets."),
    ("persistentvolumeclaim", "Name a claim that there is: platform.kfp.shared_volume and volumes."),
    ("available", "Ask for less (accelerators, memory, nodes), or free some room on the cluster."),
)


def remedy(reasons: Iterable[str]) -> str:
    """What a user can do about what hinders a job."""
    text = "\n".join(reasons).lower()
    return next((words for sign, words in REMEDIES if sign.lower() in text), "Mend what it names.")
