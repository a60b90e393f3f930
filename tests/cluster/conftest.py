"""A real cluster, the one that KUBECONFIG names: a namespace of its own for the tests, and the chart in it.

Everything is made in that namespace and goes with it. kubectl and helm are looked for on the PATH and beside Python.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launchers import cases
from tests.launchers.proxy import Proxy

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tuneport"
OPTIONS = {  # by their name: the default and what they are for
    "--cluster-image": ("busybox:1.36", "an image with a shell, for pods that only play a part"),
    "--trainer-image": ("tuneport-trainer:0.1.0", "the trainer image of `make images`, as the cluster's nodes find it"),
    "--cluster-kinds": ("pytorchjob,trainjob", "the kinds of job that the cluster has an operator for"),
    "--cluster-runtime": ("torch-distributed", "the ClusterTrainingRuntime of TrainJobs"),
    "--cluster-values": (str(CHART / "values-kind.yaml"), "the chart's values"),
    "--cluster-namespace": ("", "a namespace to make, use and delete; empty: one with a name of its own"),
}
SLOW = 10.0  # an image is pulled, a pod scheduled, a failed one started again by its Job


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, (default, what) in OPTIONS.items():
        parser.addoption(name, default=default, help=what)


class Kubectl:
    """kubectl and helm, in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        found = {
            name: shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)) for name in PROGRAMS
        }
        if missing := [name for name, path in found.items() if path is None]:
            pytest.skip(f"needs {' and '.join(missing)} on the PATH (`make helm` puts Helm beside Python)")
        self.programs = found

    def __call__(self, *words: str, given: str | None = None, program: str = "kubectl") -> str:
        argv = [str(self.programs[program]), "--namespace", self.namespace, *words]
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def helm(self, *words: str) -> str:
        return self(*words, program="helm")

    def apply(self, *objects: Mapping[str, Any]) -> None:
        self("apply", "--validate=strict", "-f", "-", given=yaml.safe_dump_all(map(dict, objects)))


PROGRAMS = ("kubectl", "helm")


@pytest.fixture(scope="session")
def option(request: pytest.FixtureRequest) -> Callable[[str], str]:
    return lambda name: str(request.config.getoption(name, OPTIONS[name][0]))


@pytest.fixture(scope="session")
def kubectl(option: Callable[[str], str]) -> Iterator[Kubectl]:
    """A namespace that is there while the tests run."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a cluster: set KUBECONFIG to the file that leads to it (docs/kubeflow.md, On kind)")
    found = Kubectl(option("--cluster-namespace") or f"tuneport-test-{secrets.token_hex(3)}")
    found("create", "namespace", found.namespace)
    try:
        found("label", "namespace", found.namespace, "pod-security.kubernetes.io/enforce=privileged")
        yield found
    finally:
        found("delete", "namespace", found.namespace, "--wait=true", "--timeout=300s")


@pytest.fixture(scope="session")
def chart(kubectl: Kubectl, option: Callable[[str], str]) -> str:
    """The chart, installed; returns the name of the launcher's account."""
    settings = [f"--set=image={option('--trainer-image')}", "--set=launcher.kubeflowRole.name="]
    values = f"--values={option('--cluster-values')}"
    kubectl.helm("install", "tuneport", str(CHART), values, *settings)  # --wait: for a claim that nobody uses yet
    kubectl("rollout", "status", "deployment/tuneport-mlflow", "--timeout=10m")
    return "tuneport-launcher"


class Real:
    """The real cluster as a ground for cases."""

    slow = SLOW

    def __init__(self, kubectl: Kubectl, chart: str, image: str, folder: Path) -> None:
        self.kubectl, self.account, self.image, self.folder = kubectl, chart, image, folder
        config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        self.cluster = config["clusters"][0]["cluster"]
        url = urllib.parse.urlsplit(self.cluster["server"])
        self.host = str(self.cluster.get("tls-server-name") or url.hostname)
        self.proxy = Proxy(str(url.hostname), url.port or 443)

    def kubeconfig(self) -> Path:
        return self._as(self.account)

    def _as(self, account: str) -> Path:
        """A kubeconfig of a service account: a launcher has no other rights than in its pod."""
        token = self.kubectl("create", "token", account, "--duration=2h").strip()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": self.cluster}],
            "users": [{"name": account, "user": {"token": token}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": account, "namespace": self.kubectl.namespace},
                }
            ],
        }
        return cases.write(self.folder / f"{account}.yaml", cases.through(self.proxy, config, self.host))

    def without(self, verb: str, resource: str) -> Path:
        rules = json.loads(self.kubectl("get", "role", self.account, "-o", "json"))["rules"]
        fewer = [
            {**rule, "verbs": [v for v in rule["verbs"] if v != verb or resource not in rule["resources"]]}
            for rule in rules
        ]
        name = f"no-{verb}-{resource.replace('/', '-')}"
        rbac = "rbac.authorization.k8s.io"
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "Role",
                "metadata": {"name": name},
                "rules": [rule for rule in fewer if rule["verbs"]],
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": self.kubectl.namespace}],
            },
        )
        time.sleep(2)  # until the API server knows of it
        return self._as(name)

    def enforce(self, level: str) -> None:
        label = f"pod-security.kubernetes.io/enforce={level}"
        self.kubectl("label", "--overwrite", "namespace", self.kubectl.namespace, label)

    def jobs(self, kind: str) -> list[str]:
        listed = json.loads(self.kubectl("get", f"{kind}s", "-o", "json"))["items"]
        return [job["metadata"]["name"] for job in listed if not job["metadata"].get("deletionTimestamp")]

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in json.loads(self.kubectl("get", "pods", "-o", "json"))["items"]]

    def clear(self) -> None:
        """Delete what a case has left, so that the next has the room."""
        for kind in cases.BOTH:
            if self.has(kind):
                self.kubectl("delete", f"{kind}s", "--all", "--wait=true")

    def has(self, kind: str) -> bool:
        group = {"pytorchjob": "kubeflow.org", "trainjob": "trainer.kubeflow.org"}[kind]
        return f"{kind}s" in self.kubectl("api-resources", f"--api-group={group}", "-o", "name")


@pytest.fixture
def ground(kubectl: Kubectl, chart: str, option: Callable[[str], str], tmp_path: Path, kind: str) -> Iterator[Real]:
    if kind not in option("--cluster-kinds").split(","):
        pytest.skip(f"--cluster-kinds leaves out {kind}")
    made = Real(kubectl, chart, option("--cluster-image"), tmp_path)
    if not made.has(kind):
        pytest.skip(
            f"needs Kubeflow's operator for {kind}: the cluster does not know {kind}s (docs/kubeflow.md, On kind)"
        )
    yield made
    made.clear()
    made.proxy.stop()
