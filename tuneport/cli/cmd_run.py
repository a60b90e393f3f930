"""`tuneport run`."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from tuneport.cli.arguments import without
from tuneport.cli.pipeline_command import path_option, pipeline_command, request_of, target_option

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline


def command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    """Run a pipeline on a target that runs here."""

    def run(
        pipeline: Pipeline,
        values: Mapping[str, t.Any],
        platform: Mapping[str, t.Any],
        *,
        target: str,
        output_dir: Path | None,
        start_from: str | None,
        verify: str,
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        targets.check_resources(pipeline, values, chosen)
        request = request_of(pipeline, platform, without(argv, "--from"), output_dir, start_from, verify=verify)
        return chosen.submit(chosen.compile(pipeline, values, request))

    options = (
        target_option("local"),
        path_option("--output_dir", "DIR", "Folder of the run.  [default: runs/PIPELINE]"),
        click.Option(
            ["--from", "start_from"], metavar="STAGE", help="Keep what earlier stages wrote; rerun from here."
        ),
        click.Option(
            ["--verify"],
            type=click.Choice(["changed", "full"]),
            default="changed",
            show_default=True,
            help="Read again only files that changed since this machine read them, or every file that a stage reads.",
        ),
    )
    help = "Run a pipeline; what is done and unchanged is not done again."
    return pipeline_command("run", help, load, run, options)
