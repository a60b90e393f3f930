"""A compiled pipeline run as Kubeflow's backend runs it over an object store, each stage's traffic counted by itself.

Before a stage's container starts, every artifact that it takes is downloaded whole; afterwards what lies at the path of
an output is uploaded, and an output without one keeps its address (launcher_v2.go). Containers are processes.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from tests.kfp_local import ROOT
from tests.object_store import CountingProxy, client

BUCKET, PREFIX = "mlpipeline", "v2/artifacts/run"
Task = dict[str, Any]


class StoredRun:
    """The tasks of a document, one after the other; ``down``, ``up``: bytes that each took from the store and sent."""

    def __init__(self, text: str, url: str, folder: Path) -> None:
        self.spec = yaml.safe_load(text.split("\n---\n", maxsplit=1)[0])
        self.url, self.folder, self.s3 = url, folder, client(url)
        self.down: dict[str, int] = {}
        self.up: dict[str, int] = {}
        self.said: dict[str, str] = {}
        self.uris: dict[tuple[str, str], str] = {}  # of artifacts, by task and output
        self.parameters: dict[tuple[str, str], str] = {}
        self.starts = 0

    def tasks(self) -> list[str]:
        """In an order that their inputs allow."""
        tasks = self.spec["root"]["dag"]["tasks"]
        return [
            *TopologicalSorter({name: task.get("dependentTasks", []) for name, task in tasks.items()}).static_order()
        ]

    def run(self, *, until: str | None = None) -> None:
        """Every task that was not run yet; ``until``: those before this one."""
        for name in self.tasks():
            if name == until:
                return
            if name not in self.down:
                assert self.start(name) == 0, self.said[name]

    def start(self, name: str, killed_when: Callable[[], bool] | None = None) -> int:
        """One task, as a container that is started; returns its exit code."""
        task = self.spec["root"]["dag"]["tasks"][name]
        component = self.spec["components"][task["componentRef"]["name"]]
        executor = self.spec["deploymentSpec"]["executors"][component["executorLabel"]]
        parameters = self._parameters(task, component)
        if "importer" in executor:
            self.uris[name, "artifact"] = parameters["uri"]
            self.down[name] = self.up[name] = 0
            return 0
        self.starts += 1
        pod = self.folder / f"{self.starts}-{name}"
        pod.mkdir(parents=True)
        way = CountingProxy(self.url)
        try:
            s3 = client(way.url)
            inputs = self._downloaded(s3, task, pod)
            outputs = self._outputs(name, component, pod)
            files = {port: pod / "parameters" / port for port in component["outputDefinitions"].get("parameters", {})}
            executor_input = {
                "inputs": {"artifacts": inputs, "parameterValues": parameters},
                "outputs": {
                    "artifacts": outputs,
                    "parameters": {port: {"outputFile": str(file)} for port, file in files.items()},
                    "outputFile": str(pod / "executor_output.json"),
                },
            }
            there = {"AWS_ENDPOINT_URL": way.url, "TMPDIR": str(pod)}
            code, self.said[name] = contained(executor["container"], executor_input, there, killed_when)
            if code != 0:
                return code
            for port, found in outputs.items():
                artifact = found["artifacts"][0]
                self.uris[name, port] = artifact["uri"]
                upload(s3, Path(artifact["customPath"]), artifact["uri"])
            self.parameters |= {(name, port): file.read_text() for port, file in files.items()}
        finally:
            way.stop()
        self.down[name], self.up[name] = way.down, way.up
        return 0

    def _parameters(self, task: Task, component: Task) -> dict[str, Any]:
        root = self.spec["root"]["inputDefinitions"]["parameters"]
        given = task.get("inputs", {}).get("parameters", {})
        found = {}
        for name, declared in component.get("inputDefinitions", {}).get("parameters", {}).items():
            handed = given.get(name, {})
            if "componentInputParameter" in handed:
                found[name] = root[handed["componentInputParameter"]].get("defaultValue")
            elif "taskOutputParameter" in handed:
                source = handed["taskOutputParameter"]
                found[name] = self.parameters[source["producerTask"], source["outputParameterKey"]]
            elif "runtimeValue" in handed:
                found[name] = handed["runtimeValue"]["constant"]
            else:
                found[name] = declared.get("defaultValue")
        return {name: value for name, value in found.items() if value is not None}

    def _downloaded(self, s3: Any, task: Task, pod: Path) -> dict[str, Any]:
        found = {}
        for port, handed in task.get("inputs", {}).get("artifacts", {}).items():
            source = handed["taskOutputArtifact"]
            uri = self.uris[source["producerTask"], source["outputArtifactKey"]]
            place = pod / "in" / port / uri.rpartition("/")[2]
            download(s3, uri, place)
            found[port] = {"artifacts": [{"name": port, "uri": uri, "customPath": str(place)}]}
        return found

    def _outputs(self, name: str, component: Task, pod: Path) -> dict[str, Any]:
        return {
            port: {
                "artifacts": [
                    {
                        "name": port,
                        "uri": f"minio://{BUCKET}/{PREFIX}/{name}/{port}",
                        "customPath": str(pod / "out" / port),
                    }
                ]
            }
            for port in component["outputDefinitions"].get("artifacts", {})
        }


def contained(
    container: Mapping[str, Any],
    executor_input: Mapping[str, Any],
    there: Mapping[str, str],
    killed_when: Callable[[], bool] | None,
) -> tuple[int, str]:
    """Run a container's command as a process; its exit code and what it said."""
    words = [*container["command"][1:], *container["args"]]
    command = [sys.executable, *(json.dumps(executor_input) if word == "{{$}}" else word for word in words)]
    environment = {entry["name"]: entry["value"] for entry in container.get("env", [])}
    own = {**environment, **there, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None:
            if killed_when is not None and killed_when():
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        log.seek(0)
        return process.returncode, log.read()


def _key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def download(s3: Any, uri: str, place: Path) -> None:
    """A file, or all below an address."""
    bucket, key = _key(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    for entry in (entry for page in pages for entry in page.get("Contents", [])):
        if entry["Key"] != key and not entry["Key"].startswith(f"{key}/"):
            continue
        file = place if entry["Key"] == key else place / entry["Key"].removeprefix(f"{key}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())


def upload(s3: Any, place: Path, uri: str) -> None:
    """What lies at a path, if anything does."""
    bucket, key = _key(uri)
    for file in [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]:
        name = key if file == place else f"{key}/{file.relative_to(place).as_posix()}"
        s3.put_object(Bucket=bucket, Key=name, Body=file.read_bytes())
