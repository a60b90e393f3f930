"""What steps hand to each other: typed folders with a manifest that is written last and verified on read."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, ClassVar, Self

from tuneport import mixture
from tuneport.address import Address
from tuneport.digests import of_all, sha256
from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import read_json, read_yaml, to_json
from tuneport.secrets import masked_values

MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"  # present while a step writes; a folder that holds it is no artifact
ABSENT = ".absent.json"  # what a folder's manifest says of files that were left in the store that the folder is of
SEAL = "manifest.sha256"  # in a checkpoint: digest of its manifest
SELF = "sha256"  # in a record: digest of all else that it says
# What a sealed folder may hold beside the files that its manifest lists, as no step reads it: what desktops, Python and
# MLflow leave there, and words for people. Hidden files are of this kind, too.
HARMLESS = ("__pycache__", "README*", "LICENSE*", "NOTICE*", "Thumbs.db", "desktop.ini", "registered_model_meta", SEAL)
SCHEMA_VERSION = 2  # since 2, a manifest holds its own digest
BLOCK = 1 << 20
NOWHERE = Path(os.devnull, "mixture")  # under what is no folder: no file stands there


@dataclass(frozen=True)
class Artifact:
    """A folder (or, for what the user supplies, a file) with a meaning."""

    path: Path
    uri: str | None = field(default=None, compare=False)  # of what lies elsewhere; ``path`` is no file then
    user_supplied: ClassVar[bool] = False  # no manifest is required of it; the step validates it instead
    unread: ClassVar[tuple[str, ...]] = ()  # how files begin that no later step reads: checked by size, not by digest
    also: ClassVar[tuple[str, ...]] = ()  # other types whose folders do as well, as they hold all of this one's

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def at(cls, address: Address) -> Self:
        """What lies at an address."""
        return cls(Path(address.text), None if address.is_local else address.text)

    @classmethod
    def mixed(cls, text: str) -> Self:
        """Several sources in one: the text of `tuneport.mixture.canonical`."""
        return cls(NOWHERE / hashlib.sha256(os.fsencode(text)).hexdigest(), text)

    @property
    def is_mixture(self) -> bool:
        return self.path.parent == NOWHERE

    def each(self) -> tuple[Self, ...]:
        """The sources of a mixture; anything else is one."""
        if not self.is_mixture:
            return (self,)
        return tuple(self.at(part.address) for part in mixture.parts(self.location))

    @property
    def is_local(self) -> bool:
        """Whether all of it lies on this machine."""
        return all(one.address.is_local for one in self.each())

    @property
    def location(self) -> str:
        """The path or URI as the user wrote it; of a mixture its text."""
        return self.address.text

    @property
    def address(self) -> Address:
        """Where it lies."""
        return Address.of(self.uri or self.path)

    @classmethod
    def type_name(cls) -> str:
        return cls.__name__

    def members(self) -> list[Path]:
        """The files whose bytes this artifact stands for."""
        return expand(self.path)


class Model(Artifact):
    """A Hugging Face model folder: config, safetensors, tokenizer; after training also ``checkpoints/``."""

    unread = ("checkpoints/",)


class Tokenizer(Artifact):
    """A model's folder without its weights: tokenizer, configuration and licence. A whole model does as well."""

    unread = ("checkpoints/", "model.safetensors", "model-")
    also = ("Model",)


class Dataset(Artifact):
    """Tokenised splits in Arrow, their raw rows, and the data report."""


class MLflowModel(Artifact):
    """A folder that `mlflow.pyfunc.load_model` loads."""


class LoggedModel(Artifact):
    """Where an exported MLflow model was logged, and its digest. A whole MLflow model does as well."""

    also = ("MLflowModel",)


class Report(Artifact):
    """Metrics, predictions and one self-contained HTML report."""


class Predictions(Artifact):
    """Rows with a model's answers, as JSON lines."""


class Registration(Artifact):
    """Name and version under which a model stands in a registry."""


class File(Artifact):
    """A user's data: one file, a glob of shards, or a folder of them."""

    user_supplied = True


class Folder(Artifact):
    """A user's folder of files of any kind."""

    user_supplied = True


