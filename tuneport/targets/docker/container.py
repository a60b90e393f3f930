"""One stage as a container: what it may see, how it is stopped, and what is known of its end."""

from __future__ import annotations

import csv
import dataclasses as dc
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import threading
import time
import typing as t
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuneport.address import EXTRAS
from tuneport.artifacts import Artifact, CustomMLflowModel, CustomModel
from tuneport.confined import check_links
from tuneport.errors import UserError
from tuneport.runner.process import kill_group
from tuneport.runner.run import Executor, Plan, Stage, variables
from tuneport.step import Step
from tuneport.targets.docker.settings import Settings, shm_size

SCRATCH = Path("/tmp")  # noqa: S108  (of the container: in memory, and gone with it)
GPUS = Path("/dev/nvidiactl")  # there where a driver is
PASSED_ON = ("MLFLOW_", "OMP_")  # variables that stages get, by how they begin
USER_FOLDERS = ("TUNEPORT_TASKS", "TUNEPORT_STEPS")  # tasks and stages of the user's own
PASSED_ON_WITH_NETWORK = (
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
# What stages that read data from a store are given of the user's credentials for it, by the extra that reads it.
VARIABLES_OF_STORES = {"s3": ("AWS_",), "gcs": ("GOOGLE_",), "azure": ("AZURE_",)}
FILES_OF_STORES = {
    "s3": {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"},
    "gcs": {"GOOGLE_APPLICATION_CREDENTIALS": "~/.config/gcloud/application_default_credentials.json"},
}


class Engine:
    """The Docker that the `docker` command reaches.

    Raises `UserError` where it does not answer.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.environment = environment
        try:
            asked = self("info", "--format", "{{json .}}")
        except FileNotFoundError:
            raise UserError(
                "the docker command is not there. Install Docker and start it, or use --target local."
            ) from None
        try:
            self.info: dict[str, t.Any] = json.loads(asked.stdout)
        except ValueError:
            self.info = {}
        if asked.returncode != 0 or not self.info.get("ServerVersion"):
            words = "\n".join([*(self.info.get("ServerErrors") or []), asked.stderr]).strip().splitlines()
            raise UserError(
                f"Docker does not answer ({words[0] if words else 'no reason given'}). "
                "Start Docker, or use --target local."
            )

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `docker` command to its end."""
        return subprocess.run(
            ["docker", *arguments],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            process_group=0,  # a Ctrl-C at the terminal is for us, not for it
        )

    def inspect(self, image: str, name: str) -> dict[str, t.Any]:
        """What Docker knows of an image; ``name``: what it is to this target.

        Raises `UserError` where there is none.
        """
        found = self("image", "inspect", "--format", "{{json .}}", image)
        if found.returncode != 0:
            raise UserError(
                f"image {image}: Docker has none of that name. Build it with `make images`, get it with "
                f"`docker pull`, or name another as platform.docker.images.{name}."
            )
        known: dict[str, t.Any] = json.loads(found.stdout)
        return known

    def passes_gpus(self) -> bool:
        """Whether it can hand GPUs to a container."""
        return "nvidia" in (self.info.get("Runtimes") or {}) or bool(shutil.which("nvidia-container-runtime-hook"))

    def sees_gpus(self) -> bool:
        """Whether there are GPUs, too."""
        return self.passes_gpus() and GPUS.exists()

    def require_gpus(self) -> None:
        """Raise `UserError` where no GPU can be handed to a container."""
        if not self.passes_gpus():
            raise UserError(
                "platform.docker.gpus='all': this Docker cannot pass on a GPU. Install the NVIDIA Container Toolkit "
                "on a machine that has one, or set it to auto, which trains on the CPU."
            )


class Containers(Executor):
    """Each stage a container that sees its inputs, its output folder and the MLflow store, and nothing else.

    Every path is the same inside and outside, so that what a stage says, logs and records holds here, too.
    """

    def __init__(self, engine: Engine, settings: Settings, ids: Mapping[str, str], *, gpus: bool) -> None:
        self.engine, self.settings, self.ids, self.gpus = engine, settings, ids, gpus
        self.name = ""  # of the container that runs

    def image(self, stage: Stage) -> str:
        return self.ids[stage.step.image]

    def command(self, plan: Plan, stage: Stage) -> tuple[str, ...]:
        self.name = container_name(stage)
        self.engine("rm", "--force", self.name)  # of a run that was killed; the folder's lock says that it is over
        stage.folder.mkdir(parents=True, exist_ok=True)
        if store := local_store(plan.tracking_uri, plan.folder):
            store.mkdir(parents=True, exist_ok=True)
        named = ("--name", self.name, "--sig-proxy=false", "--log-driver", "none")
        flags = run_flags(plan, stage, self.settings, gpus=self.gpus)
        return ("docker", "run", *named, *flags, self.ids[stage.step.image], *stage.argv)

    def send(self, process: subprocess.Popen[bytes], number: int) -> None:
        threading.Thread(target=self._deliver, args=(process, self.name, number), daemon=True).start()

    def _deliver(self, process: subprocess.Popen[bytes], name: str, number: int) -> None:
        """Again and again: a container that is just being started takes no signal."""
        while process.poll() is None and self.engine("kill", "--signal", str(int(number)), name).returncode != 0:
            time.sleep(0.1)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        def work() -> None:
            self.engine("kill", self.name)
            kill_group(process.pid)

        threading.Thread(target=work, daemon=True).start()

    def ended(self, stage: Stage, code: int) -> list[str]:
        found = self.engine("inspect", "--format", "{{json .State}}", self.name)
        self.engine("rm", "--force", "--volumes", self.name)
        state = json.loads(found.stdout) if found.returncode == 0 else {}
        if state.get("OOMKilled"):
            limit = self.settings.memory
            may = f"the {limit} that platform.docker.memory lets it use" if limit else "the memory of this machine"
            return [f"It ran out of memory: it needed more than {may}. Raise the limit, or try a smaller batch."]
        if code == 137:
            return ["It was killed from outside, for example with `docker kill`."]
        return []


def run_flags(plan: Plan, stage: Stage, settings: Settings, *, gpus: bool) -> list[str]:
    """The options of `docker run` for a stage: what it sees, as whom it runs, what it may use."""
    store = local_store(plan.tracking_uri, plan.folder)
    networked = stage.step.needs_network() or store is None
    flags = [
        "--init", "--user", f"{os.getuid()}:{os.getgid()}",
        *(flag for group in os.getgroups() for flag in ("--group-add", str(group))),
        "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "--network", settings.network if networked else "none",
    ]  # fmt: skip
    mounts = merged(_mounts(plan, stage, store))
    if not any(mount.target == SCRATCH for mount in mounts):
        flags += ["--tmpfs", f"{SCRATCH}:size={settings.tmp_size}"]
    for mount in mounts:
        flags += ["--mount", mount.flag()]
    for name in _variables(plan, stage, settings, networked):
        flags += ["--env", name]
    if stage.step.needs_network():
        flags += ["--env", f"HF_HUB_CACHE={hub_cache(plan.environment)}"]
    for name, file in _credential_files(plan, stage):
        flags += ["--env", f"{name}={file}"]
    if store:
        flags += ["--workdir", str(plan.folder)]  # a relative tracking URI counts from there
    return flags + _limits(stage.step, settings, gpus)


def _variables(plan: Plan, stage: Stage, settings: Settings, networked: bool) -> list[str]:
    """The names of the variables that a stage gets; their values do not show in the list of processes."""
    names = {n for n in plan.environment if n.startswith(PASSED_ON)} | set(stage.environment) - {"PYTHONPATH"}
    if networked:
        names |= {n for n in plan.environment if n in PASSED_ON_WITH_NETWORK or n.startswith("WANDB_")}
    prefixes = tuple(p for extra in _stores(stage) for p in VARIABLES_OF_STORES.get(extra, ()))
    names |= {n for n in plan.environment if prefixes and n.startswith(prefixes)}
    names |= {n for n in USER_FOLDERS if n in plan.environment}
    return sorted(names | set(settings.environment))


def _stores(stage: Stage) -> set[str]:
    """The extras of ours by which a stage reads data that lies elsewhere."""
    return {EXTRAS[s] for a in stage.inputs.values() for one in a.each() if (s := one.address.scheme) in EXTRAS}


def _credential_files(plan: Plan, stage: Stage) -> Iterator[tuple[str, Path]]:
    """The files in which a store's own library finds credentials, each with the variable that names it."""
    for extra in _stores(stage):
        for name, default in FILES_OF_STORES.get(extra, {}).items():
            file = Path(plan.environment.get(name) or default).expanduser().absolute()
            if file.is_file():
                yield name, file


def _limits(step: Step, settings: Settings, gpus: bool) -> list[str]:
    flags = []
    if size := shm_size(step):
        flags += ["--shm-size", size[1]]
    if memory := settings.memory:
        flags += ["--memory", memory, "--memory-swap", memory]
    if gpus and step.image == "trainer":
        flags += ["--gpus", "all"]
    return flags


def shell_line(plan: Plan, stage: Stage, settings: Settings) -> str:
    """A stage's `docker run` for a person's shell: it says what it does there, and nothing of it stays."""
    gpus = settings.gpus == "all" or (settings.gpus == "auto" and GPUS.exists())
    image = vars(settings.images)[stage.step.image]
    command = ("docker", "run", "--rm", *run_flags(plan, stage, settings, gpus=gpus), image, *stage.argv)
    return f"mkdir -p {shlex.quote(str(stage.folder))} && {variables(plan, stage)} {shlex.join(command)}"


@dc.dataclass(frozen=True, kw_only=True)
class Mount:
    """A file or folder of this machine that a container sees."""

    source: Path
    target: Path
    writable: bool = False

    def flag(self) -> str:
        """As `docker run --mount` reads it: one line of CSV."""
        text = io.StringIO()
        fields = ["type=bind", f"source={self.source}", f"target={self.target}"]
        csv.writer(text, lineterminator="").writerow(fields + ([] if self.writable else ["readonly"]))
        return text.getvalue()


def container_name(stage: Stage) -> str:
    """One name for each stage of each run's folder, so that what a killed run left can be found."""
    folder = hashlib.sha256(os.fsencode(stage.folder)).hexdigest()[:12]
    return f"tuneport-{stage.name}-{folder}"


def _mounts(plan: Plan, stage: Stage, store: Path | None) -> Iterator[Mount]:
    if store:
        yield Mount(source=store, target=store, writable=True)
    yield Mount(source=plan.output_dir, target=plan.output_dir)  # earlier stages' outputs
    yield Mount(source=stage.folder, target=stage.folder, writable=True)
    if plan.digests and plan.digests.exists():
        yield Mount(source=plan.digests, target=plan.digests, writable=True)
    for artifact in stage.inputs.values():
        if artifact.user_supplied or not artifact.path.is_relative_to(plan.output_dir):
            for one in artifact.each():
                yield from read_only(one)
    for _, file in _credential_files(plan, stage):
        yield Mount(source=file, target=file)
    for folder in (plan.folder / plan.environment[name] for name in USER_FOLDERS if plan.environment.get(name)):
        yield Mount(source=folder, target=folder)
    if stage.step.needs_network():
        cache = hub_cache(plan.environment)
        cache.mkdir(parents=True, exist_ok=True)
        yield Mount(source=cache, target=cache, writable=True)


def read_only(artifact: Artifact) -> Iterator[Mount]:
    """What a user's input consists of: a file, a folder or the folder of a glob, and what links and tables lead to.

    Raises `UserError` for a link that leads out of a model's folder, but from a hub's cache to its blobs.
    """
    root = artifact.path
    if not artifact.address.is_local or not root.is_absolute():
        return
    while not root.exists() and root != root.parent:
        root = root.parent  # a glob's last folder without wildcards
    if isinstance(artifact, (CustomModel, CustomMLflowModel)):
        check_links(root)  # of data, preprocess says which links it follows
    yield Mount(source=root, target=root)
    links = [path for path in root.rglob("*") if path.is_symlink()] if root.is_dir() and root == artifact.path else []
    for path in {*artifact.members(), *links}:
        absolute = Path(os.path.normpath(path))
        if not absolute.is_relative_to(root):
            yield Mount(source=absolute, target=absolute)
        if path.is_symlink() and path.exists():
            target = Path(os.path.normpath(absolute.parent / path.readlink()))
            if not target.is_relative_to(root):
                yield Mount(source=path.resolve(), target=target)


def merged(mounts: Iterable[Mount]) -> list[Mount]:
    """One mount a place, outer ones first: what is input as well as MLflow's store must be written to.

    Raises `UserError` for what cannot be mounted.
    """
    found: dict[Path, Mount] = {}
    for mount in mounts:
        if mount.target == Path("/"):
            raise UserError("/: cannot be shown to a container. Run tuneport in another folder, with files in folders.")
        if mount.writable or mount.target not in found:
            found[mount.target] = mount
    return sorted(found.values(), key=lambda mount: len(mount.target.parts))


def local_store(tracking_uri: str, folder: Path) -> Path | None:
    """The folder of an MLflow store that is made of files, SQLite's journal among them; None: it is a server."""
    if tracking_uri.startswith("sqlite:///"):
        return (folder / unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0])).parent
    if tracking_uri.startswith("file:"):
        return folder / unquote(urlsplit(tracking_uri).path)
    return None if "://" in tracking_uri or tracking_uri == "databricks" else folder / tracking_uri


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where models of a hub are kept on this machine."""
    if cache := environment.get("HF_HUB_CACHE"):
        return Path(cache).expanduser().absolute()
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home, "hub").expanduser().absolute()
