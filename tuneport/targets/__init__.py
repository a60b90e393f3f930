"""Where a graph runs: one module = one target, found by file name; `target` says what a target is."""

from __future__ import annotations

import importlib
import pkgutil
import typing as t
from collections.abc import Mapping

from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Pipeline
from tuneport.runner.bind import raise_together
from tuneport.runner.request import Request
from tuneport.step import show
from tuneport.targets.target import Target


def names() -> list[str]:
    """The targets, found by file name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name != "target" and not name.startswith("_"))


def load(name: str) -> Target:
    """Return a target by name.

    Raises `UserError` for a name that is not a target.
    """
    if name not in names():
        raise UserError(f"unknown target '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (target,) = (
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Target) and v.__module__ == module.__name__
    )
    return target()


def settings(target: Target, request: Request) -> t.Any:
    """The target's own settings, ``platform: {<target>: …}`` in the configuration, validated by its model.

    Raises one `UserError` that lists every unknown name and every value that is not valid.
    """
    from pydantic import ValidationError

    name, model = type(target).__module__.rpartition(".")[2], target.settings()
    if unknown := set(request.platform) - set(names()):
        first = min(unknown)
        raise UserError(
            f"platform.{first}: unknown target; there are: {', '.join(names())}.{did_you_mean(first, names())}"
        )
    if model is None:
        return None
    try:
        return model.model_validate(request.platform.get(name) or {})
    except ValidationError as e:
        problems = [
            f"platform.{'.'.join(map(str, (name, *error['loc'])))}={error['input']!r}: {error['msg']}."
            for error in e.errors()
        ]
        raise UserError("\n".join(problems)) from None


def check_resources(pipeline: Pipeline, values: Mapping[str, t.Any], target: Target) -> None:
    """Raise one `UserError` that lists the values which ask for what this target cannot give."""
    name = type(target).__module__.rpartition(".")[2]
    able = ", ".join(n for n in names() if n != name)
    raise_together(
        [
            f"{port.name}={show(values[port.name])}: --target {name} has no way to honour it. Leave it out "
            f"(default {show(port.default)}), or choose another target: {able}."
            for port in pipeline.params.values()
            if port.resource and port.resource not in target.honours and values[port.name] != port.default
        ]
    )
