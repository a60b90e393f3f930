"""Files that lie elsewhere, through fsspec: what an address stands for, which version that is, and its bytes.

A file is read by ranges: a connection that breaks is asked again for what lacks, so that no byte is lost or doubled.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tuneport.address import WEB, Address
from tuneport.data.hub_data import HUB, Cached, cached, is_out_of_reach, not_cached, revision_gone
from tuneport.errors import UserError
from tuneport.limits import MEBIBYTE
from tuneport.stores import is_passing, said, store, words

log = logging.getLogger("tuneport.preprocess")

BLOCK = 4 * MEBIBYTE  # that are asked for at once
TRIES = 8  # of one range
PAUSE = 0.1  # seconds before the second try; each later one waits twice as long as the one before
LONGEST_PAUSE = 5.0
# By what stores call the version of a file, the surest first.
VERSIONS = (
    "VersionId", "generation", "ETag", "etag", "blob_id", "Content-MD5", "content_md5", "Digest", "Last-Modified",
    "last_modified", "LastModified", "mtime",
)  # fmt: skip


class Broken(OSError):
    """A connection broke, and again at each new try."""


def broken(where: str, error: Broken) -> UserError:
    """What is said of a file whose connection broke."""
    return UserError(f"{where}: cannot be read ({error}). Repeat the command.")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as its store describes it."""

    address: Address
    version: str  # an ETag, commit or digest: another one where its bytes are others
    size: int | None  # bytes; None where a web server does not say
    ranges: bool = True  # whether a part of it can be asked for
    cache: Path | None = None  # where a hub's cache has it, which is read then


def listed(address: Address) -> tuple[list[Remote], bool]:
    """The files that an address stands for, sorted, and whether it is a folder; none where nothing is there.

    Raises `UserError` where the store cannot be reached, refuses, or needs a package that is not installed.
    """
    with said(address):
        fs, path = store(address)
        fs.invalidate_cache()
        if address.scheme == HUB:
            try:
                address, path = _at_commit(fs, path)
            except Exception as e:  # as the hub's library and its own have them
                if is_out_of_reach(e):
                    if found := cached(address):
                        return _of_cache(found), found.is_folder
                    raise not_cached(address) from None
                raise (revision_gone(address, e) or e) from None
        if address.is_pattern:
            found = fs.glob(path, detail=True)
            return _files(fs, address, found), False
        try:
            info = fs.info(path)
        except FileNotFoundError as e:
            if "bucket" in str(e).lower() or "container" in str(e).lower():
                raise
            return [], False
        if info["type"] == "directory":
            return _files(fs, address, fs.find(path, detail=True)), True
        return [_remote(fs, address, info)], False


def _at_commit(fs: t.Any, path: str) -> tuple[Address, str]:
    """A path of a hub at the commit that its revision stands for now: what is read is one version throughout."""
    from huggingface_hub import HfApi

    found = fs.resolve_path(path)
    info = HfApi().repo_info(found.repo_id, repo_type=found.repo_type, revision=found.revision)
    pinned = f"{found.repo_type}s/{found.repo_id}@{info.sha}"
    pinned += f"/{found.path_in_repo}" if found.path_in_repo else ""
    return Address(f"{HUB}://{pinned}"), pinned


def _of_cache(found: Cached) -> list[Remote]:
    root = Address(f"{HUB}://datasets/{found.repository}@{found.commit}")
    return [
        Remote(address=root.child(name), version=found.commit, size=path.stat().st_size, cache=path)
        for name, path in found.files.items()
    ]


def _commit(address: Address) -> str:
    return address.key.rpartition("@")[2].partition("/")[0]


