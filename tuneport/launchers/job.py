"""A training job of several machines on Kubernetes, before it is a PyTorchJob or a TrainJob."""

from __future__ import annotations

import dataclasses as dc
import hashlib
import re
import typing as t
from collections.abc import Mapping, Sequence

from tuneport.errors import UserError

Manifest = dict[str, t.Any]
Phase = t.Literal["waiting", "suspended", "running", "succeeded", "failed"]

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 50  # the operators add what makes the pods' names, which end at 63
QUEUE = "kueue.x-k8s.io/queue-name"
RUN, SPEC = "tuneport/run", "tuneport/spec"  # our label with the run's id, and annotation with the job's digest
ELASTIC_RESTARTS = 3  # of an elastic job for which none are set: without any it ends with its first machine
EVICTED = "tuneport/evicted"  # annotation of a job that its launcher suspended as it was evicted itself
SCRATCH = "/tmp"  # noqa: S108  (of the container)
TMP_SIZE = "16Gi"  # of it, where outputs and checkpoints lie on a volume
UNLIMITED = "unlimited"  # but by the node's disk
RESTART_SECONDS = 3600  # how long a finished job is kept for a person to look at


@dc.dataclass(frozen=True, kw_only=True)
class Job:
    """The same command on several machines; each starts its own processes."""

    name: str
    run_id: str
    image: str
    command: tuple[str, ...]
    nodes: int
    processes: int  # on each machine
    elastic_min_nodes: int | None = None  # go on with as few as that; None: all are needed
    restarts: int = 0
    resources: Mapping[str, Mapping[str, str]] = dc.field(default_factory=dict)  # requests, limits
    environment: Mapping[str, str] = dc.field(default_factory=dict)
    secrets: Sequence[Mapping[str, t.Any]] = ()  # name, environment (variable -> key), path
    volumes: Sequence[Mapping[str, t.Any]] = ()  # claim, path, sub_path
    shm_size: str | None = None
    tmp_size: str = TMP_SIZE  # of the scratch folder, or `UNLIMITED`
    node_selector: Mapping[str, str] = dc.field(default_factory=dict)
    tolerations: Sequence[Mapping[str, t.Any]] = ()
    security: Mapping[str, t.Any] = dc.field(default_factory=dict)  # of the container
    service_account: str | None = None
    image_pull_policy: str | None = None
    image_pull_secrets: Sequence[str] = ()
    labels: Mapping[str, str] = dc.field(default_factory=dict)
    annotations: Mapping[str, str] = dc.field(default_factory=dict)
    queue: str | None = None  # of Kueue
    priority_class: str | None = None
    deadline_seconds: int | None = None
    runtime: str = "torch-distributed"  # a TrainJob's
    runtime_kind: str = "ClusterTrainingRuntime"  # or TrainingRuntime, of the namespace

    def described(self) -> dict[str, t.Any]:
        """What is known of the job before it is launched, as JSON: the fields that are not their defaults."""
        later = ("name", "run_id", "command")
        values = {field: getattr(self, field.name) for field in dc.fields(self) if field.name not in later}
        return {field.name: value for field, value in values.items() if value and value != field.default}

    @classmethod
    def launched(cls, described: Mapping[str, t.Any], *, name: str, run_id: str, command: Sequence[str]) -> Job:
        """The job that `described` told of; a field that another version wrote and this one lacks is left out."""
        fields = {field.name for field in dc.fields(cls)}
        known = {field: value for field, value in described.items() if field in fields}
        return cls(name=name, run_id=run_id, command=tuple(command), **known)


@dc.dataclass(frozen=True)
class State:
    """What a job's status says."""

    phase: Phase
    message: str = ""


