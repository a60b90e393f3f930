"""What a stage was given, saved beside its log: `tuneport replay` repeats exactly that stage from it."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import tuneport
from tuneport.artifacts import Artifact, write_atomically
from tuneport.step import Step

VARIABLE = "TUNEPORT_INPUTS"  # names the file, where a platform keeps what stages write to a folder of theirs
MASK = "***"
# Of a URI: user name and password, and what signs it.
SECRETS = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=[?&]sig=)[^&\s]+|(?<=[?&]token=)[^&\s]+", re.IGNORECASE)


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
    write_atomically(path, json.dumps(saved, indent=1, ensure_ascii=False))


def _plain(value: t.Any) -> t.Any:
    if isinstance(value, Artifact):
        value = value.location
    return SECRETS.sub(MASK, value) if isinstance(value, str) else value
