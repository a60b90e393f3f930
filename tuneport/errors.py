"""The one error a user sees without a traceback, the hint that goes with a misspelt name, and an exit code."""

import difflib
from collections.abc import Iterable

EXIT_PREEMPTED = 75  # a signal stopped the work, but its state is saved: run it again. EX_TEMPFAIL of sysexits.h


class UserError(Exception):
    """A mistake the user can mend: printed as one message, the process ends with exit code 2.

    The message says what was got, what was expected and what to do next.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    known = list(known)
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
