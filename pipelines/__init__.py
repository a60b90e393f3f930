"""What a run is: one module = one graph; every task has the fine-tuning pipeline under its own name."""

from functools import partial

from tuneport import tasks
from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Pipeline, trace


def names() -> list[str]:
    """The pipelines a user can name."""
    return tasks.names()


def load(name: str) -> Pipeline:
    """Return the traced pipeline of a name.

    Raises `UserError` for a name that is not a pipeline.
    """
    if name not in names():
        raise UserError(f"unknown pipeline '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    from pipelines.finetuning import finetuning  # imports every stage, which no help text needs

    function = partial(finetuning, name)
    function.__doc__ = finetuning.__doc__
    return trace(function, name)
