"""`tuneport completion`."""

from __future__ import annotations

import click

from tuneport.cli.completion import SHELLS, VARIABLE


def command() -> click.Command:
    """Print what makes a shell complete commands, pipelines, parameters and values."""

    @click.command("completion")
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        """Print a script that lets SHELL complete commands, pipelines, parameters and values.

        For bash: eval "$(tuneport completion bash)", in ~/.bashrc for every shell.
        """
        from click.shell_completion import get_completion_class

        chosen = get_completion_class(shell)
        if chosen is None:  # SHELLS names what click knows
            raise RuntimeError(shell)
        click.echo(chosen(ctx.find_root().command, {}, "tuneport", VARIABLE).source())

    return completion
