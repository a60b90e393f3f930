"""A small runner that does with a compiled folder what Azure ML does: its rules for values, commands and folders."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

Values = dict[str, Any]
# Each output a file system of its own, as a mounted one is; what it holds in the end is copied beside it.
MOUNTED = """
for output; do mount -t tmpfs output "$output"; done
bash -c "$0"; code=$?
for output; do cp -a "$output" "$output.kept"; done
exit $code
"""
NAMESPACES = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
BINDING = re.compile(r"\$\{\{parent\.(inputs|outputs|jobs\.(\w+)\.outputs)\.(\w+)\}\}")


class Job:
    """A job that ran: the folder of each output, and each stage's command line."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder, self.mounted = folder, mounted
        self.outputs: dict[str, Path] = {}
        self.commands: dict[str, str] = {}


def run(compiled: Path, work: Path, environment: Mapping[str, str] = {}, mounted: bool = False) -> Job:
    """Run `job.yaml` of a compiled folder; every stage in a folder of its own, every output an empty folder."""
    job, spec = Job(work, mounted), yaml.safe_load((compiled / "job.yaml").read_text("utf-8"))
    given = {name: value["path"] if isinstance(value, dict) else value for name, value in spec["inputs"].items()}
    for name, value in spec["inputs"].items():
        if isinstance(value, dict) and not Path(value["path"]).is_absolute():
            given[name] = str((compiled / value["path"]).resolve())
    (node,) = spec["jobs"].values()
    bound = {name: given[binding(value, "inputs")] for name, value in node["inputs"].items()}
    assert node["outputs"].items() == {name: f"${{{{parent.outputs.{name}}}}}" for name in spec["outputs"]}.items()
    run_pipeline(job, compiled / node["component"], bound, environment)
    return job


def binding(text: str, kind: str) -> str:
    found = BINDING.fullmatch(text)
    assert found and found[1] == kind, text
    return found[3]


def run_pipeline(job: Job, file: Path, given: Values, environment: Mapping[str, str]) -> None:
    spec = yaml.safe_load(file.read_text("utf-8"))
    values = accept(spec["inputs"], given, file)
    made: dict[tuple[str, str], Path] = {}

    def resolve(value: Any) -> Any:
        if not isinstance(value, str) or not (found := BINDING.fullmatch(value)):
            return value
        return values[found[3]] if found[1] == "inputs" else str(made[found[2], found[3]])

    for name, node in spec["jobs"].items():
        inputs = {key: value for key, text in node["inputs"].items() if (value := resolve(text)) is not None}
        assert resolve(node.get("compute", "serverless")) == "serverless"
        processes = resolve(node.get("distribution", {}).get("process_count_per_instance", 1))
        nodes = resolve(node.get("resources", {}).get("instance_count", 1))
        variables = {**environment, **node.get("environment_variables", {})}
        ranks = [
            {**variables, **rank} for rank in (rank_variables(nodes, processes) if "distribution" in node else [{}])
        ]
        component = file.parent / node["component"]
        for output, folder in run_command(job, name, component, inputs, ranks).items():
            made[name, output] = folder
        for output, text in node.get("outputs", {}).items():
            job.outputs[binding(text, "outputs")] = made[name, output]


def rank_variables(nodes: int, processes: int) -> list[dict[str, str]]:
    """What Azure ML sets for each of the processes that it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    every = {
        "WORLD_SIZE": str(nodes * processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        {**every, "RANK": str(rank), "NODE_RANK": str(rank // processes), "LOCAL_RANK": str(rank % processes)}
        for rank in range(nodes * processes)
    ]


def accept(declared: Mapping[str, Values], given: Values, where: Path) -> Values:
    """Every declared input's value; None where it is optional and has none. Types and limits are Azure ML's."""
    assert set(given) <= set(declared), where
    values = {}
    for name, spec in declared.items():
        value = given.get(name, spec.get("default"))
        assert value is not None or spec.get("optional"), f"{where}: {name} is required"
        if value is not None:
            check(spec, value, f"{where}: {name}={value!r}")
        values[name] = value
    return values


def check(spec: Values, value: Any, where: str) -> None:
    types = {"integer": int, "number": (int, float), "boolean": bool}
    assert isinstance(value, types.get(spec["type"], str)), where
    assert spec.get("min", value) <= value <= spec.get("max", value), where
    assert value in spec.get("enum", [value]) and value != "", where


def run_command(
    job: Job,
    name: str,
    file: Path,
    given: Values,
    ranks: Sequence[Mapping[str, str]],
) -> dict[str, Path]:
    """Run a component's command, once for each rank with its variables; returns the folders that it has filled."""
    spec = yaml.safe_load(file.read_text("utf-8"))
    values = accept(spec["inputs"], given, file)
    outputs = {output: job.folder / name / "outputs" / output for output in spec["outputs"]}
    cwd = job.folder / name / "wd"
    for folder in (cwd, *outputs.values()):
        folder.mkdir(parents=True)
    command = job.commands[name] = render(spec["command"], values, outputs)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = job.folder / name / "log.txt"
    with log.open("w") as sink:
        started = [
            subprocess.Popen(
                [*NAMESPACES, "sh", "-c", MOUNTED, command, *outputs.values()]
                if job.mounted
                else ["bash", "-c", command],
                cwd=cwd,
                env={**os.environ, "PATH": path, **rank},
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
            for rank in ranks
        ]
        codes = [process.wait() for process in started]
    assert codes == [0] * len(ranks), f"{name}: {command}\n{log.read_text()}"
    return {name: Path(f"{path}.kept") for name, path in outputs.items()} if job.mounted else outputs


def render(command: str, values: Values, outputs: Mapping[str, Path]) -> str:
    """Optional parts are left out where their input has no value; then every expression becomes its text."""

    def optional(match: re.Match[str]) -> str:
        names = re.findall(r"\$\{\{inputs\.(\w+)\}\}", match[1])
        return match[1] if all(values[name] is not None for name in names) else ""

    def text(match: re.Match[str]) -> str:
        return str(values[match[2]] if match[1] == "inputs" else outputs[match[2]])

    command = re.sub(r"\$\[\[(.*?)\]\]", optional, command)
    return re.sub(r"\$\{\{(inputs|outputs)\.(\w+)\}\}", text, command)


@pytest.fixture
def run_job() -> Callable[..., Job]:
    return run


@pytest.fixture
def mounts(tmp_path: Path) -> None:
    """Skip where the system lets a test mount nothing."""
    script = [*NAMESPACES, "mount", "-t", "tmpfs", "output", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(script, check=False).returncode:
        pytest.skip("this system lets a test mount nothing")
