"""`run.json`: what a run's folder says of the run itself: of what, when, with which values, and how it ended."""

from __future__ import annotations

import dataclasses as dc
import fcntl
import hashlib
import json
import os
import typing as t
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tuneport.artifacts import write_atomically
from tuneport.graph import Pipeline
from tuneport.json_yaml import read_json, to_json
from tuneport.secrets import masked_values

FILE = "run.json"
Status = t.Literal["running", "finished", "failed", "stopped"]


@dc.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What is known of a run; times are ISO 8601 in UTC."""

    pipeline: str
    configuration: str  # one SHA-256 of the values, by which an interrupted run is found again
    values: Mapping[str, t.Any]  # those that are not their defaults, without secrets
    stages: tuple[str, ...]
    status: Status = "running"
    started: str = ""
    ended: str = ""

    @property
    def seconds(self) -> float | None:
        """How long it took; None where it has not ended."""
        if not self.ended:
            return None
        return (datetime.fromisoformat(self.ended) - datetime.fromisoformat(self.started)).total_seconds()


def record_of(pipeline: Pipeline, values: Mapping[str, t.Any]) -> RunRecord:
    """The record of a run that has not begun."""
    given = {n: v for n, v in values.items() if v != pipeline.params[n].default}
    return RunRecord(
        pipeline=pipeline.name,
        configuration=configuration(pipeline, values),
        values={name: masked_values(getattr(value, "location", value)) for name, value in given.items()},
        stages=tuple(node.name for node in pipeline.active(values)),
    )


def configuration(pipeline: Pipeline, values: Mapping[str, t.Any]) -> str:
    """One SHA-256 of a pipeline's values, but for those by which an interrupted stage is told to go on."""
    resuming = {name for node in pipeline.nodes for name in node.step.resume_with}
    plain = {n: getattr(v, "location", v) for n, v in values.items() if n not in resuming}
    text = json.dumps([pipeline.name, plain], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def begun(folder: Path, record: RunRecord) -> RunRecord:
    """Write that a run has begun; returns what was written."""
    started = dc.replace(record, status="running", started=_now(), ended="")
    _write(folder, started)
    return started


def ended(folder: Path, record: RunRecord, status: Status) -> RunRecord:
    """Write how a run ended; returns what was written."""
    done = dc.replace(record, status=status, ended=_now())
    _write(folder, done)
    return done


def read(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None where there is none, or it is damaged.

    A run that says that it is running, but whose processes are gone, was stopped.
    """
    try:
        found = read_json(folder / FILE)
        fields = {f.name: found[f.name] for f in dc.fields(RunRecord)}
        record = RunRecord(**fields | {"stages": tuple(found["stages"])})
        if record.status == "running" and not is_locked(folder):
            return dc.replace(record, status="stopped")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def is_locked(folder: Path) -> bool:
    """Whether a process is at work in a run's folder."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _write(folder: Path, record: RunRecord) -> None:
    write_atomically(folder / FILE, to_json(dc.asdict(record), indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat()
