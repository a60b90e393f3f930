"""Which files a user's data consists of: one file, a folder or a glob, on this machine or elsewhere."""

from __future__ import annotations

import glob
import os
import typing as t
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from tuneport.address import Address
from tuneport.confined import home, leads_outside
from tuneport.data import remote
from tuneport.data.hub_data import CARD, CARD_BYTES, HUB, of_split, without_split
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.limits import DataLimits
from tuneport.stores import said

Format = t.Literal["jsonl", "json", "csv", "tsv", "parquet"]
FORMATS: tuple[Format, ...] = t.get_args(Format)
COMPRESSIONS = ("gz", "zst")


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a user's data; ``remote``: what its store says of it, where it lies elsewhere."""

    address: Address
    remote: remote.Remote | None = None

    def open(self) -> t.Any:
        """Its bytes from the start. Raises `UserError` where a store refuses, OSError where this machine does."""
        if self.remote is None:
            return self.address.path.open("rb", buffering=0)
        with said(self.address):
            return remote.open_remote(self.remote)

    def open_arrow(self, *, seeks: bool = False) -> t.Any:
        """The same as Arrow's file; ``seeks``: for what reads it here and there."""
        import pyarrow as pa

        if self.remote is None:
            return pa.OSFile(os.fsencode(self.address.path))
        with said(self.address):
            return pa.PythonFile(remote.open_seekable(self.remote) if seeks else remote.open_remote(self.remote), "r")

    def check_unchanged(self) -> None:
        """Raise `UserError` where it lies elsewhere and is another one by now than it was when it was found."""
        if self.remote is not None:
            remote.check_unchanged(self.remote)


def list_files(address: Address, option: str, limits: DataLimits) -> list[DataFile]:
    """The file itself, every visible file under a folder, or the matches of a glob, sorted.

    Raises `UserError` where there is none, a store refuses, or a link leads out of the folder.
    """
    if not address.is_local:
        return _list_remote(address, option)
    return [DataFile(address=Address(str(path))) for path in _list_local(address.path, option, limits)]


def _list_remote(address: Address, option: str) -> list[DataFile]:
    whole, split = without_split(address)
    listed, is_folder = remote.listed(whole)
    found = listed
    if is_folder:
        root = address.key.rstrip("/") + "/" if address.scheme != HUB else ""
        found = [file for file in found if _visible(PurePosixPath(_under(file.address, root)))]
        if address.scheme == HUB:
            found = _data_of_hub(found, f"{option}={address}")
        if split is not None and found:
            named = {_in_repository(file.address): file for file in found}
            card = next((file for file in listed if _in_repository(file.address) == CARD), None)
            chosen = of_split(list(named), split, _text(card), f"{option}={address}")
            found = [named[name] for name in chosen]
    if found:
        return [DataFile(address=file.address, remote=file) for file in found]
    if is_folder:
        raise UserError(f"{option}={address}: is a folder without files; expected data: {known_formats()}.")
    raise UserError(f"{option}={address}: not found; expected a file, a folder or a glob of data. Check the address.")


def _data_of_hub(files: list[remote.Remote], got: str) -> list[remote.Remote]:
    """The files of a data set's repository that are data: a card and pictures stand beside them, and code at times.

    Raises `UserError` where there is code alone.
    """
    data = [file for file in files if split_suffixes(file.address)[0] in FORMATS]
    code = [file.address.name for file in files if file.address.name.endswith(".py")]
    if code and not data:
        raise UserError(
            f"{got}: is a data set that is made by code of its own ({', '.join(code[:3])}), which is not run; expected "
            f"files of data: {known_formats()}. Save its rows to such a file first."
        )
    return data


def _in_repository(address: Address) -> str:
    """A file's path in its data set, of an address with a commit."""
    return address.key.partition("@")[2].partition("/")[2]


def _text(card: remote.Remote | None) -> str:
    if card is None:
        return ""
    with said(card.address), remote.open_remote(card) as f:
        return str(f.read(CARD_BYTES).decode("utf-8", "replace"))


def _under(address: Address, root: str) -> str:
    return address.key.removeprefix(root)


def _list_local(path: Path, option: str, limits: DataLimits) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _visible(p.relative_to(path)))
        else:
            found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if found:
            return found if limits.allow_outside else _inside(found, path, option)
        if path.is_dir():
            raise UserError(
                f"{option}={excerpt(str(path), 300)}: is a folder without files; expected data: {known_formats()}."
            )
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as e:
        raise UserError(
            f"{option}={excerpt(str(path), 300)}: cannot be read ({e.strerror}). Check the path and its permissions."
        ) from None
    wanted = "expected a file, a folder or a glob of data."
    if not path.parent.is_dir() and not glob.has_magic(str(path)):
        raise UserError(
            f"{option}={excerpt(str(path), 300)}: not found, there is no folder {str(path.parent)!r}; {wanted}"
        )
    raise UserError(f"{option}={excerpt(str(path), 300)}: not found; {wanted}{did_you_mean(path.name, siblings)}")


def _inside(files: list[Path], path: Path, option: str) -> list[Path]:
    """The files of a folder or a glob.

    Raises `UserError` where one of them is a link, or stands behind one, that leads out of it.
    """
    folder = path
    while not folder.is_dir() or glob.has_magic(str(folder)):
        folder = folder.parent  # a glob's last folder without wildcards
    root = home(folder)
    for file in files:
        if leads_outside(file, root):
            raise UserError(
                f"{option}={excerpt(str(path), 300)}: {printable(file)} is a link to "
                f"{excerpt(str(file.resolve()), 300)}, outside of the folder; expected data that lies in it. Name the "
                "file itself, or set allow_outside=true."
            )
    return files


def names_of(files: list[DataFile]) -> list[str]:
    """What messages and row ids call each file: its name, with as much of its folder as tells shards apart."""
    if len(files) == 1:
        return [printable(files[0].address.name)]
    paths = [Path(file.address.key) for file in files]
    try:
        root = os.path.commonpath([p.parent for p in paths])
    except ValueError:  # absolute and relative ones
        return [printable(p) for p in paths]
    return [printable(p.relative_to(root).as_posix()) for p in paths]


def printable(name: str | Path | Address) -> str:
    """A file name as valid text: bytes that are no UTF-8 are replaced, and secrets of an address are masked."""
    return str(name) if isinstance(name, Address) else os.fsencode(name).decode("utf-8", "replace")


def split_suffixes(address: Address) -> tuple[str, str | None]:
    """``train.csv.gz`` -> ``("csv", "gz")``."""
    parts = address.name.lower().split(".")[1:]
    compression = parts.pop() if parts and parts[-1] in COMPRESSIONS else None
    return (parts[-1] if parts else ""), compression


def known_formats() -> str:
    """The formats of data, as a message lists them."""
    return f".{', .'.join(FORMATS)} (all but parquet also compressed: .gz, .zst)"


def _visible(path: PurePath) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)
