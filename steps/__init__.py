"""What a stage does: one module = one stage = one `Step` class = one `docker run`."""

from __future__ import annotations

import importlib
import pkgutil
import typing as t

from tuneport.errors import UserError, did_you_mean
from tuneport.plugins import defined_class

if t.TYPE_CHECKING:
    from tuneport.step import Step


def names() -> list[str]:
    """The stages, found by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str, task_name: str | None = None) -> type[Step]:
    """Return the step class of a stage; with a task, its class for that task.

    Raises `UserError` for a name that is not a stage or not a task.
    """
    from tuneport.step import Step  # here, so that Ctrl-C while it loads finds `python -m steps` at work
    from tuneport.tasks import with_task

    if name not in names():
        raise UserError(f"unknown stage '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    step = defined_class(importlib.import_module(f"steps.{name}"), Step)
    return with_task(step, task_name) if task_name else step
