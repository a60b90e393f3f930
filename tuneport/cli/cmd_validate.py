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

        chosen, request = targets.load(target), request_of(pipeline, platform, ())
        for found in targets.validate(pipeline, values, chosen, request):
            click.echo(f"note: {found}")
        click.echo(f"valid: {pipeline.name} ({' → '.join(node.name for node in pipeline.active(values))})")
        if not chosen.remote:
            from tuneport.runner import this_machine

            click.echo(f"here: {this_machine.seen(request.output_dir)}")
        return 0

    help = "Check values, files, columns and the first rows without running anything."
    return pipeline_command("validate", help, load, validate, (target_option("local"),))
