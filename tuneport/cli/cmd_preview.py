"""`tuneport preview`."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from tuneport.cli.pipeline_command import path_option, pipeline_command

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline

# pipeline, values, how many rows are shown, HTML file -> what rich prints
ShowPreview = Callable[..., t.Any]


def command(load: Callable[[str | None], Pipeline], preview: ShowPreview) -> click.Command:
    """Show what the model will be shown."""

    def work(
        pipeline: Pipeline, values: Mapping[str, t.Any], platform: Mapping[str, t.Any], *, rows: int, html: Path | None
    ) -> int:
        from rich.console import Console

        found = preview(pipeline, values, rows, html)
        Console(highlight=False).print(found)
        if html:
            click.echo(f"written: {html}")
        return 0

    options = (
        click.Option(["--rows"], type=click.IntRange(1, 100), default=3, show_default=True, help="Rows to show."),
        path_option("--html", "FILE", "Also write it as one HTML file."),
    )
    help = "Show the first rows of the data as the model will see them: tokens, labels, what is cut or left out."
    return pipeline_command("preview", help, load, work, options)
