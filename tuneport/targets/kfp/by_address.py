"""Stages that read and write a store by themselves: what they read is fetched by its address, and the result is sent to
where Kubeflow wants it.

The process that a pod starts fetches what its stage reads, before it starts the ranks, so that each machine has one
reader and no rank waits for it. The first machine sends what the stage wrote; what stands in the store already, as in a
checkpoint or in an input, is copied there. Of several machines, what passes through the pod that launches them are
manifests, and the files that the UI shows.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import typing as t
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuneport import digests, stored_artifacts
from tuneport.address import Address
from tuneport.artifacts import MANIFEST, Artifact
from tuneport.errors import UserError, is_full_disk
from tuneport.launchers import torchrun
from tuneport.step import Context, Step, parse_values

log = logging.getLogger("tuneport.launch")

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # by which libraries find a store that is not Amazon's
SETTING = "platform.kfp.artifacts=store or multi_node.artifacts=store"
LOOK_SECONDS = 5.0  # between two looks for the result that another machine sends
LONGEST_WAIT = 3600.0  # seconds for it


def address(name: str, uri: str, environment: Mapping[str, str]) -> Address:
    """What Kubeflow calls an artifact, as an address that libraries of stores open: MinIO's is one of S3.

    Raises `UserError` for an artifact that lies in no store that machines reach by themselves.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "minio":
        if not any(environment.get(variable) for variable in ENDPOINTS):
            raise UserError(
                f"{name}={uri}: is in a store of the cluster's own, and nothing says where that answers. Set "
                "platform.kfp.environment.AWS_ENDPOINT_URL to the address of its S3 service, as in "
                "http://minio-service.kubeflow:9000, and its keys from a Secret that platform.kfp.secrets names."
            )
        return Address(f"s3://{rest}")
    if scheme not in stored_artifacts.SCHEMES:
        raise UserError(
            f"{name}={uri}: is in no object store that machines read by themselves; with {SETTING}, expected a "
            f"pipeline root with {', '.join(stored_artifacts.SCHEMES)} or minio. Use artifacts=kubeflow, for several "
            "machines multi_node.artifacts=volume and a shared_volume, or another pipeline root."
        )
    return Address(uri)


def run(step: type[Step], given: Mapping[str, t.Any], work: Callable[[Mapping[str, t.Any]], int]) -> int:
    """Run a stage, on its one machine or on one of several; those of its values that are addresses, by way of this
    machine's disk. One that goes on from what a failed run left does so.

    Raises `UserError` for what cannot be fetched or sent.
    """
    elsewhere = {
        name: artifact
        for name, port in step.ports().items()
        if port.is_artifact and given.get(name) and not (artifact := port.parse(given[name])).is_local
    }
    if not elsewhere:
        return work(given)
    # The same where the container is started again, and another one for another run: a volume may be mounted there.
    known = hashlib.sha256("\0".join(artifact.location for artifact in elsewhere.values()).encode()).hexdigest()[:8]
    root = Path(tempfile.gettempdir()) / f"tuneport-{step.name()}-{known}"
    root.mkdir(parents=True, exist_ok=True)
    inputs = {n: a for n, a in elsewhere.items() if step.ports()[n].kind == "input"}
    places = {name: root / ("in" if name in inputs else "out") / name for name in elsewhere}
    record = root / "digests"
    with digests.recorded(record), _room(root, step.name()):
        for name, artifact in inputs.items():
            if name in step.copies:
                places[name] = stored_artifacts.fetch_source(artifact.address, places[name])
            elif artifact.user_supplied:
                places[name] = stored_artifacts.fetch_file(artifact.address, places[name])
            else:
                leave = step.may_leave.get(name, ())
                stored_artifacts.fetch(type(artifact)(places[name]), artifact.address, leave=leave)
        for name in _needed(step, {**given, **places}, inputs):
            stored_artifacts.fetch_left(type(inputs[name])(places[name]), inputs[name].address)
    os.environ[stored_artifacts.LEFT] = "true"
    os.environ[digests.VARIABLE] = str(record)  # so that no rank reads for its digest what was read as it came
    outputs = {n: (type(a)(places[n]), a.address) for n, a in elsewhere.items() if n not in inputs}
    for kept in step.keeps_on_failure[:1] if step.resume_with else ():
        os.environ[stored_artifacts.CHECKPOINTS] = next(iter(outputs.values()))[1].child(kept).text
    code = work({**given, **places, **_resumed(step, {**given, **places})})
    if code == 0:
        with digests.recorded(record):
            _send(
                outputs,
                [artifact.address for name, artifact in inputs.items() if name in step.may_leave],
                [(artifact.address, places[name]) for name, artifact in inputs.items() if name in step.copies],
            )
        if torchrun.is_elastic(os.environ):
            _await(outputs)
    return code


