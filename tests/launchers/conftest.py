"""Fixtures with a fake of the Kubernetes API behind KUBECONFIG."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launchers.fake_kubernetes import FakeKubernetes, Operator, kubeconfig, run_pods, start_process


@pytest.fixture
def fake_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Operator], FakeKubernetes]]:
    """Make a fake API that treats jobs as an operator says; KUBECONFIG points to it."""
    made: list[FakeKubernetes] = []

    def make(operator: Operator) -> FakeKubernetes:
        fake = FakeKubernetes(operator)
        made.append(fake)
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig(fake)))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        return fake

    yield make
    for fake in made:
        fake.close()
    left = [thread for thread in threading.enumerate() if thread.name.startswith(("watch ", "log "))]
    for thread in left:
        thread.join(5.0)
    assert not [thread.name for thread in left if thread.is_alive()], "a launcher has ended, but still asks the API"


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
