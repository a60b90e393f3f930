"""`tuneport submit`."""

from __future__ import annotations

import dataclasses as dc
import typing as t
from collections.abc import Callable, Mapping, Sequence

import click

from tuneport.cli.pipeline_command import pipeline_command, request_of, target_option
from tuneport.errors import UserError

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    """Send a pipeline to a platform; raises `UserError` where it cannot."""

    def submit(
        pipeline: Pipeline,
        values: Mapping[str, t.Any],
        platform: Mapping[str, t.Any],
        *,
        target: str,
        wait: bool,
        dry_run: bool,
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        if not chosen.remote:
            able = ", ".join(name for name in targets.names() if targets.load(name).remote)
            raise UserError(f"--target {target}: runs here, so there is nothing to send. Use tuneport run, or: {able}.")
        targets.check_resources(pipeline, values, chosen)
        request = dc.replace(request_of(pipeline, platform, argv), wait=wait, dry_run=dry_run)
        return chosen.submit(chosen.compile(pipeline, values, request))

    options = (
        target_option(None),
        click.Option(["--wait"], is_flag=True, help="Follow the run to its end, and end with its result."),
        click.Option(["--dry_run"], is_flag=True, help="Print what would be sent; send nothing."),
    )
    help = "Compile a pipeline and send it to a platform; prints where the run is to be seen."
    return pipeline_command("submit", help, load, submit, options)
