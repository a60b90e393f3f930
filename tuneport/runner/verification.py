"""Check what runs have left: every byte of artifacts and checkpoints, what was added to them, and their lineage."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuneport.artifacts import INCOMPLETE, MANIFEST, SEAL, Artifact, faults, read_manifest
from tuneport.digests import sha256
from tuneport.errors import UserError
from tuneport.json_yaml import read_json
from tuneport.runner.cache import RECORD

DEEPEST = 5  # folders below the one that is named: RUN/STAGE/.PORT.partial/checkpoints/checkpoint-8


@dc.dataclass(frozen=True, kw_only=True)
class Checked:
    """One artifact or checkpoint, or the record of a stage that has lost one, and what is wrong with it."""

    path: str
    type: str = ""
    step: str = ""
    files: int = 0
    bytes: int = 0
    faults: list[str] = dc.field(default_factory=list)

    def line(self) -> str:
        said = f"{self.type} of {self.step}, {self.files} files, {self.bytes:,} bytes" if self.type else ""
        return f"{'damaged' if self.faults else 'whole':8} {self.path}{said and f': {said}'}"


def check(path: Path) -> Iterator[Checked]:
    """Check an artifact, a checkpoint, or all that are in a folder, such as a run's; each is read in full.

    Raises `UserError` where there is none.
    """
    if path.is_symlink():  # as `latest` is
        path = path.parent / path.readlink()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run's folder, an artifact or a checkpoint.")
    sealed, records = list(_below(path, MANIFEST, DEEPEST)), list(_below(path, RECORD, 1))
    if not sealed and not records:
        unfinished = next(_below(path, INCOMPLETE, DEEPEST), None)
        why = "the step that writes it has not finished" if unfinished else "it is something else, or it was deleted"
        raise UserError(
            f"{path}: holds no {MANIFEST}, which every finished artifact has: {why}. Name a run's folder, an artifact "
            "or a checkpoint."
        )
    for folder in sealed:
        yield _artifact(folder)
    for stage in records:
        yield from _record(stage)


def _below(folder: Path, name: str, depth: int) -> Iterator[Path]:
    """The folders that hold a file of this name, and not what is in them: an artifact's files are all its own."""
    if (folder / name).is_file():
        yield folder
    elif depth and not folder.is_symlink():
        for child in sorted(folder.iterdir()):
            if child.is_dir():
                yield from _below(child, name, depth - 1)


def _artifact(folder: Path) -> Checked:
    try:
        kind = read_json(folder / MANIFEST)["type"]
        artifact = type(str(kind), (Artifact,), {})(folder)
        manifest = read_manifest(artifact)
        found = [*faults(artifact, unread=True), *_seal(folder), *_lineage(folder, manifest["inputs"])]
        sizes = [entry["size"] for entry in manifest["files"].values()]
        step = str(manifest["producer"]["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return Checked(path=str(folder), faults=[f"{folder / MANIFEST}: is damaged ({e})."])
    except UserError as e:
        return Checked(path=str(folder), faults=[str(e)])
    return Checked(path=str(folder), type=str(kind), step=step, files=len(sizes), bytes=sum(sizes), faults=found)


def _seal(folder: Path) -> Iterator[str]:
    """A checkpoint's manifest against the digest beside it."""
    seal = folder / SEAL
    if seal.is_file() and seal.read_bytes() != sha256(folder / MANIFEST).encode():
        yield f"{folder / MANIFEST}: does not match {SEAL}."


def _lineage(folder: Path, inputs: Mapping[str, str]) -> Iterator[str]:
    """What an artifact was made from, by digest, against the artifacts of the stages beside its own."""
    beside = {path.parent: sha256(path) for path in sorted(folder.parent.parent.glob(f"*/*/{MANIFEST}"))}
    for port, wanted in inputs.items():
        named = [other for other in beside if other.name == port]
        if named and wanted not in beside.values():
            yield (
                f"{folder}: was made from another {port} than the one in {named[0]}. Run {folder.parent.name} again, "
                "or name the right folder."
            )


def _record(stage: Path) -> Iterator[Checked]:
    """The artifacts of a stage's record that are gone or were replaced since."""
    record = stage / RECORD
    try:
        outputs = dict(read_json(record)["outputs"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        yield Checked(path=str(record), faults=[f"{record}: is damaged ({e}). The stage will run again."])
        return
    for port, seal in outputs.items():
        manifest = stage / port / MANIFEST
        if not manifest.is_file():
            fault = f"{stage / port}: has no {MANIFEST}, but {RECORD} says that it was written. Run {stage.name} again."
            yield Checked(path=str(stage / port), faults=[fault])
        elif seal is not None and seal != sha256(manifest):
            fault = f"{manifest}: is not the one that {stage.name} wrote last. Run {stage.name} again."
            yield Checked(path=str(record), faults=[fault])
