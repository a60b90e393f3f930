"""When a stage's result still stands: its parameters, inputs, code and libraries are the same and its outputs whole."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import typing as t
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from tuneport.artifacts import (
    MANIFEST,
    Artifact,
    digest,
    expand,
    faults,
    files,
    mixed_digest,
    verify,
    write_atomically,
)
from tuneport.digests import of_all, sha256
from tuneport.errors import UserError
from tuneport.json_yaml import read_json, to_json
from tuneport.secrets import masked, masked_values

RECORD = "stage.json"
SECTIONS = {
    "parameters": "parameter", "inputs": "input", "code": "code", "libraries": "library", "origins": "version of",
}  # fmt: skip
# Of tuneport itself: what decides how a run is described and started, and never what a stage writes.
NOT_CODE = (
    "tuneport/_examples/", "tuneport/targets/", "tuneport/runner/", "tuneport/cli/", "tuneport/config.py",
    "tuneport/history/", "tuneport/inspection/", "tuneport/estimation/", "tuneport/synonyms.py",
)  # fmt: skip
# The libraries that a stage's result may depend on; others are not looked at.
LIBRARIES = (
    "accelerate", "huggingface_hub", "matplotlib", "mlflow", "mlflow-skinny", "numpy", "pandas", "pyarrow",
    "safetensors", "scikit-learn", "seqeval", "tokenizers", "torch", "transformers",
)  # fmt: skip

Record = dict[str, t.Any]


class Digests:
    """Digests of what the user supplies, each read once in a run, however many stages read it."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def of(self, artifact: Artifact) -> str:
        if not artifact.user_supplied:
            return digest(artifact)
        if artifact.location not in self.known:
            self.known[artifact.location] = _user_digest(artifact)
        return self.known[artifact.location]


def _user_digest(artifact: Artifact) -> str:
    """Of the bytes, never of a manifest that the folder may hold: the user may have edited the files since."""
    if artifact.is_mixture:
        return mixed_digest(artifact, _user_digest)
    if not expand(artifact.path):  # a URI, that no file of this machine stands for, counts by its text, secrets masked
        return hashlib.sha256(masked(artifact.location).encode("utf-8", "surrogateescape")).hexdigest()
    if not artifact.path.is_dir():
        return digest(artifact)
    total = hashlib.sha256()
    for path, found in of_all(artifact.members()).items():
        name = os.path.relpath(path, artifact.path)
        total.update(f"{name}\0{found}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def record(
    name: str,
    parameters: Mapping[str, t.Any],
    inputs: Mapping[str, Artifact],
    packages: Iterable[str],
    digests: Digests,
    *,
    origins: Mapping[str, str],
    image: str | None = None,
) -> Record:
    """All that a stage's result depends on, and one key that stands for it, but for ``origins``: those not known now
    are taken to be as they were. ``image``: what holds code and libraries, where they are not those here.

    Parameters are kept without the secrets of addresses; the key is of the whole values."""
    parts: Record = {
        "step": name,
        "parameters": dict(parameters),
        "inputs": {port: digests.of(artifact) for port, artifact in inputs.items()},
        "code": {"image": image} if image else {package: code_digest(package) for package in packages},
        "libraries": {} if image else library_versions(),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"key": key, **parts, "parameters": masked_values(parameters), "origins": dict(origins)}


@cache
def code_digest(package: str) -> str:
    """One SHA-256 over the files of a package, or the one of a module, that can change what a stage writes."""
    module = importlib.import_module(package)
    if not hasattr(module, "__path__"):
        return sha256(Path(str(module.__file__)))
    total = hashlib.sha256()
    for root in module.__path__:
        for path in files(Path(root)):
            name = f"{package}/{path.relative_to(root).as_posix()}"
            if "__pycache__" not in path.parts and not name.startswith(NOT_CODE):
                total.update(f"{name}\0{sha256(path)}\n".encode())
    return total.hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Installed version of each library that matters."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def stale(folder: Path, now: Record, outputs: Mapping[str, Artifact]) -> str:
    """Why a stage must run again, in words; empty where its result still stands."""
    try:
        before = read_json(folder / RECORD)
        written = dict(before["outputs"])
        differing = _differences(before, now) or ["key"] * (before["key"] != now["key"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "no finished result"
    if differing:
        return f"changed: {', '.join(differing)}"
    try:
        for port, artifact in outputs.items():
            if written.get(port) != _seal(artifact):
                return f"its {port} is not the one it wrote"
            check_sizes(artifact)
            if _touched(artifact, (folder / RECORD).stat().st_mtime_ns):
                verify(artifact)
    except UserError as e:
        return str(e)
    return ""


def _differences(before: Record, now: Record) -> list[str]:
    return [
        f"{word} {name}"
        for section, word in SECTIONS.items()
        for name in sorted(set(now[section]) if section == "origins" else set(before[section]) | set(now[section]))
        if before[section].get(name) != now[section].get(name)
    ]


def check_sizes(artifact: Artifact) -> None:
    """Hold an artifact's files against its manifest without reading them.

    Raises `UserError` where the artifact or one of its files is absent, has another size or was added.
    """
    for fault in faults(artifact, digests=False):
        raise UserError(fault)


def _touched(artifact: Artifact, since: int) -> bool:
    """Whether a file was written to after ``since`` (nanoseconds): then its size alone proves nothing."""
    return any(path.stat().st_mtime_ns > since for path in files(artifact.path))


def forget(folder: Path) -> None:
    """Discard the cached result: the user asked to rerun this stage."""
    (folder / RECORD).unlink(missing_ok=True)


def remember(folder: Path, record: Record, outputs: Mapping[str, Artifact], seconds: float) -> None:
    """A stage ended well: keep what its result depends on, and its outputs' digests."""
    seals = {port: _seal(artifact) for port, artifact in outputs.items()}
    text = to_json({**record, "outputs": seals, "seconds": round(seconds, 3)}, indent=1)
    write_atomically(folder / RECORD, text)


def _seal(artifact: Artifact) -> str | None:
    manifest = artifact.path / MANIFEST
    return sha256(manifest) if manifest.is_file() else None
