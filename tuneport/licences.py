"""Licences and notices of a base model: they go with every model that is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

NOTICES = ("LICENSE*", "NOTICE*")


def notices(files: Iterable[str]) -> list[str]:
    """Those of a folder's files that are licences and notices, by their names."""
    paths = [PurePosixPath(name) for name in files]
    return sorted(p.name for p in paths if len(p.parts) == 1 and any(map(p.match, NOTICES)))


def carry_notices(source: Path, destination: Path) -> list[str]:
    """Copy the licences and notices of a model's folder to what is made of it; returns their names."""
    found = notices(path.name for path in source.iterdir() if path.is_file())
    for name in found:
        shutil.copyfile(source / name, destination / name)
    return found
