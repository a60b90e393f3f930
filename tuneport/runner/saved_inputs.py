"""What a stage was given, saved beside its log: `tuneport replay` repeats exactly that stage from it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import tuneport
from tuneport.artifacts import SELF, Artifact, self_digest, write_atomically
from tuneport.json_yaml import to_json
from tuneport.secrets import masked_values
from tuneport.step import Step

VARIABLE = "TUNEPORT_INPUTS"  # names the file, where a platform keeps what stages write to a folder of theirs


def file_of(log: Path) -> Path:
    """Where a stage's values stand: ``logs/finetune.inputs.json`` beside ``logs/finetune.log``."""
    return log.with_suffix(".inputs.json")


def save(path: Path, step: Step) -> None:
    """Write every value that a stage is given, secrets masked."""
    ports = step.ports().values()
    values = {p.name: _plain(getattr(step, p.name)) for p in ports if p.kind in ("input", "param")}
    outputs = {p.name: _plain(getattr(step, p.name)) for p in ports if p.kind == "output"}
    saved = {"stage": step.name(), "tuneport": tuneport.__version__, "values": values, "outputs": outputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json({**saved, SELF: self_digest(saved)}, indent=1))


def _plain(value: t.Any) -> t.Any:
    return masked_values(value.location if isinstance(value, Artifact) else value)
