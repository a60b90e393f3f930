"""A fake of the Kubernetes API: an HTTP server with as much of it as launchers use, and no cluster behind it.

What a real one does is imitated: conflicts, resource versions, watches, label selectors, logs that are followed. In the
place of an operator a test says what becomes of a job, or has its pods started as processes of this machine.
"""

import contextlib
import copy
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

NAMESPACE = "team"
Operator = Callable[["FakeKubernetes", dict[str, Any]], None]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class FakeKubernetes:
    """The objects of one namespace, and the faults that requests are to meet."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[tuple[str, str]]] = {}  # by pod: time stamp, line
        self.events: list[dict[str, Any]] = []
        self.history: list[tuple[int, str, dict[str, Any]]] = []  # version, type, object
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.faults: list[tuple[str, str, int]] = []  # method, pattern of the path, status; each is met once
        self.cuts: list[int] = []  # after how many lines a followed log breaks off
        self.expired_watches = 0  # as many say 410 in their stream
        self.keep_deleted = False  # a finalizer that never comes to its end
        self.versions = itertools.count(100)
        self.changed = threading.Condition()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
        self.server.shutdown()
        self.server.server_close()

    # -- what an operator does ------------------------------------------------------------------------------------

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        name = job["metadata"]["name"]
        job["metadata"] |= {"uid": f"uid-{next(self.versions)}", "creationTimestamp": now()}
        self.jobs[name] = job
        self._record("ADDED", job)
        threading.Thread(target=self.operator, args=(self, job), daemon=True).start()
        return job

    def delete(self, name: str) -> None:
        job = self.jobs[name]
        if self.keep_deleted:
            job["metadata"]["deletionTimestamp"] = now()
            self._record("MODIFIED", job)
            return
        del self.jobs[name]
        for pod in [p for p, found in self.pods.items() if found["metadata"]["labels"]["job"] == name]:
            del self.pods[pod]
        self._record("DELETED", job)

    def set_condition(self, job: dict[str, Any], kind: str, message: str = "") -> None:
        condition = {"type": kind, "status": "True", "message": message}
        job.setdefault("status", {}).setdefault("conditions", []).append(condition)
        self._record("MODIFIED", job)

    def _record(self, kind: str, job: dict[str, Any]) -> None:
        with self.changed:
            version = next(self.versions)
            job["metadata"]["resourceVersion"] = str(version)
            self.history.append((version, kind, copy.deepcopy(job)))
            self.changed.notify_all()

    def add_pod(self, job: dict[str, Any], name: str, phase: str = "Running", **labels: str) -> dict[str, Any]:
        of_job = job["metadata"]["name"]
        known = {
            "job": of_job,
            "training.kubeflow.org/job-name": of_job,
            "training.kubeflow.org/replica-type": "master" if "master" in name else "worker",
            "training.kubeflow.org/replica-index": name[-1],
            "jobset.sigs.k8s.io/jobset-name": of_job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": name[-1],
        }
        metadata = {"name": f"{of_job}-{name}", "namespace": NAMESPACE, "labels": {**known, **labels}}
        pod = {"metadata": metadata, "spec": {"containers": []}, "status": {"phase": phase}}
        self.pods[metadata["name"]] = pod
        self.logs[metadata["name"]] = []
        return pod

    def say(self, pod: dict[str, Any], *lines: str) -> None:
        with self.changed:
            self.logs[pod["metadata"]["name"]] += [(now(), line) for line in lines]
            self.changed.notify_all()

    def end_pod(self, pod: dict[str, Any], exit_code: int, reason: str = "Error") -> None:
        with self.changed:
            ended = {"exitCode": exit_code, "reason": reason, "finishedAt": now()[:19] + "Z"}
            container = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
            statuses = [{**container, "state": {"terminated": ended}}]
            pod["status"] = {"phase": "Succeeded" if exit_code == 0 else "Failed", "containerStatuses": statuses}
            self.changed.notify_all()

    # -- faults ------------------------------------------------------------------------------------------------------

    def fault(self, method: str, path: str) -> int | None:
        with self.changed:
            for i, (wanted, pattern, status) in enumerate(self.faults):
                if wanted in (method, "*") and re.search(pattern, path):
                    del self.faults[i]
                    return status
        return None


def handler(fake: FakeKubernetes) -> type[BaseHTTPRequestHandler]:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def answer(self, status: int, body: Any) -> None:
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refuse(self, status: int, reason: str) -> None:
            self.answer(status, {"kind": "Status", "status": "Failure", "code": status, "message": reason})

        def begin_stream(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def chunk(self, text: str) -> None:
            content = text.encode()
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
            self.wfile.flush()

        def handle_one(self, method: str) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            url = urllib.parse.urlsplit(self.path)
            query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
            fake.requests.append((method, self.path))
            if (status := fake.fault(method, self.path)) is not None:
                self.refuse(status, "a fault that the test asked for")
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.route(method, url.path, query, body)

        def route(self, method: str, path: str, query: dict[str, str], body: Any) -> None:
            jobs = rf"/apis/[^/]+/[^/]+/namespaces/{NAMESPACE}/(?:pytorchjobs|trainjobs)(?:/(.+))?"
            if match := re.fullmatch(jobs, path):
                self.job(method, match[1], query, body)
            elif match := re.fullmatch(rf"/api/v1/namespaces/{NAMESPACE}/pods/([^/]+)/log", path):
                self.log(match[1], query)
            elif match := re.fullmatch(rf"/api/v1/namespaces/{NAMESPACE}/pods/([^/]+)", path):
                found = fake.pods.get(match[1])
                self.answer(200, found) if found else self.refuse(404, "not found")
            elif path == f"/api/v1/namespaces/{NAMESPACE}/pods":
                wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
                items = [p for p in list(fake.pods.values()) if wanted.items() <= p["metadata"]["labels"].items()]
                self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
            elif path == f"/api/v1/namespaces/{NAMESPACE}/events":
                name = query["fieldSelector"].removeprefix("involvedObject.name=")
                items = [e for e in fake.events if e["involvedObject"]["name"] == name]
                self.answer(200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": items})
            else:
                self.refuse(404, "no such path")

        def job(self, method: str, name: str | None, query: dict[str, str], body: Any) -> None:
            if method == "POST":
                fake.bodies.append(body)
                if body["metadata"]["name"] in fake.jobs:
                    self.refuse(409, "exists already")
                else:
                    self.answer(201, fake.create(body))
            elif query.get("watch"):
                self.watch(query)
            elif name not in fake.jobs:
                self.refuse(404, "not found")
            elif method == "DELETE":
                fake.delete(name)
                self.answer(200, {"kind": "Status", "status": "Success"})
            else:
                self.answer(200, fake.jobs[name])

        def watch(self, query: dict[str, str]) -> None:
            self.begin_stream()
            if fake.expired_watches:
                fake.expired_watches -= 1
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                self.chunk(json.dumps({"type": "ERROR", "object": gone}) + "\n")
                self.chunk("")
                return
            after = int(query.get("resourceVersion", 0))
            end = time.monotonic() + float(query.get("timeoutSeconds", 30))
            while time.monotonic() < end:
                with fake.changed:
                    found = [(kind, job) for version, kind, job in fake.history if version > after]
                    if not found:
                        fake.changed.wait(0.2)
                for kind, job in found:
                    self.chunk(json.dumps({"type": kind, "object": job}) + "\n")
                    after = int(job["metadata"]["resourceVersion"])
            self.chunk("")

        def log(self, pod: str, query: dict[str, str]) -> None:
            stamped = query.get("timestamps", "").lower() == "true"
            lines = fake.logs.get(pod, [])
            if query.get("follow", "").lower() != "true":
                tail = lines[-int(query.get("tailLines", 10**6)) :]
                self.answer(200, "".join(f"{line}\n" for _, line in tail))
                return
            self.begin_stream()
            since = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
            cut = fake.cuts.pop(0) if fake.cuts else None
            sent = 0
            while True:
                with fake.changed:
                    fresh = fake.logs.get(pod, [])[sent:]
                    ended = fake.pods.get(pod, {"status": {"phase": "Gone"}})["status"]["phase"] != "Running"
                    if not fresh and not ended:
                        fake.changed.wait(0.2)
                for stamp, line in fresh:
                    sent += 1
                    if datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp() < since:
                        continue
                    self.chunk(f"{stamp} {line}\n" if stamped else f"{line}\n")
                    if cut is not None and sent >= cut:
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                if ended and not fresh:
                    self.chunk("")
                    return

        def do_GET(self) -> None:
            self.handle_one("GET")

        def do_POST(self) -> None:
            self.handle_one("POST")

        def do_DELETE(self) -> None:
            self.handle_one("DELETE")

    return Handler


Start = Callable[[str, dict[str, Any], dict[str, str]], "subprocess.Popen[bytes]"]


def run_pods(fake: FakeKubernetes, job: dict[str, Any], start: Start, address: Callable[[str], str]) -> None:
    """Start a PyTorchJob's pods, with the environment that the operator gives them, and follow them to their end.

    ``start`` makes a process of a pod's name, container and environment; ``address`` is where a pod is found.
    """
    replicas = job["spec"]["pytorchReplicaSpecs"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    names = [(kind, i) for kind in ("Master", "Worker") if kind in replicas for i in range(replicas[kind]["replicas"])]
    pods, processes = [], []
    for rank, (kind, i) in enumerate(names):
        container = replicas[kind]["template"]["spec"]["containers"][0]
        injected = {
            "MASTER_ADDR": address(f"{job['metadata']['name']}-master-0"),
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(len(names)),
            "RANK": str(rank),
            "PET_NNODES": str(len(names)),
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": job["spec"]["nprocPerNode"],
            "PYTHONUNBUFFERED": "1",
        }
        own = {e["name"]: e["value"] for e in container.get("env", []) if "value" in e}
        pods.append(fake.add_pod(job, f"{kind.lower()}-{i}"))
        process = start(pods[-1]["metadata"]["name"], container, own | injected)
        processes.append(process)
        fake.processes.append(process)
        threading.Thread(
            target=lambda p=process, pod=pods[-1]: [fake.say(pod, line.decode().rstrip()) for line in p.stdout],
            daemon=True,
        ).start()
    fake.set_condition(job, "Running")
    codes = [process.wait() for process in processes]
    time.sleep(0.5)  # their last lines
    for pod, code in zip(pods, codes, strict=True):
        fake.end_pod(pod, code)
    fake.set_condition(job, "Failed" if any(codes) else "Succeeded", f"exit codes {codes}")


def start_process(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


@pytest.fixture
def fake_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Operator], FakeKubernetes]]:
    """Make a fake API that treats jobs as an operator says; KUBECONFIG points to it."""
    made: list[FakeKubernetes] = []

    def make(operator: Operator) -> FakeKubernetes:
        fake = FakeKubernetes(operator)
        made.append(fake)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": fake.url}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody", "namespace": NAMESPACE}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        return fake

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def as_processes() -> Operator:
    """Pods that are processes of this machine."""

    def start(_: str, container: dict[str, Any], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        return start_process([sys.executable, *container["command"][1:]], {**os.environ, **environment})

    return lambda fake, job: run_pods(fake, job, start, lambda _: "127.0.0.1")


@pytest.fixture
def as_containers(container_network: Any, tmp_path: Path) -> Operator:
    """Pods that are containers of the trainer image on one network; they see the test's folder as their volume."""

    def start(pod: str, container: dict[str, Any], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        shared = [str(tmp_path / "shared")]
        words = (container["image"], *container["command"])
        argv = container_network.command(pod, *words, environment=environment, volumes=shared)
        return start_process(argv, dict(os.environ))

    return lambda fake, job: run_pods(fake, job, start, lambda pod: pod)
