"""One module = one task, found by file name; `task` says what a task is, `_` modules are what several share."""

from __future__ import annotations

import importlib
import pkgutil
import typing as t
from functools import cache

from tuneport.errors import UserError, did_you_mean
from tuneport.step import Params, Step, param
from tuneport.tasks.task import Task

S = t.TypeVar("S", bound=Step)


def names() -> list[str]:
    """The tasks, found by file name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name != "task" and not name.startswith("_"))


@cache
def load(name: str) -> Task:
    """Return a task by name.

    Raises `UserError` for a name that is not a task.
    """
    if name not in names():
        raise UserError(
            f"task_name='{name}': not valid; expected one of {', '.join(names())}.{did_you_mean(name, names())}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    (task,) = (
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Task) and v.__module__ == module.__name__
    )
    return task()


class TaskParams(Params):
    """Task."""

    task_name: str = param("Task to fine-tune for; with it, --help also shows the task's own parameters.")


def with_task(step: type[S], task_name: str) -> type[S]:
    """Specialise a step class for a task: the task's parameters become ports, ``task_name`` is settled.

    A step that takes no ``task_name`` is returned as it is.
    """
    return t.cast(type[S], _specialise(t.cast(t.Any, step), task_name)) if "task_name" in step.ports() else step


@cache
def _specialise(step: type[Step], task_name: str) -> type[Step]:
    group = load(task_name).params.get(step.name())
    bases = (step,) if group is None else (step, group)
    body = {"__module__": step.__module__, "__doc__": step.__doc__, "fixed": {"task_name": task_name}}
    return t.cast(type[Step], type(step.__name__, bases, body))
