"""The launcher's Role holds what the launcher asks of the API, no more; `helm test` sees a right that is missing."""

import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Rights = set[tuple[str, str, str]]  # API group, resource, verb


def right(method: str, path: str) -> tuple[str, str, str]:
    """What the API server asks its authorizer about for a request to an object of a namespace."""
    url = urllib.parse.urlsplit(path)
    pattern = (
        r"/(?:api|apis/(?P<group>[^/]+))/[^/]+/namespaces/[^/]+/(?P<resource>[^/]+)(?:/(?P<name>[^/]+)(?P<sub>/.+)?)?"
    )
    match = re.fullmatch(pattern, url.path)
    assert match, path
    watching = urllib.parse.parse_qs(url.query).get("watch", ["false"])[0].lower() in ("true", "1")
    of_all = {"GET": "watch" if watching else "list", "POST": "create", "DELETE": "deletecollection"}
    of_one = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "POST": "create"}
    verb = (of_one if match["name"] else of_all)[method]
    return match["group"] or "", match["resource"] + (match["sub"] or ""), verb


def granted(rules: list[dict[str, Any]]) -> Rights:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def role(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (found,) = (o for o in objects if o["kind"] == "Role")
    return found["rules"]


def test_requests_are_judged_as_the_api_server_does() -> None:
    jobs = "/apis/kubeflow.org/v1/namespaces/team/pytorchjobs"
    assert right("GET", f"{jobs}?watch=True&resourceVersion=7") == ("kubeflow.org", "pytorchjobs", "watch")
    assert right("GET", jobs) == ("kubeflow.org", "pytorchjobs", "list")
    assert right("DELETE", jobs) == ("kubeflow.org", "pytorchjobs", "deletecollection")
    assert right("DELETE", f"{jobs}/a?propagationPolicy=Background") == ("kubeflow.org", "pytorchjobs", "delete")
    assert right("GET", "/api/v1/namespaces/team/pods/a/log?follow=True") == ("", "pods/log", "get")


def test_the_role_has_no_wildcard(role: list[dict[str, Any]]) -> None:
    assert "*" not in json.dumps(role)
    assert all(set(rule) == {"apiGroups", "resources", "verbs"} for rule in role)


@pytest.mark.slow
def test_the_role_allows_exactly_what_the_launcher_does_in_all_its_scenarios(
    render: Any, chart: Path, tmp_path: Path
) -> None:
    recorded = tmp_path / "requests"
    suites = [str(ROOT / "tests" / "launchers" / name) for name in ("test_cluster.py", "test_launch.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "RECORDED_REQUESTS": str(recorded)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "recorder", "-p", "no:cacheprovider", *suites],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    used = {right(*line.split(" ", 1)) for line in recorded.read_text("utf-8").splitlines()}
    for values in sorted(chart.glob("values*.yaml")):
        (role,) = (o for o in render(values) if o["kind"] == "Role")
        assert granted(role["rules"]) == used


# -- `helm test` -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reviewer(tmp_path: Path) -> Iterator[Callable[[list[dict[str, Any]]], Path]]:
    """A fake of the API that answers who may do what by some rules; returns the kubeconfig that leads to it."""
    servers: list[HTTPServer] = []

    def start(rules: list[dict[str, Any]]) -> Path:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None: ...

            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = review["spec"]["resourceAttributes"]
                assert self.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
                assert asked["namespace"] == "team"
                resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
                allowed = (asked["group"], resource, asked["verb"]) in granted(rules)
                body = json.dumps({**review, "status": {"allowed": allowed}}).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{servers[-1].server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": address}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "nobody"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        return tmp_path / "kubeconfig"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_chart_notices_a_right_that_is_missing_and_a_volume_that_cannot_be_written_to(
    render: Any, chart: Path, tmp_path: Path, reviewer: Any
) -> None:
    objects = render(chart / "values.yaml")
    (pod,) = (o for o in objects if o["kind"] == "Pod" and o["metadata"]["name"] == "tuneport-test-launcher")
    (role,) = (o for o in objects if o["kind"] == "Role")
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python3", "-c"]

    def test(rules: list[dict[str, Any]], shared: Path) -> "subprocess.CompletedProcess[str]":
        own = {e["name"]: e["value"] for e in container["env"]}
        environment = {**os.environ, **own, "SHARED": str(shared), "KUBECONFIG": str(reviewer(rules))}
        command = [sys.executable, "-c", *container["args"]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = test(role["rules"], tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.splitlines() == ["the launcher has its rights", "the shared volume can be written to"]
    fewer = [rule for rule in role["rules"] if rule["resources"] != ["pods/log"]]
    fewer[0] = {**fewer[0], "verbs": ["create", "list", "patch", "watch"]}
    done = test(fewer, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "the launcher may not: delete pytorchjobs kubeflow.org, get pods/log"
    done = test(role["rules"], tmp_path / "missing")
    assert done.returncode == 1 and "cannot write to the shared volume" in done.stderr
