"""`tuneport init`."""

from __future__ import annotations

import typing as t
from collections.abc import Callable
from pathlib import Path

import click

from tuneport.errors import UserError

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline]) -> click.Command:
    """Write a commented configuration; raises `UserError` where it cannot."""

    @click.command("init", help="Write a commented example configuration for a task.")
    @click.argument("task", required=False)
    @click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: standard output.")
    def init(task: str | None, output: Path | None) -> None:
        from tuneport.config import example

        text = example(load(task))
        if output is None:
            click.echo(text, nl=False)
            return
        try:
            with output.open("x", encoding="utf-8") as f:
                f.write(text)
        except FileExistsError:
            raise UserError(f"{output}: exists already and is not overwritten. Name another file.") from None
        except OSError as e:
            raise UserError(f"{output}: cannot be written ({e.strerror}). Name another file.") from None
        click.echo(f"wrote {output}. Fill in what is required, then: tuneport run {task} --config {output}")

    return init
