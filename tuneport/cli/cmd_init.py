"""`tuneport init`."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Callable
from pathlib import Path

import click

from tuneport.cli.completion import complete_pipelines
from tuneport.errors import UserError

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline

# task or None, data or None, model or None, the file's folder -> the task and a short configuration
Start = Callable[[str | None, str | None, str | None, Path], tuple[str, str]]


def command(load: Callable[[str | None], Pipeline], start: Start | None) -> click.Command:
    """Write a configuration to start from; raises `UserError` where it cannot."""

    @click.command("init", help="Write a short configuration to start from; the columns and the task of --data in it.")
    @click.argument("task", required=False, shell_complete=complete_pipelines)
    @click.option("--data", metavar="FILE", help="Data to train on: its columns are read.")
    @click.option("--model", metavar="MODEL", help="Base model: a folder, a GGUF file or a hub's ORGANISATION/NAME.")
    @click.option("--all", "whole", is_flag=True, help="Every setting with its meaning and its default instead.")
    @click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: standard output.")
    def init(task: str | None, data: str | None, model: str | None, whole: bool, output: Path | None) -> None:
        folder = (Path.cwd() / (output or "x")).parent
        if whole and (data or model):
            raise UserError("--all: writes every setting; leave out --data and --model, or --all.")
        if whole or start is None:
            from tuneport.config import example

            name, text = load(task).name, example(load(task))
        else:
            name, text = start(task, data, model, folder)
        if output is None:
            click.echo(text, nl=False)
            return
        _write(output, text)
        if not whole:
            (folder / f"{name}.schema.json").write_text(_schema(load(name)), "utf-8")
        click.echo(f"wrote {output}. Look at what is open, then: tuneport run {name} --config {output}")

    return init


def _write(output: Path, text: str) -> None:
    try:
        with output.open("x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError:
        raise UserError(f"{output}: exists already and is not overwritten. Name another file.") from None
    except OSError as e:
        raise UserError(f"{output}: cannot be written ({e.strerror}). Name another file.") from None


def _schema(pipeline: Pipeline) -> str:
    """The schema that the file's first line names, for editors; it can be made again at any time."""
    from tuneport.cli.cmd_schema import schema_of

    return json.dumps(schema_of(pipeline), indent=1, ensure_ascii=False)
