"""A fake of Kubeflow's operators and of the kubelet: a job's pods are processes of this machine.

It does what training-operator 1.9 was seen to do: with a `backoffLimit` of 0 it deletes every pod the moment one has
failed, it does nothing when a deadline has passed, and it writes why it cannot create a pod to the job's events alone.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import Any

from tests.launchers.fake_kubernetes import FakeKubernetes, start_process

MIB = 1024**2


def pods_of(job: dict[str, Any]) -> list[tuple[str, list[str], dict[str, Any], str | None]]:
    """By rank: the ending of its pod's name, its command, its limits and its priority class."""
    if job["kind"] == "TrainJob":
        trainer = job["spec"]["trainer"]
        limits = trainer.get("resourcesPerNode", {}).get("limits", {})
        return [(f"node-0-{i}", trainer["command"], limits, None) for i in range(trainer["numNodes"])]
    found = []
    for kind, replica in job["spec"]["pytorchReplicaSpecs"].items():
        pod = replica["template"]["spec"]
        container = pod["containers"][0]
        limits = container.get("resources", {}).get("limits", {})
        of_pod = (container["command"], limits, pod.get("priorityClassName"))
        found += [(f"{kind.lower()}-{i}", *of_pod) for i in range(replica["replicas"])]
    return found


def operate(fake: FakeKubernetes, job: dict[str, Any]) -> None:
    """Take a job to its end, or until it is deleted."""
    if job["kind"] == "PyTorchJob":
        fake.set_condition(job, "Created")
    running: list[tuple[dict[str, Any], subprocess.Popen[bytes], threading.Thread]] = []
    killed: set[int] = set()  # by the kubelet, as they used too much memory
    wanted = pods_of(job)
    for rank, (ending, command, limits, priority) in enumerate(wanted):
        name = f"{job['metadata']['name']}-{ending}"
        refused = f'pods "{name}" is forbidden: '
        if priority:
            fake.warn(
                job, "FailedCreatePod", f"Error creating: {refused}no PriorityClass with name {priority} was found"
            )
        elif fake.enforced == "restricted" and ending.startswith("worker"):
            why = 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (init-pytorch)'
            fake.warn(job, "FailedCreatePod", f"Error creating: {refused}{why}")
        else:
            pod = fake.add_pod(job, ending, phase="Pending")
            process = start_process(command, {**os.environ, "PET_NODE_RANK": str(rank)})
            fake.processes.append(process)
            fake.start_pod(pod)
            reader = threading.Thread(target=read, args=(fake, pod, process), daemon=True)
            reader.start()
            if amount := limits.get("memory"):
                most = int(amount.removesuffix("Mi")) * MIB
                threading.Thread(target=limit, args=(process, most, killed), daemon=True).start()
            running.append((pod, process, reader))
    if len(running) == len(wanted):
        job.setdefault("status", {})["jobsStatus"] = [{"name": "node", "ready": 1}]
        fake.set_condition(job, "Running" if job["kind"] == "PyTorchJob" else "Created")
    follow(fake, job, running, killed)


def read(fake: FakeKubernetes, pod: dict[str, Any], process: "subprocess.Popen[bytes]") -> None:
    for line in process.stdout or ():
        fake.say(pod, line.decode().rstrip("\n"))


def limit(process: "subprocess.Popen[bytes]", most: int, killed: set[int]) -> None:
    """What the kernel does to a container that uses more memory than its limit."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        while process.poll() is None:
            own = psutil.Process(process.pid)
            if sum(p.memory_info().rss for p in (own, *own.children(recursive=True))) > most:
                killed.add(process.pid)
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.005)


def follow(fake: FakeKubernetes, job: dict[str, Any], running: list[Any], killed: set[int]) -> None:
    failed = False
    while not failed and running and any(process.poll() is None for _, process, _ in running):
        if fake.jobs.get(job["metadata"]["name"]) is not job:
            end(running)
            return
        failed = any(process.poll() for _, process, _ in running)
        time.sleep(0.05)
    for pod, process, reader in running:
        if (code := process.poll()) is not None:
            reader.join(timeout=5)
            fake.end_pod(pod, code if code >= 0 else 128 - code, "OOMKilled" if process.pid in killed else "Error")
    if not running:
        return
    failed = any(process.poll() for _, process, _ in running)
    end(running)
    for pod, *_ in running:
        if pod["status"]["phase"] == "Running":  # cleanPodPolicy
            fake.delete_pod(pod)
    policy = job["spec"].get("runPolicy", {})
    why = f"{job['kind']} {job['metadata']['name']} is failed because 1 replica(s) failed."
    if failed and policy.get("backoffLimit") == 0:
        fake.delete_pods(job)
        why = f"Job {job['metadata']['name']} has failed because it has reached the specified backoff limit"
    good = "Succeeded" if job["kind"] == "PyTorchJob" else "Complete"
    fake.set_condition(job, "Failed" if failed else good, why if failed else "")


def end(running: list[Any]) -> None:
    for _, process, _ in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
