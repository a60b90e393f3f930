"""GGUF files: which one of a folder is meant, and whether it is one at all."""

from __future__ import annotations

import math
import mmap
import re
import struct
from pathlib import Path

from tuneport.confined import home, leads_outside
from tuneport.errors import UserError, did_you_mean

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its type
STRING, ARRAY = 8, 9
MOST_ENTRIES, MOST_VALUES, MOST_DIMENSIONS = 100_000, 10_000_000, 8  # values: texts of an array, as of a vocabulary
MOST_NUMBERS_A_BYTE = 8  # weights of less than a bit are unknown
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
        if leads_outside(path / name, home(path)):
            raise UserError(f"gguf_file={name}: lies outside of {path}; expected the name of a file in it.")
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
    try:
        check_header(file)
    except (ValueError, struct.error) as e:
        raise UserError(f"{file}: is damaged ({e}). Download the file again.") from None
    return file


def check_header(file: Path) -> int:
    """Hold the counts and lengths of a GGUF file's header against the file's size, before a reader trusts them.

    Returns how many weights its tensors have. Raises ValueError or struct.error. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header = _Header(content)
        version = header.number("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}; expected {' or '.join(map(str, VERSIONS))}")
        tensors, entries = header.number("<Q"), header.number("<Q")
        if max(tensors, entries) > MOST_ENTRIES:
            raise ValueError(f"{tensors:,} tensors and {entries:,} entries; expected at most {MOST_ENTRIES:,}")
        for _ in range(entries):
            header.text()
            header.value(header.number("<I"))
        numbers = 0
        for _ in range(tensors):
            header.text()
            dimensions = header.number("<I")
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions:,} dimensions")
            numbers += math.prod(header.number("<Q") for _ in range(dimensions))
            header.skip(12)  # type and place
        if numbers > MOST_NUMBERS_A_BYTE * len(content):
            raise ValueError(f"tensors of {numbers:,} numbers in {len(content):,} bytes")
    return numbers


class _Header:
    """Reads on from a place; what reaches beyond the end of the file raises."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, len(MAGIC)

    def number(self, form: str) -> int:
        (found,) = struct.unpack_from(form, self.content, self.place)
        self.place += struct.calcsize(form)
        return int(found)

    def skip(self, length: int) -> None:
        self.place += length
        if self.place > len(self.content):
            raise ValueError(f"a value of {length:,} bytes reaches beyond the end of the file")

    def text(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == STRING:
            self.text()
        elif kind == ARRAY and depth < 2:
            kind, count = self.number("<I"), self.number("<Q")
            if kind in SIZES:
                self.skip(SIZES[kind] * count)
                return
            if count > min(MOST_VALUES, len(self.content) // 8):
                raise ValueError(f"an array of {count:,} values in {len(self.content):,} bytes")
            for _ in range(count):
                self.value(kind, depth + 1)
        else:
            raise ValueError(f"a value of unknown type {kind}")
