"""Paths that stay where they belong: what a user's folder names or links to lies inside it, or is refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tuneport.errors import UserError, excerpt


def home(folder: Path) -> Path:
    """The folder, without links, that what stands in a folder may lead to: itself.

    Of a model in a Hugging Face hub's cache, which consists of links to ``../../blobs``, the cache of that one model.
    """
    real = folder.resolve()
    for parent in real.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith(("models--", "datasets--")):
            return parent.parent
    return real


def leads_outside(path: Path, root: Path) -> bool:
    """Whether a path ends outside of a folder, which is one that `home` returns, or nowhere."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a link that leads to itself
        return True
    return real.is_symlink() or not real.is_relative_to(root)  # Python 3.13 leaves such a link as it is


def check_links(folder: Path) -> None:
    """Raise `UserError` that names the first link in a folder, in whatever depth, that leads out of it.

    A link to a folder that holds it is refused, too: whoever follows it never ends.
    """
    root = home(folder)
    for link in _links(folder):
        if leads_outside(link, root):
            raise UserError(
                f"{link}: is a link to {excerpt(str(link.readlink()))}, outside of {folder}; expected links to what "
                "lies in the folder. Put the file itself there."
            )
        if link.parent.resolve().is_relative_to(link.resolve()):
            raise UserError(f"{link}: is a link to a folder that it stands in. Remove it.")


def _links(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):  # follows no links
        yield from (path for name in sorted([*folders, *names]) if (path := Path(parent, name)).is_symlink())
