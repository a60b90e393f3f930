"""Load a model for a stage: `ModelLoader`, with what it finds said to the user."""

from __future__ import annotations

import json
import logging
import typing as t
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from tuneport.errors import UserError
from tuneport.serving.model_loader import ModelLoader

log = logging.getLogger("tuneport.model")
LISTED_WEIGHTS = 3
_weightless: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def weightless() -> Iterator[None]:
    """While entered, models are made from their configuration on the meta device, and no file of weights is read."""
    token = _weightless.set(True)
    try:
        yield
    finally:
        _weightless.reset(token)


def load(architecture: str, folder: Path, *, new_head: bool = False, **loading: t.Any) -> t.Any:
    """Load a model of one of transformers' classes, by the class's name; the arguments are those of `ModelLoader`.

    Logs which weights are random and which of the folder's are left aside. Raises `UserError` where transformers has no
    such class for the folder's type of model, and where weights that may not be random are lacking.
    """
    return load_by(ModelLoader(architecture), folder, new_head=new_head, **loading)


def load_by(loader: ModelLoader, folder: Path, **loading: t.Any) -> t.Any:
    """As `load`, by a loader that then knows which weights are new, and which unused.

    Raises `UserError` as `load` does.
    """
    import transformers

    # What transformers shows of it, a bar and a table of the weights, is said below in two lines.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model = _empty(loader, folder, **loading) if _weightless.get() else loader(str(folder), **loading)
    except ValueError as e:
        if "Unrecognized configuration class" in str(e):
            raise _no_such_class(loader.architecture, folder) from None
        raise UserError(f"{folder}: {e}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    if loader.new:
        log.info("%s: %s", _listed("weights are new, at random", loader.new), type(model).__name__)
    if loader.unused:
        log.info(
            "%s: a %s has no place for them", _listed("weights are left aside", loader.unused), type(model).__name__
        )
    return model


def lacking(loader: ModelLoader, folder: Path, config: t.Any) -> list[str]:
    """The names of the weights that a folder lacks, or has in another size than ``config`` says; of no model's files
    while `weightless`."""
    return [] if _weightless.get() else loader.lacking(str(folder), config)


def _empty(loader: ModelLoader, folder: Path, *, dtype: t.Any = None, config: t.Any = None, **loading: t.Any) -> t.Any:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder) if config is None else config
    auto_class = getattr(transformers, loader.architecture)
    with torch.device("meta"):
        return auto_class.from_config(config, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def _listed(what: str, names: Sequence[str]) -> str:
    more = ", …" if len(names) > LISTED_WEIGHTS else ""
    return f"{len(names)} {what} ({', '.join(names[:LISTED_WEIGHTS])}{more})"


def _no_such_class(architecture: str, folder: Path) -> UserError:
    import transformers

    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    known = sorted({config.model_type for config in getattr(transformers, architecture)._model_mapping})
    return UserError(
        f"{folder}: transformers has no {architecture} for a model of type '{kind}'; expected one of: "
        f"{', '.join(known)}. Choose another base model."
    )