def _files(fs: t.Any, address: Address, found: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[Remote]:
    infos = {name: info for name, info in found.items() if info["type"] == "file" and not name.endswith("/")}
    return [_remote(fs, Address(fs.unstrip_protocol(name)), infos[name]) for name in sorted(infos)]


def look(address: Address) -> Remote:
    """A file as it is now. Raises as the store does."""
    fs, path = store(address)
    fs.invalidate_cache()
    return _remote(fs, address, fs.info(path))


def _remote(fs: t.Any, address: Address, info: t.Mapping[str, t.Any]) -> Remote:
    size = info.get("size")
    if address.scheme == HUB:
        return Remote(address=address, version=_commit(address), size=size)
    ranges = size is not None and (address.scheme not in WEB or bool(info.get("partial")))
    version = next((str(info[name]).strip('"') for name in VERSIONS if info.get(name)), None)
    if version is None:
        version = f"sha256:{_digest(fs, address)}"  # a web server that says neither ETag nor time
    return Remote(address=address, version=version, size=size, ranges=ranges)


def _digest(fs: t.Any, address: Address) -> str:
    total = hashlib.sha256()
    with fs.open(address.text, "rb", block_size=0) as f:
        while block := f.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def identity(files: t.Sequence[Remote], root: Address) -> str:
    """One text that stands for the bytes of all these files, without secrets; of one file its version and size."""
    if root.scheme == HUB:
        return f"commit {files[0].version}, {len(files)} files"
    if len(files) == 1 and files[0].address == root:
        return f"{files[0].version} ({files[0].size} bytes)"
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.address}\0{file.version}\0{file.size}\n".encode())
    return f"{len(files)} files, sha256:{total.hexdigest()}"


class Ranges(io.RawIOBase):
    """The bytes of a remote file, asked for by ranges as large as what is read.

    Raises `Broken` where the store does not answer in `TRIES` tries, and `UserError` where the file is shorter than it
    was.
    """

    def __init__(self, file: Remote) -> None:
        self.file, self.size, self.at = file, file.size or 0, 0
        self.fs, self.path = store(file.address)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As any file's."""
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def readinto(self, buffer: t.Any) -> int:
        """As any file's. Raises as the class says."""
        count = min(len(buffer), max(0, self.size - self.at))
        if count:
            buffer[:count] = self._fetch(self.at, self.at + count)
            self.at += count
        return count

    def _fetch(self, start: int, end: int) -> bytes:
        error: Exception | None = None
        for number in range(TRIES):
            if number:
                time.sleep(min(PAUSE * 2 ** (number - 1), LONGEST_PAUSE))
            try:
                found: bytes = self.fs.cat_file(self.path, start=start, end=end)
            except Exception as e:  # each store's library has errors of its own
                if not is_passing(e):
                    raise
                error = e
            else:
                if len(found) == end - start:
                    return found
                check_unchanged(self.file)
                error = EOFError(f"{len(found)} of {end - start} bytes")
            log.info("%s: the connection broke (%s); asked again from byte %s", self.file.address, error, f"{start:,}")
        raise Broken(f"the connection broke at byte {start:,}, {TRIES} times ({words(error)})")


class Stream(io.RawIOBase):
    """The bytes of a file of a web server that gives no ranges. Raises `Broken` where the connection breaks."""

    def __init__(self, file: Remote) -> None:
        fs, path = store(file.address)
        self.f = fs.open(path, "rb", block_size=0)
        self.file, self.at = file, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: t.Any) -> int:
        """As any file's. Raises as the class says."""
        try:
            found = self.f.read(len(buffer))
        except Exception as e:  # as above
            raise Broken(f"the connection broke ({words(e)}), and this server sends no parts of a file") from None
        buffer[: len(found)] = found
        self.at += len(found)
        if not found and self.file.size is not None and self.at < self.file.size:
            raise Broken(f"the connection broke at byte {self.at:,}, and this server sends no parts of a file")
        return len(found)

    def close(self) -> None:
        self.f.close()
        super().close()


def open_remote(file: Remote) -> t.Any:
    """The bytes of a remote file from its start, `BLOCK` at a time."""
    if file.cache is not None:
        return file.cache.open("rb")
    raw: io.RawIOBase = Ranges(file) if file.ranges else Stream(file)
    return io.BufferedReader(raw, BLOCK)


def open_seekable(file: Remote) -> t.Any:
    """A remote file that is read here and there; what a server sends only whole is copied to the disk first."""
    if file.cache is not None:
        return file.cache.open("rb")
    if file.ranges:
        return Ranges(file)
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (closed by who reads it)
    with open_remote(file) as f:
        while block := f.read(BLOCK):
            copy.write(block)
    copy.seek(0)
    return copy


def check_unchanged(file: Remote) -> None:
    """Raise `UserError` where a file is another one than it was when it was found."""
    if file.cache is not None:
        return  # a commit's files stay as they are
    with said(file.address):
        now = look(file.address)
    if (now.version, now.size) != (file.version, file.size):
        raise UserError(
            f"{file.address}: changed while it was read: it had {file.size} bytes (version {file.version}), now "
            f"{now.size} ({now.version}). Repeat the command when nobody writes to it."
        )
