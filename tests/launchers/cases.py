"""What a launcher does on a cluster, as one list: `test_cases.py` runs it on the fake, `tests/cluster` on a real one.

The pods run a few lines of shell, each knowing its rank, in any image with a shell.
"""

import contextlib
import dataclasses as dc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.launchers.proxy import Proxy

ROOT = Path(__file__).parents[2]
BOTH = ("pytorchjob", "trainjob")
SECURITY = {  # so that only what an operator adds is refused in a restricted namespace
    "runAsUser": 1000,
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Ground(Protocol):
    """A cluster, real or not."""

    image: str
    slow: float  # how many times longer things take than on the fake
    folder: Path
    proxy: Proxy

    def kubeconfig(self) -> Path:
        """Leads to the API by `proxy`, with all rights that the chart gives."""

    def without(self, verb: str, resource: str) -> Path:
        """The same without one of them."""

    def enforce(self, level: str) -> None:
        """Let the namespace enforce a level of pod security."""

    def jobs(self, kind: str) -> list[str]:
        """The names of the jobs there are."""

    def pods(self) -> list[str]:
        """The names of the pods there are."""


class Launcher:
    """A process that launches a job, and all that launchers of this job have said."""

    def __init__(self, ground: Ground, kind: str, fields: Mapping[str, Any], patience: Mapping[str, float]) -> None:
        self.ground = ground
        self.name = str(fields["name"])
        self.log = ground.folder / f"{self.name}.log"
        self.argv = [sys.executable, "-m", "tests.launchers.drive", kind, json.dumps(fields), json.dumps(patience)]
        self.config = ground.kubeconfig()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KUBECONFIG": str(self.config)}
        environment.pop("KUBERNETES_SERVICE_HOST", None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def wait_for(self, pattern: str) -> None:
        until = time.monotonic() + 60 * self.ground.slow
        while not re.search(pattern, self.said()):
            assert time.monotonic() < until and self._alive(), f"{pattern!r} was not said:\n{self.said()}"
            time.sleep(0.1)

    def _alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=120 * self.ground.slow)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()


def nothing(ground: Ground, launcher: Launcher) -> None:
    """Only look on."""


@dc.dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that happens to a job, and what its launcher says and leaves."""

    name: str
    script: str  # what each pod runs; $PET_NODE_RANK is its rank
    job: Mapping[str, Any] = dc.field(default_factory=dict)
    patience: Mapping[str, float] = dc.field(default_factory=dict)
    before: Callable[[Ground, Launcher], None] = nothing
    during: Callable[[Ground, Launcher], None] = nothing
    code: int = 0
    says: tuple[str, ...] = ()
    says_not: tuple[str, ...] = ("Traceback", "Retrying")
    once: str = ""  # a line that is said exactly so often as it was written: once
    gone: bool | None = False  # the job, afterwards; None: it may be
    kinds: tuple[str, ...] = BOTH


def killed_and_adopted(ground: Ground, launcher: Launcher) -> None:
    launcher.wait_for("step 1")
    launcher.kill()
    launcher.start()


def terminated(ground: Ground, launcher: Launcher) -> None:
    launcher.wait_for("step 1")
    launcher.signal(signal.SIGTERM)


def api_away(ground: Ground, launcher: Launcher) -> None:
    launcher.wait_for("step 1")
    ground.proxy.stop()
    time.sleep(5 if ground.slow == 1 else 60)
    ground.proxy.start()


def terminated_while_api_is_away(ground: Ground, launcher: Launcher) -> None:
    launcher.wait_for("step 1")
    ground.proxy.stop()
    launcher.signal(signal.SIGTERM)
    assert launcher.end() == 143
    ground.proxy.start()


def may_not(verb: str, resource: str) -> Callable[[Ground, Launcher], None]:
    def take(ground: Ground, launcher: Launcher) -> None:
        launcher.config = ground.without(verb, resource)

    return take


def restricted(ground: Ground, launcher: Launcher) -> None:
    ground.enforce("restricted")


STEPS = 'for i in 1 2 3 4 5; do echo "rank $PET_NODE_RANK step $i"; sleep 1; done'
LONG = 'i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo "rank $PET_NODE_RANK step $i"; sleep 1; done'
OTHER = 'if [ "$PET_NODE_RANK" = 0 ]; then sleep 300; fi; '  # what is said after it, rank 1 does

CASES = [
    Case(
        name="success",
        script=STEPS,
        says=("rank 0 step 1", "rank 0 step 5", "has succeeded"),
        says_not=("rank 1 step",),
    ),
    Case(
        name="failure",
        script=f'{OTHER} sleep 2; echo before; echo "the disk is full" >&2; exit 3',
        code=2,
        says=(r"pod \S+: exit code 3 \(Error\)\. Its last lines:\s+before\s+the disk is full",),
        says_not=("None of its pods says why", "Traceback"),
    ),
    Case(
        name="memory",
        script=f"{OTHER} exec tail /dev/zero",
        job={"resources": {"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}}},
        code=2,
        says=(r"exit code 137 \(OOMKilled\)", "raise memory_limit"),
    ),
    Case(name="adopted", script=STEPS, during=killed_and_adopted, says=("going on with it", "step 5", "has succeeded")),
    Case(name="terminated", script=LONG, during=terminated, code=143, says=("deleting",), gone=True),
    Case(
        name="away",
        script=STEPS.replace("4 5", "4 5 6 7 8 9"),
        during=api_away,
        says=("step 9", "has succeeded"),
        once="rank 0 step 9",
    ),
    Case(
        name="away-terminated",
        script=LONG,
        during=terminated_while_api_is_away,
        code=143,
        says=("cannot be reached", r"To end it now: kubectl -n \S+ delete"),
    ),
    Case(
        name="too-long",
        script=LONG,
        job={"deadline_seconds": 10},
        code=2,
        says=("timeout=10s|[Dd]eadline",),  # an operator may be faster
        gone=None,
    ),
    Case(
        name="no-priority",
        script=STEPS,
        job={"priority_class": "nosuch"},
        patience={"pending": 20, "explain": 5},
        code=2,
        says=("no PriorityClass with name nosuch was found", "priority_class"),
        kinds=("pytorchjob",),
        gone=True,
    ),
    Case(
        name="restricted",
        script=LONG,
        before=restricted,
        patience={"pending": 30, "explain": 5},
        code=2,
        says=(r"violates PodSecurity \"restricted", "enforce the level baseline", r"1 of 2 pods ran"),
        kinds=("pytorchjob",),
        gone=True,
    ),
    Case(name="restricted-train", script=STEPS, before=restricted, says=("has succeeded",), kinds=("trainjob",)),
    *(
        Case(
            name=f"no-{verb}-{resource.replace('/', '-')}",
            script=STEPS,
            before=may_not(verb, resource),
            code=2,
            says=(rf"403 Forbidden: \S+ is forbidden: User \S+ cannot {verb} resource", "docs/kubeflow.md"),
            kinds=("pytorchjob",),
            gone=True,
        )
        for verb, resource in (("create", "pytorchjobs"), ("list", "pytorchjobs"), ("list", "pods"))
    ),
    Case(
        name="no-get-pods-log",
        script=STEPS,
        before=may_not("get", "pods/log"),
        says=("cannot get resource", "its log is not shown here", "has succeeded"),
        kinds=("pytorchjob",),
    ),
    Case(
        name="no-watch-pods",
        script=STEPS,
        before=may_not("watch", "pods"),
        patience={"poll": 2},
        says=("cannot watch resource", "has succeeded"),
        kinds=("pytorchjob",),
    ),
]


def run(ground: Ground, case: Case, kind: str) -> None:
    """Let a case happen, and hold what was said and left against it."""
    fields = {"run_id": "r", "image": ground.image, "nodes": 2, "processes": 1, "security": SECURITY}
    fields |= {"name": f"{case.name}-{kind[:2]}", "command": ["sh", "-c", case.script], **case.job}
    launcher = Launcher(ground, kind, fields, {"log_retry": 0.5, "deletion": 60, **case.patience})
    case.before(ground, launcher)
    launcher.start()
    try:
        case.during(ground, launcher)
        code = launcher.end()
    finally:
        launcher.kill()
        ground.enforce("privileged")
    said = launcher.said()
    assert code == case.code, said
    for pattern in case.says:
        assert re.search(pattern, said), f"{pattern!r} was not said:\n{said}"
    for pattern in case.says_not:
        assert not re.search(pattern, said), f"{pattern!r} was said:\n{said}"
    if case.once:
        assert said.count(case.once) == 1, said
    if case.gone is not None:
        assert (launcher.name in ground.jobs(kind)) is not case.gone


def through(proxy: Proxy, config: Mapping[str, Any], host: str) -> dict[str, Any]:
    """A kubeconfig that leads through a proxy; the server's certificate is still held against its own name."""
    found: dict[str, Any] = json.loads(json.dumps(config))
    for cluster in found["clusters"]:
        scheme = cluster["cluster"]["server"].partition("://")[0]
        cluster["cluster"]["server"] = f"{scheme}://127.0.0.1:{proxy.port}"
        if scheme == "https":
            cluster["cluster"]["tls-server-name"] = host
    return found


def write(path: Path, config: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(config)), "utf-8")
    return path
