"""Tasks and targets of other installed distributions, declared as entry points.

    [project.entry-points."tuneport.tasks"]
    sentiment = "my_package.sentiment"  # a module with one task, or my_package.sentiment:Sentiment

The files are read here, as importing importlib.metadata alone would take half as long as all of `tuneport --help`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import typing as t
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from tuneport.errors import UserError


@dataclass(frozen=True)
class Plugin:
    """An entry point: ``value`` is MODULE or MODULE:CLASS; ``distribution`` says who declares it, as ``name 1.0``."""

    group: str
    name: str
    value: str
    distribution: str

    @property
    def package(self) -> str:
        """The topmost package of its code, or its only module."""
        return self.value.partition(":")[0].partition(".")[0]

    def load(self, base: type) -> type[t.Any]:
        """Return its class, which is a ``base``.

        Raises `UserError` where it cannot be imported or is something else.
        """
        module_name, _, attribute = self.value.partition(":")
        try:
            module = importlib.import_module(module_name)
            found = getattr(module, attribute) if attribute else defined_class(module, base)
        except Exception as e:  # whatever the code of somebody else does when it is imported
            raise UserError(self.refusal(f"cannot be loaded ({type(e).__name__}: {e})")) from e
        if not isinstance(found, type) or not issubclass(found, base):
            raise UserError(self.refusal(f"is not a {base.__name__}"))
        return found

    def refusal(self, problem: str) -> str:
        """What is wrong with it, and who can mend it."""
        return (
            f"{self.distribution}: its entry point {self.name} = {self.value} of {self.group} {problem}. "
            "Ask its authors for a version that fits, or uninstall it."
        )


def plugins(group: str, taken: Collection[str]) -> dict[str, Plugin]:
    """The entry points of a group by name; ``taken``: the names that are there already.

    Raises `UserError` for a name that is taken or not an identifier, or is declared by two distributions.
    """
    found: dict[str, Plugin] = {}
    for plugin in _declared(tuple(sys.path)):
        if plugin.group != group:
            continue
        if not plugin.name.isidentifier() or plugin.name.startswith("_"):
            raise UserError(plugin.refusal("has a name that is not an identifier"))
        if plugin.name in taken:
            raise UserError(plugin.refusal(f"has a name that is taken: there is a '{plugin.name}' already"))
        if other := found.get(plugin.name):
            raise UserError(plugin.refusal(f"has the name of one of {other.distribution}"))
        found[plugin.name] = plugin
    return found


def defined_class(module: ModuleType, base: type) -> type[t.Any]:
    """The one subclass of ``base`` that a module defines.

    Raises TypeError where there is none or are several: it is the author's mistake, not the user's.
    """
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, base) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} defines {len(found)} subclasses of {base.__name__}; expected one")
    return found[0]


@cache
def _declared(path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """All our entry points of the distributions on a Python path; of two versions of one the first on it counts."""
    seen: dict[str, Path] = {}
    for folder in dict.fromkeys(path):
        for entry in _distributions(folder or os.curdir):
            seen.setdefault(_normalised(entry.name), Path(entry.path))
    return tuple(plugin for info in seen.values() for plugin in _read(info))


def _distributions(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:  # a path may name what is not there, or an archive
        return []


def _normalised(info: str) -> str:
    """`Some_Name-1.0.dist-info` -> some-name, as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", info.rpartition(".")[0].partition("-")[0]).lower()


def _read(info: Path) -> Iterator[Plugin]:
    try:
        text = (info / "entry_points.txt").read_text("utf-8")
    except (OSError, UnicodeError):  # most distributions have none
        return
    if "[tuneport." not in text:
        return
    name, _, version = info.stem.partition("-")
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[] ")
        elif group.startswith("tuneport.") and "=" in line and not line.startswith(("#", ";")):
            left, _, right = line.partition("=")
            yield Plugin(group, left.strip(), right.strip(), f"{name.replace('_', '-')} {version.partition('-')[0]}")
