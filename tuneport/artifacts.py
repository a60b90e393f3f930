"""What steps hand to each other: typed folders with a manifest that is written last and verified on read."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tuneport.errors import UserError

MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"  # present while a step writes; a folder that holds it is no artifact
SCHEMA_VERSION = 1
BLOCK = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A folder (or, for what the user supplies, a file) with a meaning."""

    path: Path
    user_supplied: ClassVar[bool] = False  # no manifest is required of it; the step validates it instead
    unread: ClassVar[tuple[str, ...]] = ()  # sub-folders no later step reads: checked by size, not by digest

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def location(self) -> str:
        """The path or URI as the user wrote it; a `Path` makes one slash of the two in ``s3://``."""
        return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", str(self.path))

    @classmethod
    def type_name(cls) -> str:
        return cls.__name__

    def members(self) -> list[Path]:
        """The files whose bytes this artifact stands for."""
        return expand(self.path)


class Model(Artifact):
    """A Hugging Face model folder: config, safetensors, tokenizer; after training also ``checkpoints/``."""

    unread = ("checkpoints/",)


class Dataset(Artifact):
    """Tokenised splits in Arrow, their raw rows, and the data report."""


class MLflowModel(Artifact):
    """A folder that `mlflow.pyfunc.load_model` loads."""


class Report(Artifact):
    """Metrics, predictions and one self-contained HTML report."""


class Registration(Artifact):
    """Name and version under which a model stands in a registry."""


class File(Artifact):
    """A user's data: one file, a glob of shards, or a folder of them."""

    user_supplied = True


class MLTable(Artifact):
    """A user's MLTable folder."""

    user_supplied = True

    def members(self) -> list[Path]:
        """Its own files, and those elsewhere that its YAML names; preprocess says what is wrong with it."""
        import yaml

        try:
            table = yaml.safe_load((self.path / "MLTable").read_text("utf-8"))
            named = [self.path / str(value) for entry in table["paths"] for value in entry.values()]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            named = []
        return sorted({*expand(self.path), *(file for path in named for file in expand(path))})


class CustomModel(Artifact):
    """A user's Hugging Face model folder, or a GGUF file."""

    user_supplied = True
    unread = ("checkpoints/",)


class CustomMLflowModel(Artifact):
    """A user's MLflow model folder."""

    user_supplied = True


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files(folder: Path) -> Iterator[Path]:
    """Every file under a folder, sorted, without the manifest and the incomplete marker."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in (folder / MANIFEST, folder / INCOMPLETE):
            yield path


def write_manifest(
    artifact: Artifact, step: str, version: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    """Seal a folder: list its files with size and SHA-256, then put ``manifest.json`` there atomically.

    ``inputs`` maps the name of each input to the digest of its manifest (or of the user's bytes), and that of a hub
    model to its commit: the lineage.
    Holds no time stamp, so that equal work gives an equal manifest.
    """
    listed = {
        p.relative_to(artifact.path).as_posix(): {"size": p.stat().st_size, "sha256": sha256(p)}
        for p in files(artifact.path)
    }
    manifest = {
        "type": artifact.type_name(),
        "schema_version": SCHEMA_VERSION,
        "producer": {"step": step, "version": version},
        "parameters": dict(parameters),
        "inputs": dict(inputs),
        "files": listed,
    }
    write_atomically(artifact.path / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the whole new one, also after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def link_or_copy(source: str, target: str) -> str:
    """Give a file that nobody writes to again a second name, or a copy where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def read_manifest(artifact: Artifact) -> dict[str, Any]:
    """Return the manifest of an artifact.

    Raises `UserError` where the folder is absent, unfinished, of another type or of a newer schema.
    """
    path = artifact.path / MANIFEST
    wanted = artifact.type_name()
    if not artifact.path.is_dir():
        raise UserError(
            f"{artifact.path}: no such folder; expected a {wanted} artifact. Run the step that writes it first."
        )
    if not path.is_file():
        raise UserError(
            f"{artifact.path}: has no {MANIFEST}, so it is not a finished {wanted} artifact. "
            "Run the step that writes it again."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found, schema = manifest["type"], manifest["schema_version"]
        _ = [(entry["size"], entry["sha256"]) for entry in manifest["files"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: is damaged ({e}). Run the step that writes it again.") from None
    if schema > SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {schema}; this tuneport reads up to {SCHEMA_VERSION}. Upgrade tuneport."
        )
    if not artifact.user_supplied and found != wanted:
        raise UserError(f"{artifact.path}: is a {found} artifact; expected a {wanted}.")
    return manifest


def verify(artifact: Artifact) -> None:
    """Hold an artifact's files against its manifest: every size, and the SHA-256 of all but the ``unread`` ones.

    Raises `UserError` naming the first file that is missing, truncated or altered.
    """
    for name, want in read_manifest(artifact)["files"].items():
        path = artifact.path / name
        if not path.is_file():
            if artifact.user_supplied and name.startswith(artifact.unread):
                continue  # checkpoints are often deleted to free the disk
            raise UserError(f"{path}: is missing, but {MANIFEST} lists it. Run the step that wrote it again.")
        size = path.stat().st_size
        if size != want["size"]:
            raise UserError(
                f"{path}: has {size} bytes, its manifest says {want['size']}. Run the step that wrote it again."
            )
        if not name.startswith(artifact.unread) and sha256(path) != want["sha256"]:
            raise UserError(
                f"{path}: was altered after it was written (SHA-256 differs). Run the step that wrote it again."
            )


def digest(artifact: Artifact) -> str:
    """One SHA-256 that stands for an artifact: of its manifest, or of every byte the user supplies."""
    if (artifact.path / MANIFEST).is_file():
        return sha256(artifact.path / MANIFEST)
    total = hashlib.sha256()
    for path in artifact.members():
        name = os.path.relpath(path, artifact.path.parent)
        total.update(f"{name}\0{sha256(path)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def expand(path: Path) -> list[Path]:
    """The files that a user's path stands for: itself, all in a folder, or the matches of a glob; sorted."""
    if path.is_file():
        return [path]
    if path.is_dir():
        return list(files(path))
    return sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
