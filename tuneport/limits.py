"""How much of what a user supplies is taken at once: a small file may stand for more than any memory holds.

Those of a chat template's run stand in `TemplateSandbox`, which is exported as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20
MAX_ROW_BYTES = 16 * MEBIBYTE  # the default of the parameter of that name
MAX_COMPRESSION_RATIO = 200  # likewise: text takes a third to a tenth of its size
CHECKED_FROM = 4 * MEBIBYTE  # decompressed bytes from which the ratio counts
MEMORY_OF_ROW = 32  # times its bytes: [[],[],…] takes 21 times its size in memory
MAX_DEPTH = 100  # lists and objects in each other
MAX_NAMES = 10_000  # of the columns or members that are remembered to find out how a JSON file is laid out
MAX_JSON_BYTES = 64 * MEBIBYTE  # of a file of settings; id2label with a million classes has 40 MB
MAX_YAML_BYTES = MEBIBYTE // 4  # PyYAML reads 90 KB a second
MAX_YAML_VALUES = 100_000  # with those that aliases repeat
MAX_TEMPLATE_BYTES = MEBIBYTE
TEMPLATE_MEMORY = 512 * MEBIBYTE  # of the texts of a batch of rows, and of what a chat template makes on the way
MAX_HEADER_BYTES = 32 * MEBIBYTE  # of a safetensors file, which has 100 to 150 bytes a tensor
MAX_MODEL_FILE_BYTES = 512 * MEBIBYTE  # of a model's file beside its weights; Gemma's tokenizer.json has 33 MB
NOT_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
ESCAPED = re.compile(rb"\\.", re.DOTALL)
QUOTED = re.compile(rb'"[^"]*"')


@dataclass(frozen=True, kw_only=True)
class DataLimits:
    """What of a user's data is taken for a mistake; each is a parameter of preprocess."""

    max_row_bytes: int = MAX_ROW_BYTES
    max_compression_ratio: int = MAX_COMPRESSION_RATIO
    allow_outside: bool = False  # whether tables and links may lead out of the folder they stand in


DEFAULTS = DataLimits()


class Depth:
    """How deep the JSON is nested that has been seen so far, block by block."""

    def __init__(self) -> None:
        self.depth, self.rest = 0, b""

    def add(self, block: bytes) -> None:
        """Go on with a block. Raises ValueError where a value is nested deeper than `MAX_DEPTH`."""
        block = self.rest + block
        if b"\\" in block:
            cut = len(block) - (len(block) - len(block.rstrip(b"\\"))) % 2  # a last backslash escapes what follows
            block, escape = ESCAPED.sub(b"", block[:cut]), block[cut:]
        else:
            escape = b""
        signs = QUOTED.sub(b"", block.translate(None, NOT_BRACKETS))
        signs, quote, _ = signs.partition(b'"')
        self.rest = (quote and b'"') + escape  # within a text
        opening = signs.count(b"[") + signs.count(b"{")
        if self.depth + opening > MAX_DEPTH:
            import numpy as np

            opens = (np.frombuffer(signs, np.uint8) & 2) == 2  # [ and { have this bit, ] and } do not
            if self.depth + int(np.cumsum(np.where(opens, 1, -1)).max(initial=0)) > MAX_DEPTH:
                raise ValueError(too_deep())
        self.depth += 2 * opening - len(signs)


def too_deep() -> str:
    """What is said of a value with too many lists and objects in each other."""
    return f"nested too deep: more than {MAX_DEPTH} lists and objects in each other"


def check_depth(text: str | bytes) -> None:
    """Raise ValueError where the values of a JSON text are nested deeper than `MAX_DEPTH`."""
    if isinstance(text, str):
        if text.count("[") + text.count("{") > MAX_DEPTH:
            Depth().add(text.encode("utf-8", "surrogatepass"))
    elif text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        Depth().add(text)


def read_bytes(file: Path, most: int) -> bytes:
    """The bytes of a small file. Raises ValueError where it has more than ``most``, without reading them."""
    with file.open("rb") as f:
        found = f.read(most + 1)
    if len(found) > most:
        raise ValueError(f"has more than {size(most)}")
    return found


def size(number: int) -> str:
    """A number of bytes as a message shows it."""
    return f"{number:,} bytes" if number < MEBIBYTE or number % MEBIBYTE else f"{number // MEBIBYTE:,} MiB"


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """While entered, no more than so many bytes are added to this process's memory: MemoryError is raised.

    Of a platform that has no such limit (RLIMIT_DATA, Linux) none is asked.
    """
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError):
        yield
        return
    limits = [limit for limit in (used + more, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
