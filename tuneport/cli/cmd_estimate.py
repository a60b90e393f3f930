"""`tuneport estimate`."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Callable, Mapping

import click

from tuneport.cli.pipeline_command import pipeline_command

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline

# pipeline, values, GPU, its memory -> the estimate as lines, and as JSON
Estimate = Callable[..., tuple[list[str], dict[str, t.Any]]]


def command(load: Callable[[str | None], Pipeline], estimate: Estimate) -> click.Command:
    """Say what a run will take."""

    def work(
        pipeline: Pipeline,
        values: Mapping[str, t.Any],
        platform: Mapping[str, t.Any],
        *,
        gpu: str | None,
        gpu_memory: str | None,
        as_json: bool,
    ) -> int:
        lines, found = estimate(pipeline, values, gpu, gpu_memory)
        click.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines))
        return 0

    options = (
        click.Option(["--gpu"], metavar="NAME", help="GPU to run on: H100-80GB, L4, or an Azure size that has one."),
        click.Option(["--gpu_memory"], metavar="SIZE", help="Its memory instead: 80g, 40960m."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object, in bytes."),
    )
    help = "Estimate memory, disk and traffic: prepares the first rows, and simulates a step of the training."
    return pipeline_command("estimate", help, load, work, options)
