"""Where a graph runs: one module = one target, found by file name; `target` says what a target is.

Other distributions add targets as entry points of `tuneport.targets`: see `tuneport.plugins`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import typing as t
from collections.abc import Iterator, Mapping, Sequence

from tuneport.artifacts import Artifact
from tuneport.errors import UserError, did_you_mean, excerpt
from tuneport.graph import Pipeline
from tuneport.plugins import defined_class, plugins
from tuneport.runner import this_machine
from tuneport.runner.bind import check, check_rows, instantiate, raise_together
from tuneport.runner.request import Request
from tuneport.secrets import MASK, SHORTEST, is_credential, masked
from tuneport.step import show
from tuneport.targets.target import Target

if t.TYPE_CHECKING:
    from pydantic import BaseModel

ENVIRONMENTS = (".environment", ".environment_variables")  # settings that hold variables


def names() -> list[str]:
    """The targets, found by file name, and those of other distributions.

    Raises `UserError` where a distribution gives a target the name of another.
    """
    own = _own()
    return sorted({*own, *plugins(__name__, own)})


def _own() -> set[str]:
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return {name for name in modules if name != "target" and not name.startswith("_")}


def load(name: str) -> Target:
    """Return a target by name.

    Raises `UserError` for a name that is not a target, and for one of another distribution that cannot be loaded.
    """
    if name not in names():
        raise UserError(f"unknown target '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    brought = plugins(__name__, _own()).get(name)
    found = brought.load(Target) if brought else defined_class(importlib.import_module(f"{__name__}.{name}"), Target)
    target: Target = found()
    target.name = name
    return target


def settings(target: Target, request: Request) -> t.Any:
    """The target's own settings, ``platform: {<target>: …}`` in the configuration, validated by its model.

    Raises one `UserError` that lists every unknown name and every value that is not valid.
    """
    from pydantic import ValidationError

    model = target.settings()
    if unknown := set(request.platform) - set(names()):
        first = min(unknown)
        raise UserError(
            f"platform.{first}: unknown target; there are: {', '.join(names())}.{did_you_mean(first, names())}"
        )
    if model is None:
        return None
    try:
        return model.model_validate(request.platform.get(target.name) or {})
    except ValidationError as e:
        raise UserError("\n".join(_problem(target.name, model, t.cast(t.Any, error)) for error in e.errors())) from None


def _problem(target: str, model: type[BaseModel], error: Mapping[str, t.Any]) -> str:
    """What pydantic found of a setting, as all messages say it: what was got, what was expected, what to do."""
    place, got = ".".join(map(str, ("platform", target, *error["loc"]))), excerpt(error["input"])
    if error["type"] == "missing":
        return f"{place}: is required on {target}. Set it in the configuration."
    if error["type"] == "extra_forbidden":
        known = _known(model, error["loc"][:-1])
        there = f"; there are: {', '.join(known)}" if known else ""
        return f"{place}={got}: unknown setting{there}.{did_you_mean(str(error['loc'][-1]), known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    expected = re.sub(r"^(?:Input|String) should (?:be |have )?", "expected ", message)
    expected = expected.replace("expected match pattern", "expected text that matches")
    return f"{place}={got}: not valid; {expected if expected.startswith('expected') else message}."


def _known(model: type[BaseModel], place: Sequence[t.Any]) -> list[str]:
    """The settings that there are at a place, empty where they may be any."""
    for part in place:
        field = model.model_fields.get(str(part))
        hints = [] if field is None else [field.annotation, *t.get_args(field.annotation)]
        found = next((hint for hint in hints if isinstance(hint, type) and hasattr(hint, "model_fields")), None)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def refuse_secrets(target: Target, values: Mapping[str, t.Any], request: Request, remedy: str) -> None:
    """Raise one `UserError` that lists the values and settings with a secret: the document would keep it.

    ``remedy``: where secrets go on this platform.
    """
    section = request.platform.get(target.name) or {}
    given = {name: value.location if isinstance(value, Artifact) else value for name, value in values.items()}
    told = [(name, value) for name, value in given.items() if isinstance(value, str) and masked(value) != value]
    told += list(_secrets(f"platform.{target.name}", section))
    raise_together(
        [f"{name}={masked(value)}: holds a secret, which the document would keep. {remedy}" for name, value in told]
    )


def _secrets(where: str, settings: t.Any) -> Iterator[tuple[str, str]]:
    """The settings with a secret, and those of a variable that is named as credentials are, without its value."""
    parts = (
        settings.items() if isinstance(settings, Mapping) else enumerate(settings) if isinstance(settings, list) else ()
    )
    for key, value in parts:
        at = f"{where}.{key}"
        if not isinstance(value, str):
            if key != "secrets":  # names of secrets, no secrets
                yield from _secrets(at, value)
        elif key != "endpoint" and masked(value) != value:  # where the document is sent is not in it
            yield at, value
        elif where.endswith(ENVIRONMENTS) and is_credential(str(key)) and len(value) >= SHORTEST:
            yield at, MASK


def validate(pipeline: Pipeline, values: Mapping[str, t.Any], target: Target, request: Request) -> list[str]:
    """Check values, and what a target's runs would read here: files, columns and the first rows.

    Returns what is worth a look, in words. Raises one `UserError` that lists all that is wrong.
    """
    check_resources(pipeline, values, target)
    settings(target, request)
    if target.remote:
        target.compile(pipeline, values, request)
        return []
    steps = instantiate(pipeline, values, request.output_dir)
    check(steps, here=target.here)
    return [*check_rows(steps), *this_machine.worth_a_look(steps, request.output_dir)]


def check_resources(pipeline: Pipeline, values: Mapping[str, t.Any], target: Target) -> None:
    """Raise one `UserError` that lists the values which ask for what this target cannot give."""
    able = ", ".join(name for name in names() if name != target.name)
    raise_together(
        [
            f"{port.name}={show(values[port.name])}: --target {target.name} has no way to honour it. Leave it out "
            f"(default {show(port.default)}), or choose another target: {able}."
            for port in pipeline.params.values()
            if port.resource and port.resource not in target.honours and values[port.name] != port.default
        ]
    )