class Kind(t.Protocol):
    """One kind of job: a module with these names."""

    GROUP: str
    VERSION: str
    PLURAL: str
    CONTAINER: str  # in which the command runs

    @staticmethod
    def render(job: Job, owner: Manifest | None = None) -> Manifest:
        """The object to create; ``owner``: an owner reference."""

    @staticmethod
    def check(manifest: Manifest) -> None:
        """Raise `ValueError` for what the operator's webhook would refuse."""

    @staticmethod
    def state(manifest: Manifest) -> State: ...

    @staticmethod
    def pods(name: str) -> str:
        """The label selector of all pods of a job."""

    @staticmethod
    def leader(manifest: Manifest) -> str:
        """The label selector of the pod with rank 0."""

    @staticmethod
    def related(name: str) -> Sequence[tuple[str, str, str, str]]:
        """What operators make of a job and write reasons to: API group, version, plural and name of each object."""

    @staticmethod
    def suspension(suspend: bool) -> Manifest:
        """The patch that suspends a job, or resumes it."""

    @staticmethod
    def explained(status: int, detail: str) -> UserError | None:
        """What the API's refusal to create a job means, where that is not what it says."""


def pod_groups(name: str) -> list[tuple[str, str, str, str]]:
    """The objects by which a scheduler takes a job's pods together, where one does."""
    return [
        ("scheduling.volcano.sh", "v1beta1", "podgroups", name),
        ("scheduling.x-k8s.io", "v1alpha1", "podgroups", name),
    ]


def job_name(stage: str, run_id: str) -> str:
    """The name of a run's job, the same each time it is asked for."""
    plain = re.sub(r"[^a-z0-9-]+", "-", f"{stage}-{run_id}".lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"job-{plain}"
    if len(plain) > LONGEST_NAME:
        digest = hashlib.sha256(f"{stage}-{run_id}".encode()).hexdigest()[:10]
        plain = f"{plain[: LONGEST_NAME - 11].rstrip('-')}-{digest}"
    return plain


def metadata(job: Job, owner: Manifest | None) -> Manifest:
    """Name, labels, annotations and owner of a job's object."""
    labels = {**job.labels, RUN: _label(job.run_id)} | ({QUEUE: job.queue} if job.queue else {})
    digest = hashlib.sha256(repr(dc.astuple(job)).encode()).hexdigest()
    found: Manifest = {"name": job.name, "labels": labels, "annotations": {SPEC: digest}}
    return found | ({"ownerReferences": [owner]} if owner else {})


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")


def variables(job: Job) -> list[Manifest]:
    """The container's environment."""
    plain = [{"name": name, "value": value} for name, value in job.environment.items()]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": s["name"], "key": key}}}
        for s in job.secrets
        for variable, key in (s.get("environment") or {}).items()
    ]
    return plain + secret


def mounts(job: Job) -> tuple[list[Manifest], list[Manifest]]:
    """The pod's volumes and where the container has them."""
    volumes: list[Manifest] = []
    places: list[Manifest] = []
    claims = list(dict.fromkeys(volume["claim"] for volume in job.volumes))
    for i, claim in enumerate(claims):
        volumes.append({"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim}})
    for volume in job.volumes:
        place = {"name": f"claim-{claims.index(volume['claim'])}", "mountPath": volume["path"]}
        places.append(place | ({"subPath": volume["sub_path"]} if volume.get("sub_path") else {}))
    for i, secret in enumerate(s for s in job.secrets if s.get("path")):
        volumes.append({"name": f"secret-{i}", "secret": {"secretName": secret["name"]}})
        places.append({"name": f"secret-{i}", "mountPath": secret["path"], "readOnly": True})
    if not any(place["mountPath"] == SCRATCH for place in places):
        volumes.append({"name": "tmp", "emptyDir": {} if job.tmp_size == UNLIMITED else {"sizeLimit": job.tmp_size}})
        places.append({"name": "tmp", "mountPath": SCRATCH})
    if job.shm_size:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm_size}})
        places.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    return volumes, places


def check_name(manifest: Manifest) -> None:
    """Raise `ValueError` where the name is not DNS-1035."""
    name = manifest["metadata"]["name"]
    if not DNS_1035.fullmatch(name) or len(name) > 63:
        raise ValueError(f"metadata.name {name!r} is no DNS-1035 name")


def conditions(manifest: Manifest) -> dict[str, str]:
    """The messages of a job's conditions that hold, by type."""
    found = (manifest.get("status") or {}).get("conditions") or []
    return {c["type"]: c.get("message") or c.get("reason") or "" for c in found if c.get("status") == "True"}
