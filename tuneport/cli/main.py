"""`tuneport COMMAND …`: the group of commands."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence

import click

import tuneport
from tuneport.cli import (
    cmd_compile,
    cmd_completion,
    cmd_deploy,
    cmd_estimate,
    cmd_examples,
    cmd_init,
    cmd_preview,
    cmd_replay,
    cmd_run,
    cmd_runs,
    cmd_schema,
    cmd_stage,
    cmd_submit,
    cmd_validate,
    cmd_verify,
)
from tuneport.cli.cmd_estimate import Estimate
from tuneport.cli.cmd_init import Start
from tuneport.cli.cmd_preview import ShowPreview
from tuneport.cli.commands import Commands, help_width
from tuneport.cli.environment import configure_logging
from tuneport.cli.exit_codes import guard
from tuneport.cli.pipeline_command import Load
from tuneport.cli.stage_command import LoadStage
from tuneport.errors import UserError

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline

Names = Callable[[], Sequence[str]]


def main(
    argv: Sequence[str],
    *,
    names: Names,
    load: Load,
    load_stage: LoadStage,
    stages: Names,
    estimate: Estimate | None = None,
    preview: ShowPreview | None = None,
    start: Start | None = None,
) -> int:
    """`tuneport COMMAND …`; returns the exit code.

    ``names`` and ``load`` are those of pipelines, ``stages`` and ``load_stage`` those of stages; ``estimate`` is what
    `tuneport estimate` calls, ``preview`` what `tuneport preview` does: commands that are there where these are given.
    ``start`` is what `tuneport init` calls; without it every configuration is the long one.
    """
    configure_logging()

    def work() -> int:
        group = commands(
            names(),
            load=load,
            load_stage=load_stage,
            stages=stages,
            estimate=estimate,
            preview=preview,
            start=start,
            argv=argv,
        )
        code = group.main(list(argv), prog_name="tuneport", standalone_mode=False)
        return int(code or 0)

    return guard(work)


def commands(
    pipelines: Sequence[str],
    *,
    load: Load,
    load_stage: LoadStage,
    stages: Names,
    estimate: Estimate | None,
    preview: ShowPreview | None,
    start: Start | None,
    argv: Sequence[str],
) -> Commands:
    """The commands; ``argv`` is what the user typed, shown again as the way to go on after a failure.

    Each raises `UserError` for a mistake in what was typed; `guard` makes it the exit code.
    """

    @click.group(
        cls=Commands,
        invoke_without_command=True,
        help="Fine-tune, evaluate and package a model with one command.",
        epilog=f"Pipelines: {', '.join(pipelines)}",
        context_settings={"terminal_width": help_width()},
    )
    @click.version_option(tuneport.__version__, message="tuneport %(version)s")
    @click.pass_context
    def group(ctx: click.Context) -> None:
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())

    def named(pipeline: str | None) -> Pipeline:
        if pipeline is None:
            raise UserError(f"no pipeline is named; expected one of {', '.join(pipelines)}.")
        return load(pipeline)

    for command in (
        cmd_run.command(named, argv),
        cmd_compile.command(named, argv),
        cmd_submit.command(named, argv),
        cmd_runs.command(),
        cmd_validate.command(named),
        *([cmd_preview.command(named, preview)] if preview else []),
        *([cmd_estimate.command(named, estimate)] if estimate else []),
        cmd_stage.command(stages, load_stage),
        cmd_replay.command(load_stage),
        cmd_schema.command(named),
        cmd_init.command(named, start),
        cmd_examples.command(),
        cmd_verify.command(),
        cmd_deploy.command(),
        cmd_completion.command(),
    ):
        group.add_command(command)
    group.pipelines = tuple(pipelines)
    return group
