"""The list of what a launcher does on a cluster, on the fake; `tests/cluster` runs the same list on a real one."""

import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launchers import cases
from tests.launchers.fake_kubernetes import FakeKubernetes, kubeconfig
from tests.launchers.fake_operator import operate
from tests.launchers.proxy import Proxy

pytestmark = pytest.mark.slow


class Fake:
    """The fake as a ground for cases."""

    image = "none: pods are processes"
    slow = 1.0

    def __init__(self, fake: FakeKubernetes, folder: Path) -> None:
        self.fake, self.folder = fake, folder
        url = urllib.parse.urlsplit(fake.url)
        self.proxy = Proxy(str(url.hostname), int(url.port or 0))

    def kubeconfig(self) -> Path:
        return cases.write(self.folder / "through", cases.through(self.proxy, kubeconfig(self.fake), "127.0.0.1"))

    def without(self, verb: str, resource: str) -> Path:
        self.fake.denied = {(verb, resource)}
        return self.kubeconfig()

    def enforce(self, level: str) -> None:
        self.fake.enforced = level

    def jobs(self, kind: str) -> list[str]:
        return [name for name, job in self.fake.jobs.items() if job["kind"].lower() == kind]

    def pods(self) -> list[str]:
        return list(self.fake.pods)


@pytest.fixture
def ground(fake_kubernetes: Callable[..., FakeKubernetes], tmp_path: Path) -> Iterator[Fake]:
    made = Fake(fake_kubernetes(operate), tmp_path)
    yield made
    made.proxy.stop()


@pytest.mark.parametrize(
    ("case", "kind"), [(c, k) for c in cases.CASES for k in c.kinds], ids=lambda v: getattr(v, "name", v)
)
def test_a_launcher_does_what_the_list_says(ground: Any, case: cases.Case, kind: str) -> None:
    cases.run(ground, case, kind)
