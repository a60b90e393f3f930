"""The one error a user sees without a traceback, the hint that goes with a misspelt name, and an exit code."""

import difflib
import errno
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

from tuneport.secrets import masked

EXIT_PREEMPTED = 75  # a signal stopped the work, but its state is saved: run it again. EX_TEMPFAIL of sysexits.h
READ_ELSEWHERE = (  # what to do where an address is given, and a file is read
    "Addresses are read by train_file_path, validation_file_path and test_file_path, and their …_mltable_path. Fetch "
    "the file, and name it."
)
LONGEST_LINE = 2000  # characters of a message


class UserError(Exception):
    """A mistake the user can mend: printed as one message, the process ends with exit code 2.

    The message says what was got, what was expected and what to do next, without the secrets of addresses. A line of it
    is cut in its middle where it has more than `LONGEST_LINE` characters: what was got may be a whole column of the
    user's.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_bounded, masked(message).split("\n"))))


def _bounded(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    side = LONGEST_LINE // 2
    return f"{line[:side]} … ({len(line) - 2 * side:,} characters more) … {line[-side:]}"


def excerpt(value: Any, longest: int = 200) -> str:
    """A user's value as a message shows it: as Python writes it, and of a long one the beginning, without writing all.

    Bytes are shown as the text that they are, addresses without their secrets.
    """
    if isinstance(value, bytes):
        text = masked(value[:LONGEST_LINE].decode("utf-8", "replace").strip())
    elif isinstance(value, str):
        text = repr(masked(value[:LONGEST_LINE])[: longest + 1])
    else:
        text = _Excerpt(longest).repr(value)
    return text if len(text) <= longest + 2 else f"{text[:longest]}…"


class _Excerpt(reprlib.Repr):
    def __init__(self, longest: int) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = longest
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 10

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(masked(x), level)

    def repr_instance(self, x: Any, level: int) -> str:
        text = masked(repr(x))
        return text if len(text) <= self.maxother else f"{text[: self.maxother]}…"

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a number of {x.bit_length()} bits"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one it came from, says that the disk is full."""
    # torch's zip writer reports only that a write failed.
    said = ("No space left on device", "PytorchStreamWriter", "unexpected pos")
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(cause) for text in said)
        for cause in causes(error)
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
