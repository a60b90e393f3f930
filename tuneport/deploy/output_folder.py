"""A deployment's files and folders, written over those of an earlier deployment, and over nothing else."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tuneport.artifacts import write_atomically
from tuneport.deploy.deployment import Deployment
from tuneport.errors import UserError
from tuneport.json_yaml import read_json, to_json
from tuneport.links import link_or_copy

RECORD = ".deployed.json"  # what a deployment wrote: the SHA-256 of each file, null for a folder


def write(rendered: Deployment, folder: Path, model: Path) -> list[str]:
    """Write a deployment of an exported model into a folder; return the names.

    Raises `UserError` where the folder lies in the model, where one of the deployment's names would replace the model,
    or something that no deployment wrote, or a file that was changed since: then nothing is written.
    """
    _check_place(rendered, folder, model)
    earlier = _recorded(folder)
    for name, text in rendered.files.items():
        _check_file(folder / name, text, earlier)
    for name in rendered.folders:
        _check_folder(folder / name, earlier)
    folder.mkdir(parents=True, exist_ok=True)
    for name in rendered.files:  # so that none is there that the new record does not tell of
        (folder / name).unlink(missing_ok=True)
    digests = {name: _digest(text.encode()) for name, text in rendered.files.items()}
    write_atomically(folder / RECORD, to_json({**earlier, **digests, **dict.fromkeys(rendered.folders)}, indent=2))
    for name, source in rendered.folders.items():
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        shutil.copytree(source, folder / name, copy_function=link_or_copy)
    for name, text in rendered.files.items():
        write_atomically(folder / name, text)
    return [*rendered.files, *rendered.folders]


def _check_place(rendered: Deployment, folder: Path, model: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is no folder; expected one, or a place for one.")
    real, source = folder.resolve(), model.resolve()
    if real.is_relative_to(source):
        raise UserError(f"--output_dir {folder}: lies in the exported model {model}; expected a folder outside of it.")
    for name in rendered.folders:
        if source.is_relative_to(real / name):
            raise UserError(
                f"--output_dir {folder}: its folder {name} holds the exported model itself; expected another folder."
            )


def _recorded(folder: Path) -> dict[str, str | None]:
    try:
        found = read_json(folder / RECORD)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_file(path: Path, text: str, earlier: dict[str, str | None]) -> None:
    if not (path.exists() or path.is_symlink()):
        return
    if path.is_file() and _digest(path.read_bytes()) in (_digest(text.encode()), earlier.get(path.name)):
        return
    raise _theirs(path, "was changed since" if path.name in earlier else "is not of an earlier deployment")


def _check_folder(path: Path, earlier: dict[str, str | None]) -> None:
    if path.is_symlink() or (path.exists() and not (path.is_dir() and path.name in earlier)):
        raise _theirs(path, "is not of an earlier deployment")


def _theirs(path: Path, why: str) -> UserError:
    return UserError(f"{path}: is in the way, and {why}. Move it away, or name another folder with --output_dir.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
