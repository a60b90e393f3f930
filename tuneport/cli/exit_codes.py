"""A process's end: exit codes, and one message for a user's mistake."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

import click

from tuneport.cli.environment import shown
from tuneport.cli.interrupts import EXIT_INTERRUPTED
from tuneport.errors import EXIT_PREEMPTED, UserError, causes, did_you_mean, excerpt, is_full_disk
from tuneport.launchers import last_words, torchrun

EXIT_USER_ERROR = 2

EXIT_TERMINATED = 143  # SIGTERM


def guard(work: Callable[[], int | None]) -> int:
    """Run work and return the process's exit code; a user's mistake becomes one message on stderr."""
    from tuneport.stage import Preempted, Terminated

    try:
        return work() or 0
    except UserError as e:
        return _end(EXIT_USER_ERROR, str(e))
    except click.NoSuchOption as e:
        known = [o for p in e.ctx.command.params for o in p.opts] if e.ctx else []
        return _end(EXIT_USER_ERROR, f"unknown option '{e.option_name}'.{did_you_mean(e.option_name, known)}")
    except click.ClickException as e:
        return _end(EXIT_USER_ERROR, e.format_message())
    except (KeyboardInterrupt, click.Abort):
        return _end(EXIT_INTERRUPTED, "interrupted")
    except Preempted as e:
        return _end(
            EXIT_PREEMPTED,
            f"stopped by a signal; the state is saved in {e.checkpoint}. "
            "Run the same command again with resume_from_checkpoint=true to go on from there.",
        )
    except Terminated:
        return _end(EXIT_TERMINATED, "terminated")
    except Exception as e:
        return _fail(e)


def _fail(error: Exception) -> int:
    """The end by an error that is none of ours: a defect, unless it came from Ctrl-C or a full disk."""
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):  # in the midst of an import
        return _end(EXIT_INTERRUPTED, "interrupted")
    if is_full_disk(error):
        return _end(EXIT_USER_ERROR, _full_disk_message(error))
    if long := next((c for c in causes(error) if isinstance(c, OSError) and c.errno == errno.ENAMETOOLONG), None):
        return _end(EXIT_USER_ERROR, f"{excerpt(str(long.filename))}: is too long for the name of a file.")
    sys.stderr.write(shown("".join(traceback.format_exception(error))))
    torchrun.report(os.environ, 1, shown(f"failed: {type(error).__name__}: {error}"))
    return 1


def _full_disk_message(error: BaseException) -> str:
    files = [str(cause.filename) for cause in causes(error) if isinstance(cause, OSError) and cause.filename]
    where = f"{files[0]}: " if files else ""
    return f"{where}the disk is full. Free some space, or write to another disk."


def _end(code: int, message: str) -> int:
    """Say a message last, here or, for one of several processes, through their launcher; returns the exit code."""
    if not torchrun.report(os.environ, code, shown(message)):
        _complain(message)
    return code


def _complain(message: str) -> None:
    sys.stdout.flush()
    last_words.leave(os.environ, shown(message))
    click.echo("error: " + shown(message).replace("\n", "\n       "), err=True)
