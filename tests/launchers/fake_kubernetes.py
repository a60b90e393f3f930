"""A fake of the Kubernetes API: an HTTP server with as much of it as launchers use, and no cluster behind it.

It behaves as kube-apiserver 1.36, kubelet and Kubeflow's training-operator 1.9 were seen to behave: status codes, the
messages of refusals, lists and watches with their versions, bookmarks and 410, logs with time stamps. In the place of
an operator a test says what becomes of a job, or has its pods started as processes of this machine.
"""

import contextlib
import copy
import itertools
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.warm_python import COLD

NAMESPACE = "team"
ACCOUNT = "system:serviceaccount:team:runner"
Operator = Callable[["FakeKubernetes", dict[str, Any]], None]
KINDS = {"pytorchjobs": "PyTorchJob", "trainjobs": "TrainJob", "pods": "Pod", "events": "Event"}
GROUPS = {"pytorchjobs": "kubeflow.org", "trainjobs": "trainer.kubeflow.org", "workloads": "kueue.x-k8s.io"}
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    410: "Expired",
}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class FakeKubernetes:
    """The objects of one namespace, and the faults that requests are to meet."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.others: dict[str, dict[str, Any]] = {}  # by their path
        self.workloads: list[dict[str, Any]] = []
        self.logs: dict[str, list[tuple[int, str]]] = {}  # by pod: time in ns, line
        self.zone = "+00:00"  # of the nodes
        self.events: list[dict[str, Any]] = []
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []  # version, plural, type, object
        self.oldest = 0  # versions from here on are remembered
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []
        self.faults: list[tuple[str, str, int]] = []  # method, pattern of the path, status; each is met once
        self.denied: set[tuple[str, str]] = set()  # verb and resource that the account lacks
        self.refuses_until = 0.0  # an API server that has just started knows no rules yet
        self.token: str | None = None  # the only one that is accepted
        self.unknown: set[str] = set()  # fields of a job's spec that its definition lacks
        self.cuts: list[int] = []  # after how many lines a followed log breaks off
        self.enforced = "privileged"  # level of pod security
        self.keep_deleted = False  # a finalizer that never comes to its end
        self.speed = 1.0  # of its clock: a watch lasts as many seconds less
        self.versions = itertools.count(100)
        self.changed = threading.Condition()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.connections: set[socket.socket] = set()
        self.server = self._serve(0)

    def _serve(self, port: int) -> ThreadingHTTPServer:
        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

        server = Server(("127.0.0.1", port), handler(self))
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True).start()
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
        self.stop()

    # -- the server itself --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """From now on nobody answers, and what was being answered breaks off."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def start(self, forgetful: float = 0.0) -> None:
        """Answer again, at the same address; for so many seconds everything is forbidden, and old versions are gone."""
        self.refuses_until = time.monotonic() + forgetful
        self.compact()
        self.server = self._serve(self.server.server_address[1])

    def compact(self) -> None:
        """Forget all changes up to now."""
        with self.changed:
            self.oldest = next(self.versions)
            self.history.clear()

    # -- what an operator does ------------------------------------------------------------------------------------

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        name = job["metadata"]["name"]
        job["metadata"] |= {"uid": f"uid-{next(self.versions)}", "creationTimestamp": now()}
        self.jobs[name] = job
        self._record(plural_of(job), "ADDED", job)
        threading.Thread(target=self.operator, args=(self, job), daemon=True).start()
        return job

    def delete(self, name: str) -> None:
        job = self.jobs[name]
        if self.keep_deleted:
            job["metadata"]["deletionTimestamp"] = now()
            self._record(plural_of(job), "MODIFIED", job)
            return
        del self.jobs[name]
        self.delete_pods(job)
        self._record(plural_of(job), "DELETED", job)

    def delete_pods(self, job: dict[str, Any]) -> None:
        """As the operator does once a job is past its backoffLimit, failed pods first and all the others after them."""
        uid = job["metadata"]["uid"]
        for pod in [p for p in self.pods.values() if p["metadata"]["ownerReferences"][0]["uid"] == uid]:
            self.delete_pod(pod)

    def delete_pod(self, pod: dict[str, Any]) -> None:
        del self.pods[pod["metadata"]["name"]]
        self._record("pods", "DELETED", pod)

    def set_condition(self, job: dict[str, Any], kind: str, message: str = "") -> None:
        condition = {"type": kind, "status": "True", "message": message}
        job.setdefault("status", {}).setdefault("conditions", []).append(condition)
        if kind == "Running":
            job["status"].setdefault("startTime", now())
        self._record(plural_of(job), "MODIFIED", job)

    def touch(self, job: dict[str, Any]) -> None:
        """Make a change to a job known."""
        self._record(plural_of(job), "MODIFIED", job)

    def warn(self, about: dict[str, Any], reason: str, message: str, kind: str | None = None) -> None:
        """An event about an object."""
        metadata = about["metadata"]
        involved = {"kind": kind or about.get("kind", "Pod"), "name": metadata["name"], "uid": metadata["uid"]}
        event = {"metadata": {"name": f"e-{len(self.events)}"}, "type": "Warning", "reason": reason, "message": message}
        self.events.append({**event, "involvedObject": involved})

    def _record(self, plural: str, kind: str, found: dict[str, Any]) -> None:
        with self.changed:
            version = next(self.versions)
            found["metadata"]["resourceVersion"] = str(version)
            self.history.append((version, plural, kind, copy.deepcopy(found)))
            self.changed.notify_all()

    def add_pod(self, job: dict[str, Any], name: str, phase: str = "Running", **labels: str) -> dict[str, Any]:
        of_job = job["metadata"]["name"]
        known = {
            "training.kubeflow.org/job-name": of_job,
            "training.kubeflow.org/replica-type": "master" if "master" in name else "worker",
            "training.kubeflow.org/replica-index": name[-1],
            "jobset.sigs.k8s.io/jobset-name": of_job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": name[-1],
        }
        metadata = {"name": f"{of_job}-{name}", "namespace": NAMESPACE, "labels": {**known, **labels}}
        owner = {key: job["metadata"].get(key) for key in ("name", "uid")} | {"kind": job.get("kind", "PyTorchJob")}
        metadata |= {"uid": f"pod-uid-{next(self.versions)}", "ownerReferences": [{**owner, "apiVersion": "v1"}]}
        pod = {"metadata": metadata, "spec": {"containers": []}, "status": {"phase": phase}}
        if phase == "Running":
            pod["status"]["startTime"] = now()
        self.pods[metadata["name"]] = pod
        self.logs.setdefault(metadata["name"], [])
        self._record("pods", "ADDED", pod)
        return pod

    def start_pod(self, pod: dict[str, Any]) -> None:
        pod["status"] = {"phase": "Running", "startTime": now()}
        self._record("pods", "MODIFIED", pod)

    def touch_pod(self, pod: dict[str, Any]) -> None:
        """Make a change to a pod known."""
        self._record("pods", "MODIFIED", pod)

    def say(self, pod: dict[str, Any], *lines: str) -> None:
        with self.changed:
            self.logs[pod["metadata"]["name"]] += [(time.time_ns(), line) for line in lines]
            self.changed.notify_all()

    def end_pod(self, pod: dict[str, Any], exit_code: int, reason: str = "Error", message: str = "") -> None:
        ended = {"exitCode": exit_code, "reason": reason, "finishedAt": now(), "message": message}
        container = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        statuses = [{**container, "state": {"terminated": ended}}]
        pod["status"] |= {"phase": "Succeeded" if exit_code == 0 else "Failed", "containerStatuses": statuses}
        self._record("pods", "MODIFIED", pod)

    # -- faults ------------------------------------------------------------------------------------------------------

    def fault(self, method: str, path: str) -> int | None:
        with self.changed:
            for i, (wanted, pattern, status) in enumerate(self.faults):
                if wanted in (method, "*") and re.search(pattern, path):
                    del self.faults[i]
                    return status
        return None


