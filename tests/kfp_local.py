"""kfp's own local orchestrator, with processes in the place of containers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def start_processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let kfp.local's runner of containers start processes; the list is filled with the stages that it ran."""
    from kfp.local import docker_task_handler

    ran: list[str] = []

    def start(client: Any, image: str, command: list[str], volumes: Any, environment: Any = None, **rest: Any) -> int:
        assert command[:4] == ["python3", "-P", "-m", "steps"] and image.endswith("@sha256:" + 64 * "0")
        ran.append(command[4])
        surroundings = {**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, *command[1:]], env=surroundings, check=False).returncode

    monkeypatch.setattr(docker_task_handler, "run_docker_container", start)
    monkeypatch.setattr("docker.from_env", type("Client", (), {"close": lambda self: None, "info": lambda self: {}}))
    return ran


def run_document(text: str, root: Path, **container: Any) -> Any:
    """Run a compiled pipeline below a folder, with containers as `kfp.local.DockerRunner` is told, and return it."""
    from kfp import components, local

    local.init(local.DockerRunner(**container), pipeline_root=str(root))
    component = components.load_component_from_text(text)
    parameters = yaml.safe_load(text.split("\n---\n", maxsplit=1)[0])["root"]["inputDefinitions"]["parameters"]
    return component(**{n: p["defaultValue"] for n, p in parameters.items() if p["parameterType"] == "STRING"})
