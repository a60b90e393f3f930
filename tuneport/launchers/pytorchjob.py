"""A job as a PyTorchJob of Kubeflow's training operator, version 1: pure functions."""

from __future__ import annotations

import typing as t

from tuneport.errors import UserError
from tuneport.launchers.job import (
    ELASTIC_RESTARTS,
    RESTART_SECONDS,
    Job,
    Manifest,
    State,
    check_name,
    conditions,
    metadata,
    mounts,
    pod_groups,
    variables,
)

GROUP, VERSION, PLURAL = "kubeflow.org", "v1", "pytorchjobs"
CONTAINER = "pytorch"  # the operator looks for a container of this name
LABEL = "training.kubeflow.org"


def render(job: Job, owner: Manifest | None = None) -> Manifest:
    """The object to create. An elastic job has workers only, which find each other through the first of them."""
    elastic = job.elastic_min_nodes is not None
    restarts = job.restarts or (ELASTIC_RESTARTS if elastic else 0)
    policy: Manifest = {
        "cleanPodPolicy": "Running",  # finished pods stay until the job goes: their logs say why it failed
        "ttlSecondsAfterFinished": RESTART_SECONDS,
    }
    if restarts:  # with 0 the operator deletes all pods, and what they say, the moment one has failed
        policy["backoffLimit"] = restarts * (job.nodes if elastic else 1)  # it counts those of all pods together
    if job.deadline_seconds:
        policy["activeDeadlineSeconds"] = job.deadline_seconds
    spec: Manifest = {"runPolicy": policy}
    if job.elastic_min_nodes is None:
        spec["nprocPerNode"] = str(job.processes)
        spec["pytorchReplicaSpecs"] = {"Master": _replicas(job, 1), "Worker": _replicas(job, job.nodes - 1)}
    else:
        spec["elasticPolicy"] = {
            "minReplicas": job.elastic_min_nodes,
            "maxReplicas": job.nodes,
            "nProcPerNode": job.processes,
            "rdzvBackend": "c10d",
            "maxRestarts": restarts,
        }
        spec["pytorchReplicaSpecs"] = {"Worker": _replicas(job, job.nodes)}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "PyTorchJob", "metadata": metadata(job, owner), "spec": spec}


def _replicas(job: Job, replicas: int) -> Manifest:
    volumes, places = mounts(job)
    container: Manifest = {
        "name": CONTAINER,
        "image": job.image,
        "command": list(job.command),
        "env": variables(job),
        "resources": {kind: dict(amounts) for kind, amounts in job.resources.items() if amounts},
        "volumeMounts": places,
        "securityContext": dict(job.security),
        "imagePullPolicy": job.image_pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # a failed pod's status holds its last lines
    }
    pod: Manifest = {
        "containers": [_set(container)],
        "volumes": volumes,
        "nodeSelector": dict(job.node_selector),
        "tolerations": [dict(toleration) for toleration in job.tolerations],
        "serviceAccountName": job.service_account,
        "imagePullSecrets": [{"name": name} for name in job.image_pull_secrets],
        "priorityClassName": job.priority_class,
    }
    labels = {"labels": dict(job.labels), "annotations": dict(job.annotations)}
    restart = "OnFailure" if job.restarts or job.elastic_min_nodes is not None else "Never"
    template = _set({"metadata": _set(labels), "spec": _set(pod)})
    return {"replicas": replicas, "restartPolicy": restart, "template": template}


def _set(values: Manifest) -> Manifest:
    return {name: value for name, value in values.items() if value not in (None, {}, [])}


def check(manifest: Manifest) -> None:
    """Raise `ValueError` for what the operator's webhook would refuse."""
    check_name(manifest)
    spec: Manifest = manifest["spec"]
    replicas: Manifest = spec["pytorchReplicaSpecs"]
    if unknown := set(replicas) - {"Master", "Worker"}:
        raise ValueError(f"pytorchReplicaSpecs: {', '.join(sorted(unknown))}; expected Master and Worker")
    if not replicas:
        raise ValueError("pytorchReplicaSpecs: none")
    if "Master" in replicas and replicas["Master"].get("replicas", 1) != 1:
        raise ValueError("pytorchReplicaSpecs.Master.replicas: expected 1")
    for name, replica in replicas.items():
        containers: list[t.Any] = replica["template"]["spec"]["containers"]
        if CONTAINER not in [c["name"] for c in containers] or any(not c.get("image") for c in containers):
            raise ValueError(f"pytorchReplicaSpecs.{name}: expected a container named {CONTAINER}, with an image")
    if policy := spec.get("elasticPolicy"):
        if "Worker" not in replicas:
            raise ValueError("elasticPolicy: expected Worker replicas")
        if policy.get("nProcPerNode") is not None and spec.get("nprocPerNode") is not None:
            raise ValueError("elasticPolicy.nProcPerNode and nprocPerNode: expected one of the two")


def state(manifest: Manifest) -> State:
    """What the job's status says."""
    found = conditions(manifest)
    for condition, phase in (("Failed", "failed"), ("Succeeded", "succeeded"), ("Suspended", "suspended")):
        if condition in found:
            return State(t.cast(t.Any, phase), found[condition])
    if manifest["spec"].get("runPolicy", {}).get("suspend"):
        return State("suspended")
    if "Running" in found:
        return State("running", found["Running"])
    return State("waiting", found.get("Restarting") or found.get("Created", ""))


def pods(name: str) -> str:
    """The label selector of all pods of a job."""
    return f"{LABEL}/job-name={name}"


def leader(manifest: Manifest) -> str:
    """The label selector of the pod with rank 0: the master, where there is one."""
    kind = "master" if "Master" in manifest["spec"]["pytorchReplicaSpecs"] else "worker"
    return f"{pods(manifest['metadata']['name'])},{LABEL}/replica-type={kind},{LABEL}/replica-index=0"


def related(name: str) -> list[tuple[str, str, str, str]]:
    """What is made of a job, beside its pods: what a gang scheduler needs."""
    return pod_groups(name)


def suspension(suspend: bool) -> Manifest:
    """The patch that suspends a job, or resumes it."""
    return {"spec": {"runPolicy": {"suspend": suspend}}}


def explained(status: int, detail: str) -> UserError | None:
    """What a refusal means, where that is not what it says."""
    return None
