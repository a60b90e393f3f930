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
        **how: t.Any,
    ) -> int:
        from tuneport import targets
        from tuneport.runner.request import Submission

        chosen = targets.load(target)
        if not chosen.remote:
            able = ", ".join(name for name in targets.names() if targets.load(name).remote)
            raise UserError(f"--target {target}: runs here, so there is nothing to send. Use tuneport run, or: {able}.")
        targets.check_resources(pipeline, values, chosen)
        submission = Submission(**how)
        if submission.schedule is not None and submission.wait:
            raise UserError("got both --schedule and --wait; expected one: a schedule has no end. Leave out --wait.")
        request = dc.replace(request_of(pipeline, platform, argv), submission=submission)
        return chosen.submit(chosen.compile(pipeline, values, request))

    options = (
        target_option(None),
        click.Option(["--name"], help="Name of the run.  [default: the pipeline's, and when]"),
        click.Option(["--experiment"], help="Experiment of the run, made if it is not there."),
        click.Option(["--upload"], is_flag=True, help="Keep the document there, too, as a new version of a pipeline."),
        click.Option(["--schedule"], metavar="CRON", help='Run by this schedule, as in "0 3 * * 1", not now.'),
        click.Option(["--wait"], is_flag=True, help="Follow the run to its end, and end with its result."),
        click.Option(["--dry_run"], is_flag=True, help="Print what would be sent; send nothing."),
    )
    help = "Compile a pipeline and send it to a platform; prints where the run is to be seen."
    return pipeline_command("submit", help, load, submit, options)
