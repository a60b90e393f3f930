"""`tuneport compile`."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from tuneport.cli.pipeline_command import pipeline_command, request_of, target_option

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    """Write a pipeline as a target's document."""

    def compile_(
        pipeline: Pipeline, values: Mapping[str, t.Any], platform: Mapping[str, t.Any], target: str, output: Path
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        targets.check_resources(pipeline, values, chosen)
        chosen.write(chosen.compile(pipeline, values, request_of(pipeline, platform, argv)), Path.cwd() / output)
        click.echo(f"wrote {output}")
        return 0

    output = click.Option(
        ["-o", "--output"], type=click.Path(path_type=Path), metavar="PATH", required=True, help="File or folder."
    )
    help = "Write a pipeline as a platform's own document, without sending it."
    return pipeline_command("compile", help, load, compile_, (target_option(None), output))
