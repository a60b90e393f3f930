"""A job as a TrainJob of Kubeflow Trainer, version 2: pure functions."""

from __future__ import annotations

from tuneport.errors import UserError
from tuneport.launchers import torchrun
from tuneport.launchers.job import (
    ELASTIC_RESTARTS,
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

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = CONTAINER = "node"  # what Kubeflow's own runtimes call the training job, and its container
MANAGER = "tuneport.dev/launcher"


def render(job: Job, owner: Manifest | None = None) -> Manifest:
    """The object to create: the trainer, and patches to the runtime's pods.

    Raises `UserError` for what a TrainJob has no field for.
    """
    for setting, value in (
        ("priority_class", job.priority_class),
        ("image_pull_policy", job.image_pull_policy),
        ("restarts", None if job.elastic_min_nodes else job.restarts),
    ):
        if value:
            raise UserError(
                f"{setting}={value!r}: a TrainJob has no field for it. Set it in its runtime ({job.runtime}) and leave "
                "it out here, or use kubeflow_job: pytorchjob."
            )
    volumes, places = mounts(job)
    trainer: Manifest = {
        "image": job.image,
        "command": list(job.command),
        "numNodes": job.nodes,
        "numProcPerNode": job.processes,
        "env": [*(v for v in variables(job) if "value" in v), *_elastic(job)],
        "resourcesPerNode": {kind: dict(amounts) for kind, amounts in job.resources.items() if amounts},
    }
    container = _set(
        {
            "name": NODE,
            "env": [v for v in variables(job) if "valueFrom" in v],
            "volumeMounts": places,
            "securityContext": dict(job.security),
        }
    )
    pod = _set(
        {
            "containers": [container] if len(container) > 1 else [],
            "volumes": volumes,
            "nodeSelector": dict(job.node_selector),
            "tolerations": [dict(toleration) for toleration in job.tolerations],
            "serviceAccountName": job.service_account,
            "imagePullSecrets": [{"name": name} for name in job.image_pull_secrets],
        }
    )
    labels = _set({"labels": dict(job.labels), "annotations": dict(job.annotations)})
    template = _set({"metadata": labels, "spec": pod})
    spec: Manifest = {
        "runtimeRef": {"apiGroup": GROUP, "kind": job.runtime_kind, "name": job.runtime},
        "trainer": _set(trainer),
    }
    if template:
        patched = {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": template}}}]}
        spec["runtimePatches"] = [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": patched}}},
        ]
    if job.deadline_seconds:
        spec["activeDeadlineSeconds"] = job.deadline_seconds
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata(job, owner), "spec": spec}


def _elastic(job: Job) -> list[Manifest]:
    """What lets the machines go on with fewer of them, which a TrainJob itself has no word for."""
    if job.elastic_min_nodes is None:
        return []
    restarts = str(job.restarts or ELASTIC_RESTARTS)
    return [
        {"name": torchrun.ELASTIC, "value": f"{job.elastic_min_nodes}:{job.nodes}"},
        {"name": torchrun.ELASTIC_RESTARTS, "value": restarts},
    ]


def _set(values: Manifest) -> Manifest:
    return {name: value for name, value in values.items() if value not in (None, {}, [])}


def check(manifest: Manifest) -> None:
    """Raise `ValueError` for what the operator's webhook would refuse."""
    check_name(manifest)
    spec: Manifest = manifest["spec"]
    patches = spec.get("runtimePatches", [])
    managers = [patch["manager"] for patch in patches]
    if len(managers) != len(set(managers)):
        raise ValueError("runtimePatches: expected each manager once")
    for patch in patches:
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"].get("replicatedJobs", []):
            pod: Manifest = replicated["template"]["spec"]["template"].get("spec", {})
            taken = {v["name"] for v in spec["trainer"].get("env", [])}
            for container in pod.get("containers", []):
                if twice := taken & {v["name"] for v in container.get("env", [])}:
                    raise ValueError(f"env {', '.join(sorted(twice))}: both in trainer and in runtimePatches")


def state(manifest: Manifest) -> State:
    """What the job's status says."""
    found = conditions(manifest)
    if "Failed" in found:
        return State("failed", found["Failed"])
    if "Complete" in found:
        return State("succeeded", found["Complete"])
    if manifest["spec"].get("suspend") or "Suspended" in found:
        return State("suspended", found.get("Suspended", ""))
    jobs = (manifest.get("status") or {}).get("jobsStatus") or []
    ready = any(job["name"] == NODE and job.get("ready") for job in jobs)  # active: pending pods count as well
    return State("running" if ready else "waiting")


def pods(name: str) -> str:
    """The label selector of all pods of a job."""
    return f"jobset.sigs.k8s.io/jobset-name={name}"


def leader(manifest: Manifest) -> str:
    """The label selector of the pod with rank 0."""
    name = manifest["metadata"]["name"]
    return f"{pods(name)},jobset.sigs.k8s.io/replicatedjob-name={NODE},batch.kubernetes.io/job-completion-index=0"


def related(name: str) -> list[tuple[str, str, str, str]]:
    """What is made of a job, beside its pods: a JobSet, and of that a Job, whose controller makes the pods."""
    return [
        ("jobset.x-k8s.io", "v1alpha2", "jobsets", name),
        ("batch", "v1", "jobs", f"{name}-{NODE}-0"),
        *pod_groups(name),
    ]


def suspension(suspend: bool) -> Manifest:
    """The patch that suspends a job, or resumes it."""
    return {"spec": {"suspend": suspend}}


def explained(status: int, detail: str) -> UserError | None:
    """What a refusal means, where that is not what it says."""
    if status == 400 and "unknown field" in detail and "runtimePatches" in detail:
        return UserError(
            "the cluster's Kubeflow Trainer is older than 2.2: its TrainJob has no runtimePatches, by which pods get "
            "their volumes, secrets and security context. Install Trainer 2.2 or newer, or use kubeflow_job: "
            "pytorchjob."
        )
    return None
