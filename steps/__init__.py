"""What a stage does: one module = one stage = one `Step` class = one `docker run`."""

import importlib
import pkgutil

from tuneport.errors import UserError, did_you_mean
from tuneport.step import Step
from tuneport.tasks import with_task


def names() -> list[str]:
    """The stages, found by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str, task_name: str | None = None) -> type[Step]:
    """Return the step class of a stage; with a task, its class for that task.

    Raises `UserError` for a name that is not a stage or not a task.
    """
    if name not in names():
        raise UserError(f"unknown stage '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    module = importlib.import_module(f"steps.{name}")
    (step,) = (
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Step) and v.__module__ == module.__name__
    )
    return with_task(step, task_name) if task_name else step
