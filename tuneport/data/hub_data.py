"""Data sets of a hub: which files a split consists of, and what the hub's cache on this machine has of one."""

from __future__ import annotations

import logging
import re
import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote

from tuneport.address import Address
from tuneport.errors import UserError, causes, did_you_mean
from tuneport.json_yaml import parse_yaml

log = logging.getLogger("tuneport.preprocess")

HUB = "hf"
CARD, CARD_BYTES = "README.md", 1 << 20
# By what a split is also called in the names of files, as the `datasets` library takes them.
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_SPLIT = re.compile(r"(?P<whole>datasets/[^/:@]+/[^/:@]+(@[^/:]+)?):(?P<split>[A-Za-z]\w*)")
_REPOSITORY = re.compile(r"datasets/(?P<id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A data set as the cache has it: files by their path in the data set, and whether a folder was asked for."""

    repository: str
    commit: str
    files: Mapping[str, Path]
    is_folder: bool


def without_split(address: Address) -> tuple[Address, str | None]:
    """The data set that ``hf://datasets/NAME:SPLIT`` is of, and the split; any other address as it is."""
    found = _SPLIT.fullmatch(address.key) if address.scheme == HUB else None
    return (address, None) if found is None else (Address(f"{HUB}://{found['whole']}"), found["split"])


def of_split(names: Sequence[str], split: str, card: str, got: str) -> list[str]:
    """The files of a split among a data set's: as its card says, else those whose path names the split.

    Raises `UserError` where there is no such split, or the card describes several sets of data of which none is the
    default.
    """
    said = _of_card(card, got)
    if said is not None:
        if split not in said:
            raise UserError(f"{got}: has no split {split!r}; it has: {', '.join(said)}.{did_you_mean(split, said)}")
        return [name for name in names if any(fnmatch(name, pattern) for pattern in said[split])]
    found = [name for name in names if _names(name, split)]
    if not found:
        there = [known for known in ALIASES if any(_names(name, known) for name in names)]
        raise UserError(
            f"{got}: no file of it is of a split {split!r}; expected one of: {', '.join(there) or 'none is named'}. "
            f"Its files: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}; one can be named, as in "
            "hf://datasets/NAME/FILE."
        )
    return found


def _names(name: str, split: str) -> bool:
    words = "|".join(ALIASES.get(split, (re.escape(split),)))
    return re.search(rf"(?<![A-Za-z0-9])({words})(?![A-Za-z])", name) is not None


def _of_card(card: str, got: str) -> dict[str, list[str]] | None:
    """The patterns of each split as a card's front matter has them; None where it says nothing."""
    front = _FRONT_MATTER.match(card)
    try:
        configurations = parse_yaml(front[1]).get("configs") if front else None
    except (ValueError, AttributeError):
        return None
    if not isinstance(configurations, list) or not all(isinstance(c, dict) for c in configurations):
        return None
    described = [c for c in configurations if c.get("data_files")]
    chosen = [c for c in described if c.get("default") is True or c.get("config_name") == "default"] or described
    if len(chosen) > 1:
        listed = ", ".join(str(c.get("config_name")) for c in described)
        raise UserError(
            f"{got}: has several sets of data ({listed}) and none by default; expected one. Name its file or folder, "
            "as in hf://datasets/NAME/FOLDER."
        )
    return _patterns(chosen[0]["data_files"]) if chosen else None


def _patterns(files: t.Any) -> dict[str, list[str]] | None:
    if isinstance(files, str):
        return {"train": [files]}
    if not isinstance(files, list):
        return None
    found: dict[str, list[str]] = {}
    for entry in files:
        split, paths = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        found.setdefault(str(split), []).extend([paths] if isinstance(paths, str) else [str(p) for p in paths or ()])
    return found


def is_out_of_reach(error: BaseException) -> bool:
    """Whether an error says that the hub did not answer at all, or is not to be asked."""
    names = {"OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"}
    return any(type(cause).__name__ in names for cause in causes(error))


def revision_gone(address: Address, error: BaseException) -> UserError | None:
    """What is said where a data set has no such revision; None for any other error."""
    if not any(type(cause).__name__ == "RevisionNotFoundError" for cause in causes(error)):
        return None
    revision = (_REPOSITORY.match(address.key) or {"revision": None})["revision"] or "main"
    return UserError(
        f"{address}: has no revision {unquote(revision)!r} (any more); expected a branch, a tag or a commit of the "
        "data set. Look at its history on the hub, or leave out the revision."
    )


def not_cached(address: Address) -> UserError:
    """What is said where neither the hub nor its cache answers."""
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
    return UserError(
        f"{address}: is not in the cache {constants.HF_HUB_CACHE}, and {why}. Run `hf download --repo-type dataset "
        "NAME` where there is a network and point HF_HOME to that cache, or pass a file."
    )


def cached(address: Address) -> Cached | None:
    """What the hub's cache has of an address; None where it has nothing of this revision.

    A cache does not say whether it has all files of a data set, so what is found is logged.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    named = _REPOSITORY.fullmatch(address.key.rstrip("/"))
    if named is None:
        return None
    revision = unquote(named["revision"]) if named["revision"] else None
    try:
        folder = Path(snapshot_download(named["id"], repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    asked = named["path"] or ""
    if address.is_pattern:
        chosen = {name: path for name, path in files.items() if Path(name).match(asked)}
    else:
        chosen = {name: p for name, p in files.items() if not asked or name == asked or name.startswith(f"{asked}/")}
    log.warning(
        "%s: the hub is out of reach; what is in the cache is read: commit %s, %d files",
        address,
        folder.name,
        len(chosen),
    )
    is_folder = not address.is_pattern and list(chosen) != [asked]
    return Cached(repository=named["id"], commit=folder.name, files=chosen, is_folder=is_folder)
