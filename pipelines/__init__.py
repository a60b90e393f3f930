"""What a run is: one module = one graph, a function of its name; each task has `finetuning` under the task's name."""

import importlib
import pkgutil
from functools import partial

from tuneport import tasks
from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Pipeline, trace

PER_TASK = "finetuning"


def names() -> list[str]:
    """The pipelines a user can name: the tasks, and modules of this package."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted({*tasks.names(), *(m for m in modules if m != PER_TASK and not m.startswith("_"))})


def load(name: str) -> Pipeline:
    """Return the traced pipeline of a name.

    Raises `UserError` for a name that is not a pipeline.
    """
    if name not in names():
        raise UserError(f"unknown pipeline '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    if name not in tasks.names():
        return trace(getattr(importlib.import_module(f"{__name__}.{name}"), name), name)
    from pipelines.finetuning import finetuning  # imports every stage, which no help text needs

    function = partial(finetuning, name)
    function.__doc__ = finetuning.__doc__
    return trace(function, name)
