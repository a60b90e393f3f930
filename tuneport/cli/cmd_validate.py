"""`tuneport validate`."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping

import click

from tuneport.cli.pipeline_command import pipeline_command, request_of, target_option
from tuneport.runner import bind

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline]) -> click.Command:
    """Check a pipeline's values and files."""

    def validate(pipeline: Pipeline, values: Mapping[str, t.Any], platform: Mapping[str, t.Any], target: str) -> int:
        from tuneport import targets

        chosen, request = targets.load(target), request_of(pipeline, platform, ())
        targets.check_resources(pipeline, values, chosen)
        targets.settings(chosen, request)
        if chosen.remote:
            chosen.compile(pipeline, values, request)
        else:
            bind.check(bind.instantiate(pipeline, values, request.output_dir))
        click.echo(f"valid: {pipeline.name} ({' → '.join(node.name for node in pipeline.active(values))})")
        return 0

    help = "Check values, files and columns without running anything."
    return pipeline_command("validate", help, load, validate, (target_option("local"),))
