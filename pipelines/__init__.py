"""What a run is: one module = one graph, a function of its name; each task has `finetuning` under the task's name."""

from __future__ import annotations

import importlib
import pkgutil
import typing as t
from functools import partial

from tuneport.errors import UserError, did_you_mean

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline

PER_TASK = "finetuning"
NO_PIPELINES = (PER_TASK, "api")  # of the modules here


def names() -> list[str]:
    """The pipelines a user can name: the tasks, and modules of this package."""
    from tuneport import tasks  # here, so that Ctrl-C while it loads finds the command at work

    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted({*tasks.names(), *(m for m in modules if m not in NO_PIPELINES and not m.startswith("_"))})


def load(name: str) -> Pipeline:
    """Return the traced pipeline of a name.

    Raises `UserError` for a name that is not a pipeline.
    """
    from tuneport import tasks
    from tuneport.graph import trace

    if name not in names():
        raise UserError(f"unknown pipeline '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    if name not in tasks.names():
        return trace(getattr(importlib.import_module(f"{__name__}.{name}"), name), name)
    from pipelines.finetuning import finetuning  # imports every stage, which no help text needs

    function = partial(finetuning, name)
    function.__doc__ = finetuning.__doc__
    return trace(function, name)
