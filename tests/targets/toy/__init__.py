"""Three stages: shout upper-cases a text, count repeats it, publish runs only if it is given a name."""

import importlib

from tuneport.errors import UserError


def load(name, task_name=None):
    classes = {"shout": "Shout", "count": "Count", "publish": "Publish"}
    if name not in classes:
        raise UserError(f"unknown stage {name}")
    return getattr(importlib.import_module(f"toy.{name}"), classes[name])
