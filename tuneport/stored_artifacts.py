"""Artifacts in an object store: fetched by their manifest and verified, sent with the manifest last.

A store has no move of a whole folder. So an artifact stands there once its manifest does: that is written last, taken
away first where files change, and what lacks one, or has a file of another size than it says, is not taken for whole.
"""

from __future__ import annotations

import dataclasses as dc
import fnmatch
import hashlib
import logging
import shutil
import tempfile
import time
import typing as t
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tuneport import digests
from tuneport.address import Address
from tuneport.artifacts import ABSENT, MANIFEST, Artifact, absent, is_harmless, leave_absent, read_manifest, verify
from tuneport.digests import HashedFile
from tuneport.errors import UserError
from tuneport.json_yaml import parse_json
from tuneport.limits import MEBIBYTE
from tuneport.stores import is_passing, said, store, words

log = logging.getLogger("tuneport.store")

LEFT = "TUNEPORT_LEFT_IN_STORE"  # says, to a stage, that its inputs may lack files that were left in their store
CHECKPOINTS = "TUNEPORT_CHECKPOINT_STORE"  # names, to ranks whose machines share no folder, where checkpoints stand
SCHEMES = ("s3", "gs")  # stores that artifacts are sent to
BLOCK = 16 * MEBIBYTE  # that are asked for at once
AHEAD = 4  # blocks of a file that are on their way
FILES = 4  # that are fetched or sent at once
PATIENCE_SECONDS = 300.0  # for a store that does not answer
PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds before the second try; each later one waits twice as long
AGAIN = "Run the step that wrote it again."
Entries = Mapping[str, Mapping[str, t.Any]]  # a manifest's files: by name, size and sha256
T = t.TypeVar("T")


class NotWhole(UserError):
    """What stands in the store is no whole artifact."""


# -- what to do, as values ---------------------------------------------------------------------------------------------


@dc.dataclass(frozen=True, kw_only=True)
class Sending:
    """What turns that which stands in a store into an artifact."""

    send: tuple[str, ...]  # from this disk
    copy: Mapping[str, str]  # within the store: by name, the path that holds the same bytes
    delete: tuple[str, ...]


def sending(files: Entries, there: Mapping[str, int], known: Mapping[str, str], paths: Mapping[str, str]) -> Sending:
    """What has to be sent of ``files`` where ``there`` stands already.

    ``there``: sizes by name. ``known``: SHA-256 by name, of those that a manifest there lists. ``paths``: by SHA-256, a
    path of the same store that holds these bytes.
    """
    lacking = [n for n, e in files.items() if there.get(n) != e["size"] or known.get(n) != e["sha256"]]
    copied = {name: paths[sha] for name in lacking if (sha := files[name]["sha256"]) in paths and files[name]["size"]}
    return Sending(
        send=tuple(name for name in lacking if name not in copied),
        copy=copied,
        delete=tuple(sorted(set(there) - set(files) - {MANIFEST})),
    )


def fault(files: Entries, there: Mapping[str, int]) -> str:
    """The first file that is missing, of another size, or not listed; empty where there is none."""
    for name, entry in files.items():
        if name not in there:
            return f"{name}: is missing, but {MANIFEST} lists it"
        if there[name] != entry["size"]:
            return f"{name}: has {there[name]} bytes, its manifest says {entry['size']}"
    for name in sorted(set(there) - set(files) - {MANIFEST}):
        if not is_harmless(PurePosixPath(name)):
            return f"{name}: was added after the folder was finished: {MANIFEST} does not list it"
    return ""


# -- the store ---------------------------------------------------------------------------------------------------------


