"""Files of rows read within limits: no row takes more than so many bytes, nor a compressed file many times its size."""

from __future__ import annotations

import io
import re
import sys
import typing as t
from collections.abc import Iterator
from contextlib import ExitStack

from tuneport.errors import UserError
from tuneport.limits import CHECKED_FROM, Depth, size

MAX_DIGITS = sys.int_info.default_max_str_digits
LONG_NUMBER = re.compile(rb"[\[{:,\s]-?[0-9]{%d}" % (MAX_DIGITS + 1))


class LongNumber(ValueError):
    """A number has more digits than Python makes an integer of."""

    def __init__(self) -> None:
        super().__init__(f"a number of more than {MAX_DIGITS:,} digits")


class RowTooLarge(Exception):
    """A row takes more bytes than it may."""


def too_large(where: str, most: int) -> UserError:
    """What is said of a row that has more than ``most`` bytes, as max_row_bytes says."""
    return UserError(
        f"{where}: the row has more than {size(most)}, the most that is read of one. If it is no mistake, such as a "
        "quote or bracket that is never closed, set max_row_bytes to a larger number."
    )


class Lines:
    """The lines of a file, text or bytes; ``taken`` counts since a reader set it to 0, which it does after each row.

    Raises `UserError` that names the line where that is more than ``most``; of text, characters are counted.
    """

    def __init__(self, f: t.Any, name: str, most: int) -> None:
        self.f, self.name, self.most = f, name, most
        self.taken = 0

    def __iter__(self) -> Iterator[t.Any]:
        readline, longest, number = self.f.readline, self.most + 1, 0
        while line := readline(longest):
            number += 1
            self.taken += len(line)
            if self.taken > self.most:
                raise too_large(f"{self.name} line {number}", self.most)
            yield line


class JsonFile:
    """A file of JSON for ijson, whose memory grows with the square of the depth, and with each value.

    ``taken`` counts since a reader set it to 0. ``read`` raises ValueError where values are nested too deep,
    `RowTooLarge`, and `LongNumber`, by which ijson's C code would end the process.
    """

    def __init__(self, f: io.BufferedReader, most: int) -> None:
        self.f, self.most, self.taken, self.depth = f, most, 0, Depth()
        self._end = b""  # of what was read, where a number may have begun

    def read(self, count: int = -1) -> bytes:
        if self.taken > self.most:
            raise RowTooLarge
        block = self.f.read(count)
        self.taken += len(block)
        self.depth.add(block)
        if LONG_NUMBER.search(self._end + block):
            raise LongNumber
        self._end = (self._end + block)[-MAX_DIGITS - 2 :]
        return block


class Decompressed(io.RawIOBase):
    """A compressed file's bytes.

    Raises `UserError` where they are more than ``ratio`` times what was read of the file.
    """

    def __init__(self, stack: ExitStack, file: t.Any, stream: t.Any, name: str, ratio: int) -> None:
        self.stack, self.file, self.stream, self.name, self.ratio = stack, file, stream, name, ratio
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        """As any file's. Raises `UserError` as the class says."""
        count = int(self.stream.readinto(buffer))
        self.given += count
        if self.given > CHECKED_FROM and self.given > self.ratio * self.file.tell():
            raise UserError(
                f"{self.name}: decompresses to more than {self.ratio} times its size, {size(self.given)} so far, which "
                "is the most that is read. If the rows are that much alike, set max_compression_ratio to a larger "
                "number."
            )
        return count

    def close(self) -> None:
        self.stack.close()
        super().close()
