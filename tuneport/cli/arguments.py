"""A command line before its flags are known."""

from __future__ import annotations

from collections.abc import Sequence


def without(argv: Sequence[str], flag: str) -> list[str]:
    """Arguments without one flag and its value."""
    kept, skip = [], False
    for argument in argv:
        if not skip and argument != flag and not argument.startswith(f"{flag}="):
            kept.append(argument)
        skip = not skip and argument == flag
    return kept


def peek(argv: Sequence[str], name: str) -> str | None:
    """The value of one flag, before the flags are known."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag == f"--{name}":
            return value
        if flag.startswith(f"--{name}="):
            return flag.partition("=")[2]
    return None
