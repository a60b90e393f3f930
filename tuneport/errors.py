"""The one error a user sees without a traceback, the hint that goes with a misspelt name, and an exit code."""

import difflib
from collections.abc import Iterable

EXIT_PREEMPTED = 75  # a signal stopped the work, but its state is saved: run it again. EX_TEMPFAIL of sysexits.h
LONGEST_LINE = 2000  # characters of a message


class UserError(Exception):
    """A mistake the user can mend: printed as one message, the process ends with exit code 2.

    The message says what was got, what was expected and what to do next. A line of it is cut in its middle where it has
    more than `LONGEST_LINE` characters: what was got may be a whole column of the user's.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_bounded, message.split("\n"))))


def _bounded(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    side = LONGEST_LINE // 2
    return f"{line[:side]} … ({len(line) - 2 * side:,} characters more) … {line[-side:]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
