"""`tuneport stage`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from tuneport.cli.stage_command import LoadStage, run_stage


def command(names: Callable[[], Sequence[str]], load: LoadStage) -> click.Command:
    """One stage in this process, as `python -m steps` runs it, whatever folder one stands in."""

    @click.command(
        "stage",
        help="Run one stage: tuneport stage NAME --flag value …; tuneport stage NAME --help lists the flags.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def stage(arguments: tuple[str, ...]) -> int:
        from tuneport.stage import terminated_on_signal

        with terminated_on_signal():
            return run_stage(arguments, names(), load, program="tuneport stage")

    return stage
