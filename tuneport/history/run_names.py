"""Which folder a run gets: that of an interrupted run of the same configuration, or a new one with a readable name."""

from __future__ import annotations

import random
import re
import typing as t
from collections.abc import Callable, Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.runner import run_record
from tuneport.runner.run import LATEST
from tuneport.runner.shared_stages import others

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ADJECTIVES = (
    "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "coral", "crisp", "eager", "early", "fair",
    "fleet", "gentle", "golden", "grand", "happy", "jolly", "keen", "kind", "light", "lively", "lucky", "merry", "mild",
    "noble", "proud", "quick", "quiet", "rapid", "rosy", "silver", "smart", "solid", "steady", "sunny", "swift", "warm",
    "wise",
)  # fmt: skip
ANIMALS = (
    "badger", "bear", "beaver", "bison", "crane", "deer", "dolphin", "dove", "eagle", "egret", "falcon", "finch", "fox",
    "gecko", "hare", "hawk", "heron", "ibex", "jay", "koala", "lark", "lemur", "lion", "lynx", "marten", "newt",
    "otter", "owl", "panda", "puffin", "quail", "raven", "robin", "seal", "stork", "swan", "tern", "tiger", "whale",
    "wren",
)  # fmt: skip


def folder_of(
    pipeline: Pipeline,
    values: Mapping[str, t.Any],
    runs: Path,
    *,
    name: str | None = None,
    force: bool = False,
    say: Callable[[str], object],
) -> Path:
    """The folder in ``runs``, such as runs/text_classification, that a run with these values is written to.

    Without a name that is the folder of the newest run of the same configuration, where that did not come to its end,
    else a new one; ``say`` is told where that has nothing to resume. Raises `UserError` where a run is there that
    ``force`` does not give up, or one is at work.
    """
    same = run_record.configuration(pipeline, values)
    if name is not None:
        return _named(runs, name, same, force=force)
    if force:
        raise UserError("--force: says that a run may be overwritten, but none is named. Name it with --name.")
    known = list(others(runs, runs))
    for folder in known:  # the newest first
        record = run_record.read(folder)
        if record is None or record.configuration != same:
            continue
        if record.status == "running":
            raise UserError(
                f"{folder}: a run with the same values is at work there. Wait for it, or give this one a name of its "
                "own with --name."
            )
        if record.status != "finished":
            return folder
        break
    else:
        _say_nothing_to_resume(pipeline, values, known, say)
    return runs / _new_name(runs)


def _named(runs: Path, name: str, same: str, *, force: bool) -> Path:
    if not NAME.fullmatch(name) or name == LATEST:
        raise UserError(
            f"--name {name}: not valid; expected at most 100 letters, digits, '.', '_' and '-', the first a letter or "
            f"digit, and not '{LATEST}'."
        )
    folder = runs / name
    record = run_record.read(folder)
    if force or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if record is not None and record.status != "finished" and record.configuration == same:
        return folder
    what = "is not a run" if record is None else f"a run with other values, which has {record.status}, is there"
    if record is not None and record.configuration == same:
        what = "the run has finished"
    raise UserError(f"{folder}: {what}, and it is not overwritten. Give another --name, or overwrite it with --force.")


def _say_nothing_to_resume(
    pipeline: Pipeline, values: Mapping[str, t.Any], known: list[Path], say: Callable[[str], object]
) -> None:
    """Say that a run which is to go on from a checkpoint starts at the beginning, as its folder is new."""
    resuming = {n: v for node in pipeline.nodes for n, v in node.step.resume_with.items()}
    asked = [name for name, value in resuming.items() if str(values.get(name)).lower() == str(value).lower()]
    if asked and known:
        say(
            f"note: {asked[0]}={resuming[asked[0]]}: no run with these values is in {known[0].parent}, so this one "
            f"starts at the beginning. To go on from the newest, add --name {known[0].name} --force."
        )


def _new_name(runs: Path) -> str:
    """``quiet-otter-12``: two words and one number more than any run there has."""
    numbers = [int(found[1]) for path in runs.glob("*-*") if (found := re.search(r"-(\d{1,9})$", path.name))]
    return f"{random.choice(ADJECTIVES)}-{random.choice(ANIMALS)}-{max(numbers, default=0) + 1}"
