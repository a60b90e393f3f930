"""`tuneport validate`."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping

import click

from tuneport.cli.pipeline_command import pipeline_command, request_of, target_option

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline]) -> click.Command:
    """Check a pipeline's values and files."""

    def validate(pipeline: Pipeline, values: Mapping[str, t.Any], platform: Mapping[str, t.Any], target: str) -> int:
        from tuneport import targets

        for found in targets.validate(pipeline, values, targets.load(target), request_of(pipeline, platform, ())):
            click.echo(f"note: {found}")
        click.echo(f"valid: {pipeline.name} ({' → '.join(node.name for node in pipeline.active(values))})")
        return 0

    help = "Check values, files, columns and the first rows without running anything."
    return pipeline_command("validate", help, load, validate, (target_option("local"),))