class MLTable(Artifact):
    """A user's MLTable folder."""

    user_supplied = True

    def members(self) -> list[Path]:
        """Its own files, and those elsewhere that its YAML names; preprocess says what is wrong with it."""
        if self.is_mixture:
            return [file for one in self.each() for file in one.members()]
        try:
            table = read_yaml(self.path / "MLTable")
            named = [self.path / str(value) for entry in table["paths"] for value in entry.values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            named = []
        return sorted({*expand(self.path), *(file for path in named for file in expand(path))})


class CustomModel(Artifact):
    """A user's Hugging Face model folder, or a GGUF file."""

    user_supplied = True
    unread = ("checkpoints/",)


class CustomMLflowModel(Artifact):
    """A user's MLflow model folder."""

    user_supplied = True


def files(folder: Path) -> Iterator[Path]:
    """Every file under a folder, sorted, without the manifest, the incomplete marker and the list of absent files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in (folder / MANIFEST, folder / INCOMPLETE, folder / ABSENT):
            yield path


def absent(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, what a manifest says of the files that belong to a folder and were left in a store, unread."""
    return dict(read_json(folder / ABSENT)) if (folder / ABSENT).is_file() else {}


def leave_absent(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Note the files that belong to a folder and stay in a store: its manifest lists them, no reader finds them."""
    write_atomically(folder / ABSENT, to_json({name: dict(entry) for name, entry in entries.items()}))


def entries(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """By name, what a manifest says of files: their sizes and SHA-256."""
    found = of_all(files.values())
    return {name: {"size": path.stat().st_size, "sha256": found[path]} for name, path in files.items()}


def write_manifest(
    artifact: Artifact,
    step: str,
    version: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Seal a folder: list its files with size and SHA-256, then put ``manifest.json`` there atomically.

    ``inputs`` maps the name of each input to the digest of its manifest (or of the user's bytes), and that of a hub
    model to its commit: the lineage. Addresses among the values stand there without their secrets.
    ``known`` holds the entries of files that other processes wrote and read, by name; those are not read here again,
    nor those of checkpoints in the folder, which are sealed already. Files that were left in a store (`leave_absent`)
    stand there as they do in the manifest that they come from.
    Holds no time stamp, so that equal work gives an equal manifest.
    """
    names = {p.relative_to(artifact.path).as_posix(): p for p in files(artifact.path)}
    elsewhere = known or {}
    for name in elsewhere:
        if name not in names or names[name].stat().st_size != elsewhere[name]["size"]:
            raise OSError(f"{artifact.path / name}: another process wrote it, and it is not here as it was written")
    settled = {**_sealed_within(artifact.path, names), **elsewhere}
    read = entries({name: path for name, path in names.items() if name not in settled})
    listed = {name: dict(settled[name]) if name in settled else read[name] for name in names}
    if left := absent(artifact.path):
        listed = dict(sorted((listed | left).items(), key=lambda item: PurePath(item[0])))
    manifest = {
        "type": artifact.type_name(),
        "schema_version": SCHEMA_VERSION,
        "producer": {"step": step, "version": version},
        "parameters": masked_values(parameters),
        "inputs": masked_values(inputs),
        "files": listed,
    }
    write_atomically(artifact.path / MANIFEST, _manifest_text(manifest))


def _sealed_within(folder: Path, names: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
    """The entries of files of checkpoints in a folder, as their own manifests list them."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, path in names.items():
        manifest = path.with_name(MANIFEST)
        if path.name != SEAL or not manifest.is_file() or path.read_bytes() != sha256(manifest).encode():
            continue
        listed = read_json(manifest)["files"]
        found |= {f"{name.removesuffix(SEAL)}{part}": entry for part, entry in listed.items()}
    return {name: e for name, e in found.items() if name in names and names[name].stat().st_size == e["size"]}


def digest_without(artifact: Artifact, kind: type[Artifact]) -> str:
    """What `digest` says of the output of the same step that holds the same files but for those ``kind`` does not read.

    So it is known which of two such outputs belong together, without any note of it.
    """
    manifest = {key: value for key, value in read_manifest(artifact).items() if key != SELF}
    listed = {name: entry for name, entry in manifest["files"].items() if not name.startswith(kind.unread)}
    manifest |= {"type": kind.type_name(), "files": listed}
    return hashlib.sha256(_manifest_text(manifest).encode()).hexdigest()


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return to_json({**manifest, SELF: self_digest(manifest)}, indent=1)


def self_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON record of ours says, but for this digest: so that an altered record is noticed."""
    said = {key: value for key, value in record.items() if key != SELF}
    return hashlib.sha256(to_json(said, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the whole new one, also after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def read_manifest(artifact: Artifact) -> dict[str, Any]:
    """Return the manifest of an artifact.

    Raises `UserError` where the folder is absent, unfinished, of another type or of a newer schema.
    """
    path = artifact.path / MANIFEST
    wanted = " or ".join((artifact.type_name(), *artifact.also))
    if not artifact.path.is_dir():
        raise UserError(
            f"{artifact.path}: no such folder; expected a {wanted} artifact. Run the step that writes it first."
        )
    if not path.is_file():
        raise UserError(
            f"{artifact.path}: has no {MANIFEST}, so it is not a finished {wanted} artifact: it is something else, or "
            f"the {MANIFEST} was deleted. Run the step that writes it again."
        )
    try:
        manifest: dict[str, Any] = read_json(path)
        found, schema = manifest["type"], manifest["schema_version"]
        newer = schema > SCHEMA_VERSION
        _ = [(entry["size"], entry["sha256"]) for entry in manifest["files"].values()]
        if strange := next((n for n in manifest["files"] if Path(n).is_absolute() or ".." in Path(n).parts), None):
            raise ValueError(f"it lists {excerpt(strange)}, which lies outside of the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: is damaged ({e}). Run the step that writes it again.") from None
    if newer:
        raise UserError(
            f"{path}: schema version {schema}; this tuneport reads up to {SCHEMA_VERSION}. Upgrade tuneport."
        )
    if (SELF in manifest or schema > 1) and manifest.get(SELF) != self_digest(manifest):
        raise UserError(
            f"{path}: was altered after it was written (its own SHA-256 differs). Run the step that writes it again."
        )
    if not artifact.user_supplied and found not in (artifact.type_name(), *artifact.also):
        raise UserError(f"{artifact.path}: is a {found} artifact; expected a {wanted}.")
    return manifest


def is_sealed(artifact: Artifact) -> bool:
    """Whether a folder holds a manifest of this program; what a user supplies may hold another program's."""
    path = artifact.path / MANIFEST
    if not path.is_file() or not artifact.user_supplied:
        return path.is_file()
    try:
        found = read_json(path)
    except (OSError, ValueError):
        with path.open("rb") as f:
            begin = f.read(BLOCK)
        return b'"schema_version"' in begin and b'"producer"' in begin
    return isinstance(found, dict) and {"type", "schema_version", "producer", "files"} <= found.keys()


def verify(artifact: Artifact, *, left: bool = False) -> None:
    """Hold an artifact's folder against its manifest: its files' sizes, the SHA-256 of all but the ``unread`` ones, and
    that nothing was added. ``left``: files that were left in a store (`leave_absent`) may be missing.

    Raises `UserError` naming the first file that is missing, truncated, altered or added.
    """
    for fault in faults(artifact, left=left):
        raise UserError(fault)


def faults(artifact: Artifact, *, digests: bool = True, unread: bool = False, left: bool = False) -> Iterator[str]:
    """What differs from the manifest, a file at a time; ``unread``: also the digests in folders no later step reads;
    ``left``: as `verify` takes it.

    Raises `UserError` where the manifest itself cannot be read.
    """
    again = "Run the step that wrote it again."
    listed, elsewhere = read_manifest(artifact)["files"], absent(artifact.path) if left else {}
    whole: dict[Path, str] = {}
    for name, want in listed.items():
        path, skipped = artifact.path / name, not unread and name.startswith(artifact.unread)
        if not path.is_file():
            if elsewhere.get(name) == want:
                continue
            if not (artifact.user_supplied and skipped):  # checkpoints are often deleted to free the disk
                yield f"{path}: is missing, but {MANIFEST} lists it. {again}"
        elif (size := path.stat().st_size) != want["size"]:
            yield f"{path}: has {size} bytes, its manifest says {want['size']}. {again}"
        elif digests and not skipped:
            whole[path] = want["sha256"]
    for path, found in of_all(whole).items():
        if found != whole[path]:
            yield f"{path}: was altered after it was written (SHA-256 differs). {again}"
    for name in _added(artifact.path, listed):
        if unread or not name.startswith(artifact.unread):
            yield f"{artifact.path / name}: {_added_message(artifact)}"


def _added(folder: Path, listed: Mapping[str, Any]) -> Iterator[str]:
    """What stands in a folder and is not listed; a link to a folder counts, an empty folder does not."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.as_posix() in listed or str(name) == MANIFEST or (path.is_dir() and not path.is_symlink()):
            continue
        if not is_harmless(name):
            yield name.as_posix()


def is_harmless(name: PurePath) -> bool:
    """Whether a sealed folder may hold a file of this name beside those that its manifest lists."""
    return any(part.startswith(".") or any(fnmatch.fnmatch(part, h) for h in HARMLESS) for part in name.parts)


def _added_message(artifact: Artifact) -> str:
    said = f"was added after the folder was finished: {MANIFEST} does not list it. Move it elsewhere"
    if artifact.user_supplied:
        return f"{said}; if you mean it to belong there, delete {MANIFEST}, and the folder is read as any other."
    return f"{said}, or run the step that wrote the folder again."


def digest(artifact: Artifact) -> str:
    """One SHA-256 that stands for an artifact: of its manifest, or of every byte the user supplies."""
    if artifact.is_mixture:
        return mixed_digest(artifact, digest)
    manifest = artifact.path / MANIFEST
    if is_sealed(artifact):
        return sha256(manifest)
    total = hashlib.sha256()
    read = of_all((*artifact.members(), *([manifest] if manifest.is_file() else [])))
    for path in read:
        name = os.path.relpath(path, artifact.path.parent)
        total.update(f"{name}\0{read[path]}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def mixed_digest(artifact: Artifact, of: Callable[[Artifact], str]) -> str:
    """One SHA-256 over all that a mixture says of its sources, and what ``of`` says of each."""
    total = hashlib.sha256()
    for part, one in zip(mixture.parts(artifact.location), artifact.each(), strict=True):
        said = to_json([of(one), part.weight, part.max_rows, dict(part.columns)], sort_keys=True)
        total.update(f"{said}\n".encode())
    return total.hexdigest()


def expand(path: Path) -> list[Path]:
    """The files that a user's path stands for: itself, all in a folder, or the matches of a glob; sorted."""
    if path.is_file():
        return [path]
    if path.is_dir():
        return list(files(path))
    return sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
