"""One module = one task, found by file name; `task` says what a task is, `_` modules are what several share.

Other distributions add tasks as entry points of `tuneport.tasks`: see `tuneport.plugins`.
"""

from __future__ import annotations

import importlib
import pkgutil
import typing as t
from functools import cache

from tuneport.errors import UserError, did_you_mean
from tuneport.plugins import defined_class, plugins
from tuneport.step import Params, Step, param
from tuneport.tasks.task import Task

S = t.TypeVar("S", bound=Step)


def names() -> list[str]:
    """The tasks, found by file name, and those of other distributions.

    Raises `UserError` where a distribution gives a task the name of another.
    """
    own = _own()
    return sorted({*own, *plugins(__name__, own)})


def _own() -> set[str]:
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return {name for name in modules if name != "task" and not name.startswith("_")}


@cache
def load(name: str) -> Task:
    """Return a task by name.

    Raises `UserError` for a name that is not a task, and for a task of another distribution that cannot be loaded.
    """
    if name not in names():
        raise UserError(
            f"task_name='{name}': not valid; expected one of {', '.join(names())}.{did_you_mean(name, names())}"
        )
    if brought := plugins(__name__, _own()).get(name):
        task: Task = brought.load(Task)()
        if task.name != name:
            raise UserError(brought.refusal(f"is a task that calls itself '{task.name}'"))
        return task
    found: type[Task] = defined_class(importlib.import_module(f"{__name__}.{name}"), Task)
    return found()


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
