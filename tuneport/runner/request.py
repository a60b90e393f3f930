"""How the user wants a pipeline run."""

from __future__ import annotations

import dataclasses as dc
import re
import typing as t
from collections.abc import Container, Mapping
from pathlib import Path

from tuneport.errors import UserError, excerpt
from tuneport.runner.progress import Show


@dc.dataclass(frozen=True, kw_only=True)
class Submission:
    """What is sent to a platform beside the document, and what is asked of it."""

    name: str | None = None  # of the run; None: the pipeline's name, and when
    experiment: str | None = None  # None: that of the platform's section
    upload: bool = False  # also keep the document on the platform, as a new version of a pipeline
    schedule: str | None = None  # when it is to run, by cron; None: now, once
    wait: bool = False  # whether the run is followed to its end
    dry_run: bool = False  # print what would be sent, send nothing


@dc.dataclass(frozen=True, kw_only=True)
class Request:
    """How the user wants a pipeline run, with what the surroundings say; read in the command line, passed on here."""

    output_dir: Path  # absolute
    siblings: Path | None = None  # the folder of the pipeline's runs, if this is one: they share what is done
    folder: Path  # the current one, absolute
    environment: Mapping[str, str]
    verify: t.Literal["changed", "full"] = "changed"  # which of the files that this machine has read are read again
    start_from: str | None = None  # the stage to go on from, with earlier stages' outputs as they are
    command: tuple[str, ...] = ()  # what the user typed, without --from: the way to go on
    show: Show = "progress"  # what is said while it runs and at its end
    platform: Mapping[str, t.Any] = dc.field(default_factory=dict)  # the configuration's section of that name
    submission: Submission = dc.field(default_factory=Submission)


def cron_fields(text: str, counts: Container[int]) -> list[str]:
    """The fields of a cron expression, of which a platform takes as many as ``counts`` says.

    Raises `UserError` for what is none.
    """
    fields = text.split()
    if len(fields) not in counts or not all(re.fullmatch(r"[\dA-Za-z*/,?-]+", field) for field in fields):
        raise UserError(
            f"--schedule {excerpt(text)}: not valid; expected minute, hour, day, month and day of the week, as in "
            "'0 3 * * 1', at three each Monday."
        )
    return fields