@dc.dataclass(frozen=True)
class StoredFolder:
    """What stands under an address. Each method raises `UserError` where the store refuses or stays away."""

    address: Address
    patience: float = PATIENCE_SECONDS

    def path(self, name: str) -> str:
        """The path of a file, as the store calls it."""
        return str(store(self.address.child(name))[1])

    def sizes(self) -> dict[str, int]:
        """Bytes by name of all that is there."""

        def ask() -> dict[str, int]:
            fs, path = store(self.address)
            fs.invalidate_cache()
            try:
                found = fs.find(path, detail=True)
            except FileNotFoundError as e:
                if "bucket" in str(e).lower():
                    raise
                return {}
            own = f"{path.rstrip('/')}/"
            return {
                n.removeprefix(own): i["size"] for n, i in found.items() if i["type"] == "file" and n.startswith(own)
            }

        return self._asked("", "read", ask)

    def read(self, name: str) -> bytes:
        """A small file."""
        return self._asked(name, "read", lambda fs, path: bytes(fs.cat_file(path)))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._asked(name, "read", lambda fs, path: int(fs.size(path)))

    def fetch(self, name: str, size: int, place: Path) -> None:
        """Bring a file here; its digest is made on the way."""
        place.parent.mkdir(parents=True, exist_ok=True)
        starts = range(0, size, BLOCK)
        blocks: deque[Future[bytes]] = deque()
        with HashedFile(place) as f, ThreadPoolExecutor(AHEAD, thread_name_prefix="fetch") as threads:
            for start in starts:
                blocks.append(threads.submit(self._block, name, start, min(start + BLOCK, size)))
                if len(blocks) == AHEAD:
                    f.write(blocks.popleft().result())
            for block in blocks:
                f.write(block.result())

    def _block(self, name: str, start: int, end: int) -> bytes:
        found = self._asked(name, "read", lambda fs, path: bytes(fs.cat_file(path, start=start, end=end)))
        if len(found) != end - start:
            raise NotWhole(f"{self.address.child(name)}: ended at byte {start + len(found):,} of {end:,}. {AGAIN}")
        return found

    def put(self, place: Path, name: str) -> None:
        """Send a file."""
        self._asked(name, "written", lambda fs, path: fs.put_file(str(place), path))

    def copy(self, source: str, name: str) -> None:
        """Let a file have the bytes of another one of the same store."""
        self._asked(name, "written", lambda fs, path: fs.cp_file(source, path))

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; those that are not there are gone already."""

        def gone(fs: t.Any, path: str) -> None:
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return

        for name in names:
            self._asked(name, "deleted", gone)

    def known(self, there: Mapping[str, int]) -> dict[str, str]:
        """SHA-256 by name, of the files that manifests in folders below list and that are as large as these say."""
        found: dict[str, str] = {}
        for manifest in (name for name in there if PurePosixPath(name).name == MANIFEST):
            content, folder = self.read(manifest), manifest.removesuffix(MANIFEST)
            try:
                listed = {
                    f"{folder}{n}": (e["size"], str(e["sha256"])) for n, e in parse_json(content)["files"].items()
                }
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            found |= {name: digest for name, (size, digest) in listed.items() if there.get(name) == size}
            if folder:
                found[manifest] = hashlib.sha256(content).hexdigest()
        return found

    def _asked(self, name: str, doing: str, ask: Callable[..., T]) -> T:
        """What the store answers; where it does not, it is asked again, at growing intervals."""
        address, until, pause = (self.address.child(name) if name else self.address), 0.0, PAUSE
        with said(address, doing):
            arguments = store(address) if name else ()
            while True:
                try:
                    return ask(*arguments)
                except Exception as e:  # each store's library has errors of its own
                    if not is_passing(e):
                        raise
                    now = time.monotonic()
                    until = until or now + self.patience
                    if now + pause > until:
                        raise OSError(f"no answer in {self.patience:.0f} seconds: {words(e)}") from None
                    log.warning("%s: the store did not answer (%s); asked again", address, words(e))
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)


# -- whole artifacts ---------------------------------------------------------------------------------------------------


def listed(kind: type[Artifact], address: Address, patience: float = PATIENCE_SECONDS) -> tuple[bytes, Entries]:
    """The manifest of an artifact in a store, and the files that it lists, all of which are there.

    Raises `NotWhole` naming the first one that is missing, truncated or added, `UserError` as the store does.
    """
    folder = StoredFolder(address, patience)
    there = folder.sizes()
    if MANIFEST not in there:
        what = "has no" if there else "nothing is there, and no"
        raise NotWhole(f"{address}: {what} {MANIFEST}; expected a finished {kind.type_name()} artifact. {AGAIN}")
    content = folder.read(MANIFEST)
    files = _files(kind, address, content)
    if wrong := fault(files, there):
        raise NotWhole(f"{address}/{wrong}. {AGAIN}")
    return content, files


def _files(kind: type[Artifact], address: Address, content: bytes) -> Entries:
    with tempfile.TemporaryDirectory(prefix="tuneport-manifest-") as folder, _named(Path(folder), address):
        (Path(folder) / MANIFEST).write_bytes(content)
        found: Entries = read_manifest(kind(Path(folder)))["files"]
        return found


@contextmanager
def _named(folder: Path, address: Address) -> Iterator[None]:
    """What is wrong with files of a folder is said of the address that they come from."""
    try:
        yield
    except UserError as e:
        raise NotWhole(str(e).replace(str(folder), str(address))) from None


def fetch(
    artifact: Artifact, address: Address, patience: float = PATIENCE_SECONDS, *, leave: Sequence[str] = ()
) -> None:
    """Bring an artifact to this disk, whole or not at all: what its manifest lists, each file verified.

    Files whose names match ``leave`` stay where they are, noted as absent (`fetch_left` brings them). What was fetched
    before is verified, and stays. Raises as `listed` does, and `NotWhole` for an altered file.
    """
    if artifact.path.is_dir():
        for name in absent(artifact.path):  # what an attempt that was killed has begun to fetch
            (artifact.path / name).unlink(missing_ok=True)
        verify(artifact, left=True)
        return
    content, files = listed(type(artifact), address, patience)
    partial = artifact.path.with_name(f".{artifact.path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    folder = StoredFolder(address, patience)
    left = {name: entry for name, entry in files.items() if any(fnmatch.fnmatch(name, one) for one in leave)}
    here = [name for name in files if name not in left]
    _each(lambda name: folder.fetch(name, files[name]["size"], partial / name), here)
    if left:
        leave_absent(partial, left)
    (partial / MANIFEST).write_bytes(content)
    with _named(partial, address):
        verify(type(artifact)(partial), left=True)
    partial.replace(artifact.path)
    size = sum(files[name]["size"] for name in here)
    stay = f", {len(left)} stay there" if left else ""
    log.info("%s: fetched %d files, %s bytes, from %s%s", artifact.path.name, len(here), f"{size:,}", address, stay)


def fetch_left(artifact: Artifact, address: Address, patience: float = PATIENCE_SECONDS) -> None:
    """Bring what `fetch` left in the store, each file verified. Raises as it does."""
    folder, files, noted = StoredFolder(address, patience), read_manifest(artifact)["files"], absent(artifact.path)
    left = {name: entry for name, entry in files.items() if name in noted}
    _each(lambda name: folder.fetch(name, left[name]["size"], artifact.path / name), left)
    (artifact.path / ABSENT).unlink(missing_ok=True)
    with _named(artifact.path, address):
        verify(artifact)
    size = sum(entry["size"] for entry in left.values())
    log.info("%s: fetched %d more files, %s bytes, from %s", artifact.path.name, len(left), f"{size:,}", address)


def fetch_file(address: Address, folder: Path, patience: float = PATIENCE_SECONDS) -> Path:
    """Bring a small file without a manifest to a folder, and return its path there, which has no query of an address.

    Raises `UserError` as the store does.
    """
    parent, _, name = address.text.rstrip("/").rpartition("/")
    content = StoredFolder(Address(parent), patience).read(name)  # of a web server that may not say its size
    folder.mkdir(parents=True, exist_ok=True)
    (folder / address.name).write_bytes(content)
    return folder / address.name


def fetch_source(address: Address, folder: Path, patience: float = PATIENCE_SECONDS) -> Path:
    """Bring a user's folder, or one file, which have no manifest, to a folder; returns the path of what came.

    Raises `UserError` as the store does, where nothing is there, and for a name that leads out of the folder.
    """
    stored = StoredFolder(address, patience)
    there, place = stored.sizes(), folder
    if not there:
        parent, _, name = address.text.rstrip("/").rpartition("/")
        stored, place = StoredFolder(Address(parent), patience), folder / name
        there = {name: stored.size(name)}
    if outside := next((name for name in there if ".." in PurePosixPath(name).parts), ""):
        raise UserError(f"{address}/{outside}: leads out of its folder. Rename it.")
    shutil.rmtree(folder, ignore_errors=True)
    _each(lambda name: stored.fetch(name, there[name], folder / name), there)
    log.info("%s: fetched %d files, %s bytes, from %s", folder.name, len(there), f"{sum(there.values()):,}", address)
    return place


def paths_of(address: Address, fetched: Path) -> dict[str, str]:
    """By SHA-256, where in its store each file stands of what `fetch_source` brought from an address."""
    if fetched.is_file():
        return {digests.known.of(fetched): str(store(address)[1])}
    folder = StoredFolder(address)
    files = [file for file in fetched.rglob("*") if file.is_file()]
    return {digests.known.of(file): folder.path(file.relative_to(fetched).as_posix()) for file in files}


def send(
    artifact: Artifact,
    address: Address,
    *,
    beside: Sequence[Address] = (),
    elsewhere: Mapping[str, str] | None = None,
    known: Entries | None = None,
    patience: float = PATIENCE_SECONDS,
) -> None:
    """Let an artifact of this disk stand in a store; what stands there already is not sent again.

    ``beside``: artifacts that stand in the same store, whose files are copied there rather than sent from here.
    ``elsewhere``: by SHA-256, files of the user's that may be copied so, if the store lets us; they are here as well.
    ``known``: files that other machines have put there, as they are. Raises `UserError` where the store refuses, stays
    away, or has another size for a file than was sent.
    """
    files: Entries = read_manifest(artifact)["files"]
    folder = StoredFolder(address, patience)
    there = folder.sizes()
    seen = folder.known(there) | {name: entry["sha256"] for name, entry in (known or {}).items()}
    stay = [name for name, digest in seen.items() if name in there and files.get(name, {}).get("sha256") == digest]
    theirs = elsewhere or {}
    paths = {**theirs, **{seen[name]: folder.path(name) for name in stay}}
    for other in (StoredFolder(one, patience) for one in beside):
        paths |= {digest: other.path(name) for name, digest in other.known(other.sizes()).items()}
    todo = sending(files, there, seen, paths)
    if lost := [name for name in todo.send if name in absent(artifact.path)]:
        raise NotWhole(f"{address}/{lost[0]}: was left in the store that it came from, and is gone from there. {AGAIN}")
    own = (artifact.path / MANIFEST).read_bytes()
    if MANIFEST in there:
        if not (todo.send or todo.copy or todo.delete) and folder.read(MANIFEST) == own:
            return
        folder.delete([MANIFEST])

    def copy(name: str) -> None:
        try:
            folder.copy(todo.copy[name], name)
        except UserError as e:
            if todo.copy[name] not in theirs.values():
                raise
            log.info("%s: is sent, as the store does not copy it (%s)", name, e)
            folder.put(artifact.path / name, name)

    _each(copy, todo.copy)
    _each(lambda name: folder.put(artifact.path / name, name), todo.send)
    folder.delete(todo.delete)
    if wrong := fault(files, folder.sizes()):
        raise UserError(f"{address}/{wrong}, though it was sent whole. See whether something else writes there.")
    folder.put(artifact.path / MANIFEST, MANIFEST)
    size = sum(files[name]["size"] for name in todo.send)
    log.info(
        "%s: sent %d of %d files, %s bytes, to %s (%d were copied there, %d deleted)",
        artifact.path.name, len(todo.send), len(files), f"{size:,}", address, len(todo.copy), len(todo.delete),
    )  # fmt: skip


def _each(work: Callable[[str], object], names: t.Iterable[str]) -> None:
    """Several at once. After an error no other is begun: each would wait as long for a store that stays away."""
    with ThreadPoolExecutor(FILES, thread_name_prefix="store") as threads:
        try:
            for done in as_completed([threads.submit(work, name) for name in names]):
                done.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
