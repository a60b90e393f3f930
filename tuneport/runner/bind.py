"""A pipeline's steps with the values and paths of one run."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.graph import Node, Pipeline, Ref
from tuneport.step import Step


def output_path(output_dir: Path, ref: Ref) -> Path:
    """Where a stage's output stands under a run's folder: ``<stage>/<port>``."""
    return output_dir / str(ref.node) / ref.port


def instantiate(pipeline: Pipeline, values: Mapping[str, t.Any], output_dir: Path) -> dict[str, Step]:
    """The steps that run with these values, in topological order, each with its values and outputs bound.

    Raises one `UserError` that lists what the steps refuse.
    """
    found: dict[str, Step] = {}
    problems: list[str] = []
    for node in pipeline.active(values):
        bound = pipeline.bind(node, values, lambda ref: output_path(output_dir, ref))
        try:
            found[node.name] = node.step(**bound, **_outputs(node, output_dir))
        except UserError as e:
            problems += str(e).splitlines()
    raise_together(problems)
    return found


def _outputs(node: Node, output_dir: Path) -> dict[str, Path]:
    ports = node.step.ports().values()
    return {p.name: output_path(output_dir, Ref(node.name, p.name)) for p in ports if p.kind == "output"}


def check(steps: Mapping[str, Step], files: bool = True, here: bool = False) -> None:
    """Let every step look at its values and, where this machine has them, at the user's files, before any work.

    ``here``: and, where it will run here, at what it needs of that.

    Raises one `UserError` that lists what they refuse.
    """
    problems: list[str] = []
    for step in steps.values():
        try:
            step.check()
            if here:
                step.check_here()
            if files:
                step.check_files()
        except UserError as e:
            problems += str(e).splitlines()
    raise_together(problems)


def check_rows(steps: Mapping[str, Step]) -> list[str]:
    """Let every step look at the first rows of the user's data; returns what they find worth a look.

    Raises one `UserError` that lists what they refuse.
    """
    problems: list[str] = []
    found: list[str] = []
    for step in steps.values():
        try:
            found += step.check_rows()
        except UserError as e:
            problems += str(e).splitlines()
    raise_together(problems)
    return found


def raise_together(problems: list[str]) -> None:
    """Raise one `UserError` that lists the problems, each once; nothing where there are none."""
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))  # two steps may refuse the same value
