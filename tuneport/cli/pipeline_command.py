"""What the commands over a pipeline share: PIPELINE, name=value, --config, --help with every input."""

from __future__ import annotations

import os
import typing as t
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from tuneport.cli.commands import help_width
from tuneport.cli.completion import complete_inputs, complete_pipelines, complete_targets
from tuneport.cli.stage_command import PortOption
from tuneport.errors import UserError, did_you_mean

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline
    from tuneport.runner.request import Request


Load = Callable[[str], "Pipeline"]


class PipelineCommand(click.Command):
    """A click command over one pipeline: the pipeline's own inputs are no flags but ``name=value``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not self.add_help_option:  # click's own option looks to it that who asks for help may leave all else out
            ctx.resilient_parsing = ctx.resilient_parsing or "--help" in args
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            known = [option for parameter in self.params for option in parameter.opts if option.startswith("-")]
            guess = did_you_mean(e.option_name, known) or " A pipeline's inputs are written name=value, without dashes."
            raise UserError(f"unknown option '{e.option_name}'; there are: {', '.join(known)}.{guess}") from None


def pipeline_command(
    name: str,
    help: str,
    load: Callable[[str | None], Pipeline],
    work: Callable[..., int],
    options: Sequence[click.Parameter] = (),
) -> click.Command:
    """A command that calls ``work(pipeline, every input's value, the platform section, **options)``."""

    def callback(
        pipeline: str | None, overrides: tuple[str, ...], config: Path | None, help: bool, **rest: t.Any
    ) -> int:
        if help:
            click.echo(click.get_current_context().get_help() + (inputs_help(load(pipeline)) if pipeline else ""))
            return 0
        from tuneport.config import given, platform

        traced = load(pipeline)
        values = traced.resolve(given(traced, config, overrides, Path.cwd()))
        return work(traced, values, platform(config), **rest)

    parameters: list[click.Parameter] = [
        click.Argument(["pipeline"], required=False, shell_complete=complete_pipelines),
        click.Argument(["overrides"], nargs=-1, metavar="[NAME=VALUE]...", shell_complete=complete_inputs(load)),
        path_option("--config", "FILE", "YAML file with values for the pipeline's inputs."),
        *options,
        click.Option(["--help"], is_flag=True, help="Show this message; after PIPELINE also all its inputs."),
    ]
    return PipelineCommand(name, params=parameters, callback=callback, help=help, add_help_option=False)


def path_option(flag: str, metavar: str, help: str) -> click.Option:
    """An option that takes a path."""
    return click.Option([flag], type=click.Path(path_type=Path), metavar=metavar, help=help)


def target_option(default: str | None) -> click.Option:
    """The option that names a target."""
    from tuneport import targets

    help = f"Where: {', '.join(targets.names())}."
    if default is None:  # click takes a default that is None for a value
        return click.Option(["--target"], required=True, help=help, shell_complete=complete_targets)
    return click.Option(["--target"], default=default, show_default=True, help=help, shell_complete=complete_targets)


def request_of(
    pipeline: Pipeline,
    platform: Mapping[str, t.Any],
    argv: Sequence[str],
    output_dir: Path | None = None,
    start_from: str | None = None,
    *,
    verify: t.Any = "changed",
) -> Request:
    """What a target is asked, with what the surroundings say."""
    from tuneport.runner.request import Request

    return Request(
        output_dir=Path.cwd() / (output_dir or Path("runs", pipeline.name)),
        folder=Path.cwd(),
        environment=dict(os.environ),
        start_from=start_from,
        verify=verify,
        command=("tuneport", *argv),
        platform=platform,
    )


def inputs_help(pipeline: Pipeline) -> str:
    """Every input of a pipeline under the heading of its group."""
    formatter = click.HelpFormatter(width=help_width())
    sections: dict[str, list[tuple[str, str]]] = {}
    for option in map(PortOption, pipeline.params.values()):
        sections.setdefault(option.group, []).append((f"{option.name}={option.metavar}", option.help or ""))
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl(rows)
    return "\n\n" + formatter.getvalue().rstrip()