def _needed(step: type[Step], values: Mapping[str, t.Any], inputs: t.Iterable[str]) -> list[str]:
    """The inputs of which the stage reads the files that it may leave in the store, too."""
    left = [name for name in inputs if name in step.may_leave]
    if not left:
        return []
    stage = step(**parse_values(step.ports(), values, step.name()))
    stage.context = Context(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or None)
    return [name for name in left if stage.needs(name)]


def _resumed(step: type[Step], values: Mapping[str, t.Any]) -> Mapping[str, t.Any]:
    """A stage whose container is started again goes on from the checkpoints that stand at its address."""
    if not step.resume_with or step(**parse_values(step.ports(), values, step.name())).resumes():
        return {}
    return step.resume_with


@contextmanager
def _room(folder: Path, stage: str) -> Iterator[None]:
    """Say what to do where the disk has no room for what is fetched. Raises `UserError`."""
    try:
        yield
    except OSError as e:
        if not is_full_disk(e):
            raise
        free = shutil.disk_usage(folder).free / 1e6
        raise UserError(
            f"{folder}: the disk is full ({free:.0f} MB free), and what {stage} reads does not fit. Give its machines "
            f"more: platform.kfp.stages.{stage}.tmp_size where it is set, or nodes with larger disks."
        ) from None


def _send(
    outputs: Mapping[str, tuple[Artifact, Address]],
    read: Sequence[Address],
    sources: Sequence[tuple[Address, Path]],
) -> None:
    """Send what the stage wrote, if rank 0 was here; what two outputs share once, and what it shares with what was read
    by its address not at all. ``sources``: what the user gave, where it stands and where it lies here.
    """
    sent = [*read]
    schemes = {place.scheme for _, place in outputs.values()}  # Kubeflow's root has one
    near = [source for source in sources if {source[0].scheme} == schemes]
    theirs = {digest: at for source in near for digest, at in stored_artifacts.paths_of(*source).items()}
    for artifact, place in outputs.values():
        if (artifact.path / MANIFEST).is_file():
            stored_artifacts.send(artifact, place, beside=tuple(sent), elsewhere=theirs)
            sent.append(place)


def _await(outputs: Mapping[str, tuple[Artifact, Address]]) -> None:
    """Wait until rank 0's machine has sent the last output: an elastic PyTorchJob ends, with all pods that still run,
    once one of them is done.
    """
    artifact, place = list(outputs.values())[-1]
    until = time.monotonic() + LONGEST_WAIT
    while not (artifact.path / MANIFEST).is_file() and MANIFEST not in stored_artifacts.StoredFolder(place).sizes():
        if time.monotonic() > until:
            log.warning("%s: is not there yet, after %.0f seconds", place, LONGEST_WAIT)
            return
        time.sleep(LOOK_SECONDS)


def check(outputs: Mapping[str, tuple[type[Artifact], Address]]) -> None:
    """See that each output stands whole where it was sent to. Raises `UserError` naming what is missing."""
    for kind, place in outputs.values():
        stored_artifacts.listed(kind, place)


def bring_file(place: Address, name: str, folder: Path) -> None:
    """Bring one file of an output to a folder."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(stored_artifacts.StoredFolder(place).read(name))
