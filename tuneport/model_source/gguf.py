"""GGUF files: which one of a folder is meant, and whether it is one at all."""

from __future__ import annotations

import re
from pathlib import Path

from tuneport.errors import UserError, did_you_mean

MAGIC = b"GGUF"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def is_part_of_a_model(name: str) -> bool:
    """Whether a GGUF file's name stands for a language model, and not for the image encoder that may lie beside it."""
    return "mmproj" not in Path(name).name


def find_gguf(path: Path, name: str | None) -> Path | None:
    """The GGUF file that a path stands for: itself, the one named, or the only one; None where there is none.

    Raises `UserError` where the choice is open or the file cannot be one.
    """
    if path.is_file():
        if name not in (None, path.name):
            raise UserError(f"gguf_file={name}: the model's path names another file, {path}. Leave gguf_file out.")
        return _check(path)
    found = sorted(f for f in path.glob("*.gguf") if f.is_file() and is_part_of_a_model(f.name))
    names = [f.name for f in found]
    if name is not None:
        if not (path / name).is_file():
            there = f"it has: {', '.join(names)}" if names else "it has no GGUF file"
            raise UserError(f"gguf_file={name}: not found in {path}; {there}.{did_you_mean(name, names)}")
        return _check(path / name)
    if len(found) > 1:
        raise UserError(f"{path}: has several GGUF files: {', '.join(names)}. Choose one with gguf_file.")
    return _check(found[0]) if found else None


def _check(file: Path) -> Path:
    if SHARD.search(file.name):
        raise UserError(f"{file}: is one part of a split GGUF file. Join the parts with `llama-gguf-split --merge`.")
    with file.open("rb") as f:
        if f.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{file}: is no GGUF file; expected a model's folder, or one file of GGUF format.")
    return file