def plural_of(job: dict[str, Any]) -> str:
    return f"{job['kind'].lower()}s"


def matches(query: dict[str, str], found: dict[str, Any]) -> bool:
    """Whether an object is one that the selectors of a list or a watch name."""
    metadata = found["metadata"]
    labels = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    fields = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
    of_event = found.get("involvedObject", {})
    known = {"metadata.name": metadata["name"], **{f"involvedObject.{k}": v for k, v in of_event.items()}}
    return labels.items() <= (metadata.get("labels") or {}).items() and fields.items() <= known.items()


def merged(value: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    found = dict(value) if isinstance(value, dict) else {}
    for key, new in change.items():
        if new is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), new)
    return found


ROOT = rf"/(?:api|apis/(?P<group>[^/]+))/[^/]+/namespaces/{NAMESPACE}/"
PATH = re.compile(ROOT + r"(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<part>[^/]+))?)?")


def handler(fake: FakeKubernetes) -> type[BaseHTTPRequestHandler]:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def setup(self) -> None:
            fake.connections.add(self.request)
            super().setup()

        def finish(self) -> None:
            fake.connections.discard(self.request)
            with contextlib.suppress(OSError):
                super().finish()

        def answer(self, status: int, body: Any) -> None:
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refuse(self, status: int, message: str) -> None:
            body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status}
            self.answer(status, {**body, "message": message, "reason": REASONS.get(status, "")})

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
            fake.authorizations.append(self.headers.get("Authorization"))
            if (status := fake.fault(method, self.path)) is not None:
                self.refuse(status, "a fault that the test asked for")
                return
            if fake.token is not None and self.headers.get("Authorization", "").lower() != f"bearer {fake.token}":
                self.refuse(401, "Unauthorized")
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                match = PATH.fullmatch(url.path)
                if match is None:
                    self.refuse(404, "the server could not find the requested resource")
                elif not self.forbidden(method, match, query):
                    self.route(method, url.path, match, query, body)

        def forbidden(self, method: str, match: re.Match[str], query: dict[str, str]) -> bool:
            """Refuse as the authorizer does; returns whether it did."""
            of_all = {"GET": "watch" if query.get("watch") == "true" else "list", "POST": "create"}
            of_one = {"GET": "get", "PATCH": "patch", "DELETE": "delete"}
            verb = (of_one if match["name"] else of_all)[method]
            resource = match["plural"] + (f"/{match['part']}" if match["part"] else "")
            if (verb, resource) not in fake.denied and time.monotonic() > fake.refuses_until:
                return False
            named = f' "{match["name"]}"' if match["name"] else ""
            self.refuse(
                403,
                f'{match["plural"]}.{match["group"]}{named} is forbidden: User "{ACCOUNT}" cannot {verb} resource '
                f'"{resource}" in API group "{match["group"] or ""}" in the namespace "{NAMESPACE}"',
            )
            return True

        def route(self, method: str, path: str, match: re.Match[str], query: dict[str, str], body: Any) -> None:
            plural, name = match["plural"], match["name"]
            if plural in ("pytorchjobs", "trainjobs") and method != "GET":
                self.change(method, name, query, body)
            elif match["part"] == "log":
                self.log(name, query)
            elif path in fake.others:
                self.answer(200, fake.others[path])
            elif plural in KINDS or (plural == "workloads" and fake.workloads):
                of_kind = [j for j in list(fake.jobs.values()) if plural_of(j) == plural]
                lists = {"pods": list(fake.pods.values()), "events": fake.events, "workloads": fake.workloads}
                self.read(plural, name, lists.get(plural, of_kind), query)
            else:
                self.refuse(404, "the server could not find the requested resource")

        def read(self, plural: str, name: str | None, objects: list[dict[str, Any]], query: dict[str, str]) -> None:
            if query.get("watch") == "true":
                self.watch(plural, query)
            elif name:
                found = [o for o in objects if o["metadata"]["name"] == name]
                self.answer(200, found[0]) if found else self.refuse(404, f'{plural} "{name}" not found')
            else:
                kind = f"{KINDS.get(plural, 'Workload')}List"
                items = [found for found in objects if matches(query, found)]
                version = {"resourceVersion": str(next(fake.versions))}
                self.answer(200, {"kind": kind, "apiVersion": "v1", "metadata": version, "items": items})

        def change(self, method: str, name: str | None, query: dict[str, str], body: Any) -> None:
            if method == "POST":
                fake.bodies.append(body)
                name = body["metadata"]["name"]
                full = f'{plural_of(body)}.{GROUPS[plural_of(body)]} "{name}"'
                if unknown := sorted(fake.unknown & set(body["spec"])):
                    if query.get("fieldValidation") == "Strict":
                        fields = ", ".join(f'unknown field "spec.{field}"' for field in unknown)
                        version, kind = body["apiVersion"].partition("/")[2], body["kind"]
                        handled = f'{kind} in version "{version}" cannot be handled as a {kind}'
                        self.refuse(400, f"{handled}: strict decoding error: {fields}")
                        return
                    for field in unknown:  # as it did with jobs of a launcher that did not ask for Strict
                        del body["spec"][field]
                if len(words := body["spec"].get("trainer", {}).get("command", [])) > 128:
                    many = f"spec.trainer.command: Too many: {len(words)}: must have at most 128 items"
                    self.refuse(422, f'{body["kind"]}.{GROUPS[plural_of(body)]} "{name}" is invalid: {many}')
                elif name in fake.jobs:
                    deleted = (
                        ": object is being deleted" if fake.jobs[name]["metadata"].get("deletionTimestamp") else ""
                    )
                    self.refuse(409, f"{deleted.lstrip(': ')}{': ' if deleted else ''}{full} already exists")
                else:
                    self.answer(201, fake.create(body))
            elif name not in fake.jobs:
                self.refuse(404, f'"{name}" not found')
            elif method == "DELETE":
                fake.delete(name)
                self.answer(200, {"kind": "Status", "status": "Success"})
            else:
                job = fake.jobs[name]
                job |= merged(job, body)
                fake.touch(job)
                self.answer(200, job)

        def watch(self, plural: str, query: dict[str, str]) -> None:
            self.begin_stream()
            after = int(query.get("resourceVersion") or 0)
            if after < fake.oldest:
                message = f"too old resource version: {after} ({fake.oldest})"
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": message}
                self.chunk(json.dumps({"type": "ERROR", "object": gone}) + "\n")
                self.chunk("")
                return
            end = time.monotonic() + float(query.get("timeoutSeconds", 1800)) / fake.speed
            while (left := end - time.monotonic()) > 0:
                with fake.changed:
                    found = [(v, kind, o) for v, of, kind, o in fake.history if v > after and of == plural]
                    if not found:
                        fake.changed.wait(min(left, 0.2))
                for version, kind, changed in found:
                    after = version
                    if matches(query, changed):
                        self.chunk(json.dumps({"type": kind, "object": changed}) + "\n")
            if query.get("allowWatchBookmarks") == "true":
                mark = {"kind": KINDS[plural], "metadata": {"resourceVersion": str(next(fake.versions))}}
                self.chunk(json.dumps({"type": "BOOKMARK", "object": mark}) + "\n")
            self.chunk("")

        def log(self, pod: str, query: dict[str, str]) -> None:
            if pod not in fake.pods:
                self.refuse(404, f'pods "{pod}" not found')
                return
            if fake.pods[pod]["status"]["phase"] == "Pending":
                waiting = f'container "{query.get("container")}" in pod "{pod}" is waiting to start: ContainerCreating'
                self.refuse(400, waiting)
                return
            stamped = query.get("timestamps", "").lower() == "true"
            lines = fake.logs.get(pod, [])
            if query.get("follow", "").lower() != "true":
                tail = lines[-int(query.get("tailLines", 10**6)) :]
                self.answer(200, "".join(f"{line}\n" for _, line in tail))
                return
            self.begin_stream()
            since = time.time_ns() - int(query["sinceSeconds"]) * 10**9 if "sinceSeconds" in query else 0
            if "sinceTime" in query:
                since = int(datetime.fromisoformat(query["sinceTime"]).timestamp()) * 10**9
            cut = fake.cuts.pop(0) if fake.cuts else None
            sent = 0
            while True:
                with fake.changed:
                    fresh = lines[sent:]
                    ended = fake.pods.get(pod, {"status": {"phase": "Gone"}})["status"]["phase"] != "Running"
                    if not fresh and not ended:
                        fake.changed.wait(0.2)
                for at, line in fresh:
                    sent += 1
                    if at < since:
                        continue
                    self.chunk(f"{stamp(at, fake.zone)} {line}\n" if stamped else f"{line}\n")
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

        def do_PATCH(self) -> None:
            self.handle_one("PATCH")

        def do_DELETE(self) -> None:
            self.handle_one("DELETE")

    return Handler


def stamp(at: int, zone: str) -> str:
    """A time in ns as the container runtime writes it: nine digits, and the node's zone."""
    hours, minutes = int(zone[:3]), int(zone[0] + zone[4:])
    local = datetime.fromtimestamp(at // 10**9, timezone(timedelta(hours=hours, minutes=minutes)))
    return f"{local:%Y-%m-%dT%H:%M:%S}.{at % 10**9:09d}" + ("Z" if zone == "+00:00" else zone)


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
        command, env=environment | COLD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def kubeconfig(fake: FakeKubernetes) -> dict[str, Any]:
    """What leads to it."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": fake.url}}],
        "users": [{"name": "nobody", "user": {"token": fake.token} if fake.token else {}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody", "namespace": NAMESPACE}}],
    }
