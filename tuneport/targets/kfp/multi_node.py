"""A stage on several machines: its container launches a job, and follows it.

The job's pods are none of Kubeflow Pipelines' and see none of its artifacts. With a volume that they share with the
launcher, the inputs are copied to ``<volume>/<run>/<stage>/in``, the job writes to ``out`` beside it, checkpoints
included, and what it wrote is copied to where KFP wants it. Without one they are given addresses (`by_address`).
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import sys
import typing as t
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tuneport.artifacts import Artifact, verify
from tuneport.errors import UserError, excerpt
from tuneport.launchers import cluster, job, last_words, torchrun
from tuneport.launchers.kubernetes_api import Api, Patience
from tuneport.secrets import credentials, masked
from tuneport.stage import Terminated, arguments, handled
from tuneport.step import Step, parse_values, show
from tuneport.targets.kfp.executor import RUN_FLAG, VALUES_FLAG

log = logging.getLogger("tuneport.launch")


def described(description: str) -> dict[str, t.Any]:
    """What was known of a job when the pipeline was compiled."""
    return t.cast("dict[str, t.Any]", json.loads(description))


def uses_store(known: Mapping[str, t.Any]) -> bool:
    """Whether the machines of a job get artifacts by their address."""
    return "shared" not in known


def run(step: type[Step], known: Mapping[str, t.Any], run_id: str, given: Mapping[str, t.Any]) -> int:
    """Run a stage as a job of this run; ``known``: see `described`.

    Raises `UserError` for a run id that is not one, and what the stage and the cluster refuse.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise UserError(f"{RUN_FLAG}={excerpt(run_id)}: not valid; expected the id of a run.")
    stage = step(**parse_values(step.ports(), given, step.name()))
    stage.check()
    if uses_store(known):
        _launch(known, step, run_id, _command(step, {**given, **_resumed(stage)}), None)
        return 0
    folder = Path(known["shared"], run_id, step.name())
    outputs = _artifacts(stage, "output")
    values = {**given, **_resumed(stage), **_stage_in(folder / "in", _artifacts(stage, "input"), Path(known["shared"]))}
    values |= {name: folder / "out" / name for name in outputs}
    for name in outputs:
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    _launch(known, step, run_id, _command(step, values), folder)
    _stage_out(folder, outputs)
    return 0


def _artifacts(stage: Step, kind: str) -> dict[str, Artifact]:
    ports = [name for name, port in stage.ports().items() if port.kind == kind]
    return {name: getattr(stage, name) for name in ports if getattr(stage, name) is not None}


def _resumed(stage: Step) -> Mapping[str, t.Any]:
    """A job that is started again for the same run goes on from the checkpoints of the one before."""
    return {} if stage.resumes() else stage.resume_with


