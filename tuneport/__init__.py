"""Portable fine-tuning pipelines: the library that `steps` and `pipelines` are built on.

What runs a pipeline from Python stands here, and what tasks, targets and stages of your own are written with; a name is
imported when it is asked for.
"""

import importlib

__version__ = "0.1.0"

# Where each name is defined; `__init__.pyi` says the same to type checkers.
_HOMES = {
    "pipelines.api": ("Run", "compile", "load", "preview", "run", "validate"),
    "tuneport.artifacts": ("Dataset", "File", "MLflowModel", "Model", "Report"),
    "tuneport.errors": ("UserError",),
    "tuneport.graph": ("Pipeline", "trace"),
    "tuneport.stage": ("execute",),
    "tuneport.step": ("Params", "Step", "View", "consumes", "param", "produces", "resource"),
    "tuneport.targets.target": ("Target",),
    "tuneport.tasks.task": ("Task",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tuneport' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
