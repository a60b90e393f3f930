"""A file's bytes under a second name: a hard link, a clone where the file system shares blocks, or else a copy."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Container
from functools import cache
from pathlib import Path

from tuneport.digests import SMALL, known

log = logging.getLogger("tuneport.links")

FICLONE = 0x40049409  # of linux/fs.h: the target shares the source's blocks until one of the two is written to


def link_or_copy(source: str, target: str) -> str:
    """Give a file of ours, which nobody writes to again, a second name; it is read-only from then on.

    A small file is copied: its copy may be written to.
    """
    if not (_is_large(source) and (_link(source, target) or _clone(source, target))):
        shutil.copy2(source, target)
    return target


def take_or_copy(source: Path, target: Path) -> None:
    """The same of a file of the user's, whose mode stays as it is: a clone where there can be one, before a link.

    What the user writes into a linked file later changes the second name, too; whoever verifies that, refuses it.
    """
    if not (_is_large(source) and (_clone(source, target) or _link(source, target, read_only=False))):
        shutil.copyfile(source, target)


def link_tree(source: Path, target: Path, leave_out: Container[str] = ()) -> None:
    """Give the files of a folder of ours second names in another one, but for those of these names at its top."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in leave_out} if Path(folder) == source else set()

    shutil.copytree(source, target, ignore=ignore, copy_function=link_or_copy, dirs_exist_ok=True)


def _is_large(path: str | Path) -> bool:
    return Path(path).stat().st_size >= SMALL


def _link(source: str | Path, target: str | Path, *, read_only: bool = True) -> bool:
    real = Path(source).resolve()  # a hub's cache holds links
    try:
        with known.carried(real):
            if read_only:
                real.chmod(stat.S_IMODE(real.stat().st_mode) & ~0o222)
            os.link(real, target)
    except OSError:
        _say_once(Path(target).parent)
        return False
    return True


def _clone(source: str | Path, target: str | Path) -> bool:
    if Path(target).exists():
        return False
    try:
        with Path(source).open("rb") as old, Path(target).open("xb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    except OSError:
        Path(target).unlink(missing_ok=True)
        return False
    return True


@cache
def _say_once(folder: Path) -> None:
    log.info("%s: files are copied, as its file system cannot share them with the folder they come from", folder)