def _stage_in(folder: Path, inputs: Mapping[str, Artifact], shared: Path) -> dict[str, Path]:
    """Copy inputs to the volume, each whole or not at all; one that is there from an earlier attempt is kept."""
    places = {}
    for name, artifact in inputs.items():
        source, place = artifact.path, folder / name
        if source.resolve().is_relative_to(shared):
            places[name] = source
            continue
        if not source.is_dir():
            place = place / source.name
        if not place.exists():
            partial = place.with_name(f".{place.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            _copy(source, partial)
            partial.replace(place)
            log.info("%s: copied to %s", name, place)
        places[name] = place
    return places


def _copy(source: Path, target: Path, copy: t.Callable[[str, str], object] = shutil.copy2) -> None:
    try:
        shutil.copytree(source, target, copy_function=copy) if source.is_dir() else shutil.copy2(source, target)
    except (OSError, shutil.Error) as e:
        raise UserError(f"{target}: cannot be written ({e}). Is there room, and may this user write there?") from None


class _Copied:
    """Copies files, those with several names once: what outputs share of each other is linked again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], str] = {}

    def __call__(self, source: str, target: str) -> str:
        found = Path(source).stat()
        place = found.st_dev, found.st_ino
        if place in self._known:
            with contextlib.suppress(OSError):
                os.link(self._known[place], target)
                return target
        shutil.copy2(source, target)
        if found.st_nlink > 1:
            self._known[place] = target
        return target


def _stage_out(folder: Path, outputs: Mapping[str, Artifact]) -> None:
    """Move what the job wrote to where KFP wants it, and clear the volume."""
    copied = _Copied()
    for name, artifact in outputs.items():
        written = type(artifact)(folder / "out" / name)
        verify(written)
        shutil.rmtree(artifact.path, ignore_errors=True)
        _copy(written.path, artifact.path, copied)
        log.info("%s: %s", name, artifact.path)
    shutil.rmtree(folder, ignore_errors=True)


def _command(step: type[Step], values: Mapping[str, t.Any]) -> list[str]:
    """What each machine runs: the stage, with the values that are not its defaults as one JSON argument.

    A TrainJob takes 128 words of command, and finetune has more parameters than half of that.
    """
    package, stage, *flags = arguments(step, values)
    given = dict(zip((flag.removeprefix("--") for flag in flags[::2]), flags[1::2], strict=True))
    defaults = {
        name: show(port.default) if port.type is bool else str(port.default) for name, port in step.ports().items()
    }
    other = {name: value for name, value in given.items() if defaults[name] != value}
    return ["python3", "-P", "-m", package, stage, VALUES_FLAG, json.dumps(other)]


def _launch(
    known: Mapping[str, t.Any], step: type[Step], run_id: str, command: Sequence[str], folder: Path | None
) -> None:
    """Run the job to its end. ``folder``: one that its machines share with this container."""
    api = Api(patience=Patience(pending=known["pending_seconds"]))
    own_pod = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME")
    owner = api.owner(own_pod)
    name = run_id if folder is not None else f"{run_id}-{_digest(command)}"
    job_of_run = dc.replace(_job(known, step.name(), run_id, command), name=job.job_name(step.name(), name))
    environment, reports = (_by_address if folder is None else partial(_by_folder, folder))()

    def stop(signum: int, frame: object) -> None:
        raise Terminated

    with handled(stop):
        suspend_for = own_pod if known.get("when_evicted") == "suspend" else None
        job_of_run = dc.replace(job_of_run, environment={**job_of_run.environment, **environment})
        cluster.run(api, _kind(known), job_of_run, owner, reports, suspend_for=suspend_for)


def _digest(command: Sequence[str]) -> str:
    """Tells jobs of one run apart that read or write at other addresses."""
    return hashlib.sha256("\0".join(command).encode()).hexdigest()[:8]


def _by_address() -> tuple[dict[str, str], cluster.Reports]:
    """What machines that share nothing are told, and what is heard of them: their log, and their pods' status."""
    return {last_words.VARIABLE: last_words.TERMINATION_LOG, **torchrun.patient()}, cluster.Reports(say=_say)


def _by_folder(folder: Path) -> tuple[dict[str, str], cluster.Reports]:
    """The same of machines that share a folder."""
    words = folder / "last-words"
    stop_file = folder / "stop"  # of an attempt that was ended while the API was away; this one goes on
    stop_file.unlink(missing_ok=True)

    def clear() -> None:
        shutil.rmtree(words, ignore_errors=True)
        words.mkdir(parents=True)

    seen = folder / "log-seen.json"
    reports = cluster.Reports(
        say=_say, seen=seen, left=lambda: last_words.read(words), clear=clear, abandon=stop_file.touch
    )
    return {last_words.VARIABLE: last_words.places(words), torchrun.STOP_FILE: str(stop_file)}, reports


def _say(line: str) -> None:
    sys.stderr.write(masked(line, credentials(os.environ)) + "\n")
    sys.stderr.flush()


def _kind(known: Mapping[str, t.Any]) -> job.Kind:
    return t.cast(job.Kind, importlib.import_module(f"tuneport.launchers.{known['kind']}"))


def _job(known: Mapping[str, t.Any], stage: str, run_id: str, command: Sequence[str]) -> job.Job:
    return job.Job.launched(known["job"], name=job.job_name(stage, run_id), run_id=run_id, command=command)


def manifest(known: Mapping[str, t.Any], run_id: str, command: Sequence[str], stage: str = "finetune") -> job.Manifest:
    """The object that would be created, without an owner.

    Raises `UserError` for what this kind of job has no field for.
    """
    kind = _kind(known)
    found = kind.render(_job(known, stage, run_id, command))
    kind.check(found)
    return found
