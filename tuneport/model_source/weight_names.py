"""The names of a model's weights: a prefix that a wrapper left there is taken off."""

from __future__ import annotations

import json
import shutil
import typing as t
from collections.abc import Sequence
from pathlib import Path

from tuneport.artifacts import write_atomically
from tuneport.model_source.model_files import WEIGHTS_INDEX

# torch's DataParallel and DistributedDataParallel, torch.compile, and a model kept as an attribute of another.
WRAPPERS = ("module.", "_orig_mod.", "model.")
HEADER_SIZE = 8  # bytes that hold the length of a safetensors file's header, little-endian


def strip_wrappers(folder: Path, model_type: str) -> str:
    """Take the prefix of wrappers off the names of all weights in a folder; returns it, "" where there is none.

    The files are written again, header first, without reading tensors into memory.
    """
    files = sorted(folder.glob("*.safetensors"))
    names = [name for file in files for name in _read_header(file)[0] if name != "__metadata__"]
    prefix = wrapper_of(names, model_type)
    if prefix:
        for file in files:
            _rename(file, prefix)
        _rename_in_index(folder / WEIGHTS_INDEX, prefix)
    return prefix


def wrapper_of(names: Sequence[str], model_type: str) -> str:
    """The prefix, of one wrapper or several, that all names of weights have and that is not the model's own."""
    prefix = ""
    while names:
        found = next((w for w in WRAPPERS if all(name.startswith(w) for name in names)), None)
        rest = [name.removeprefix(found or "") for name in names]
        if found is None or (found == "model." and not _is_whole(rest, model_type)):
            break
        prefix, names = prefix + found, rest
    return prefix


def _is_whole(names: Sequence[str], model_type: str) -> bool:
    """Whether names without a leading ``model.`` are those of a whole model: many decoders have such a trunk."""
    trunks = ("model.", "transformer.", f"{model_type.replace('-', '_')}.")
    return any(name.startswith(trunks) for name in names)


def _read_header(file: Path) -> tuple[dict[str, t.Any], int]:
    """A safetensors file's header, and where its tensors begin, in bytes."""
    with file.open("rb") as f:
        size = int.from_bytes(f.read(HEADER_SIZE), "little")
        return json.loads(f.read(size)), HEADER_SIZE + size


def _rename(file: Path, prefix: str) -> None:
    header, start = _read_header(file)
    renamed = json.dumps({name.removeprefix(prefix): entry for name, entry in header.items()}).encode()
    renamed += b" " * (-len(renamed) % 8)  # tensors begin at a multiple of 8 bytes
    partial = file.with_name(f".{file.name}.partial")
    with file.open("rb") as source, partial.open("wb") as target:
        target.write(len(renamed).to_bytes(HEADER_SIZE, "little") + renamed)
        source.seek(start)
        shutil.copyfileobj(source, target, 1 << 24)
    partial.replace(file)


def _rename_in_index(index: Path, prefix: str) -> None:
    if not index.is_file():
        return
    content = json.loads(index.read_text("utf-8"))
    content["weight_map"] = {name.removeprefix(prefix): file for name, file in content["weight_map"].items()}
    write_atomically(index, json.dumps(content, indent=2))
