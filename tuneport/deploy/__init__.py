"""Where a finished run's model is served: one module `to_PLACE` = one place, a function from facts to documents."""

from __future__ import annotations

import importlib
import pkgutil
import typing as t
from collections.abc import Mapping

from tuneport.errors import UserError, did_you_mean, excerpt

if t.TYPE_CHECKING:
    from tuneport.deploy.deployment import Deployment, Served


def names() -> list[str]:
    """The places, found by file name."""
    return sorted(m.name.removeprefix("to_") for m in pkgutil.iter_modules(__path__) if m.name.startswith("to_"))


def render(place: str, model: Served, given: Mapping[str, str]) -> Deployment:
    """The documents that serve a model in a place; ``given`` are its settings, as text.

    Raises `UserError` for a place that there is not, settings that are not valid, and a model that it does not serve.
    """
    from pydantic import ValidationError

    if place not in names():
        raise UserError(f"--to {place}: not valid; expected one of {', '.join(names())}.{did_you_mean(place, names())}")
    module: t.Any = importlib.import_module(f"{__name__}.to_{place}")
    try:
        settings = module.Settings.model_validate(dict(given))
    except ValidationError as e:
        known = ", ".join(module.Settings.model_fields)
        raise UserError(
            "\n".join(
                f"{'.'.join(map(str, error['loc']))}={excerpt(error['input'])}: {error['msg']}; settings of "
                f"--to {place} are {known}."
                for error in e.errors()
            )
        ) from None
    found: Deployment = module.render(model, settings)
    return found


def settings_help(place: str) -> str:
    """Each setting of a place with its default, if it has one, and what it says, a line each."""
    fields = importlib.import_module(f"{__name__}.to_{place}").Settings.model_fields
    return "\n".join(
        f"  {name}{' (required)' if field.is_required() else f'={field.default!r}'}: {field.description}"
        for name, field in fields.items()
    )
