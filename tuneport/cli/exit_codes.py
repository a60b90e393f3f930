"""A process's end: exit codes, and one message for a user's mistake."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import click

from tuneport.errors import EXIT_PREEMPTED, UserError, did_you_mean
from tuneport.launchers import torchrun

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # Ctrl-C
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
        traceback.print_exc()
        torchrun.report(os.environ, 1, f"failed: {type(e).__name__}: {e}")
        return 1


def _end(code: int, message: str) -> int:
    """Say a message last, here or, for one of several processes, through their launcher; returns the exit code."""
    if not torchrun.report(os.environ, code, message):
        _complain(message)
    return code


def _complain(message: str) -> None:
    sys.stdout.flush()
    click.echo("error: " + message.replace("\n", "\n       "), err=True)
