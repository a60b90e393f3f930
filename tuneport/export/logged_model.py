"""What registration reads of an exported model: where it was logged and its digest, or all of it where it was not."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tuneport.artifacts import INCOMPLETE, LoggedModel, absent, entries, files, read_manifest
from tuneport.json_yaml import read_json, to_json
from tuneport.links import link_tree
from tuneport.tracking import TRACKING_FILE

DIGEST_FILE, DIGEST = "model_digest.json", "sha256"


def write_logged_model(model: Path, destination: Path, *, whole: bool) -> None:
    """Write what registration needs of an exported folder; ``whole``: its files, too, linked where they can be.

    Without them it is a few hundred bytes, as a platform with a store fetches all of what a stage reads.
    """
    if whole:
        link_tree(model, destination, leave_out=[INCOMPLETE])
        return
    listed = entries({path.relative_to(model).as_posix(): path for path in files(model)}) | absent(model)
    digest = _digest({name: entry["sha256"] for name, entry in listed.items()})
    shutil.copyfile(model / TRACKING_FILE, destination / TRACKING_FILE)
    (destination / DIGEST_FILE).write_text(to_json({DIGEST: digest}) + "\n", "utf-8")


def holds_model(folder: Path) -> bool:
    """Whether a folder has the model's files, so that it can be uploaded from here."""
    return not (folder / DIGEST_FILE).is_file()


def model_digest(folder: Path) -> str:
    """One SHA-256 of an exported model's files, but for the one that says where it was uploaded."""
    if not holds_model(folder):
        return str(read_json(folder / DIGEST_FILE)[DIGEST])
    listed = read_manifest(LoggedModel(folder))["files"]
    return _digest({name: entry["sha256"] for name, entry in listed.items()})


def _digest(files: dict[str, str]) -> str:
    lines = (f"{name}\0{digest}\n" for name, digest in sorted(files.items()) if name != TRACKING_FILE)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
