"""A group of commands."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import click

from tuneport.errors import UserError, did_you_mean


def help_width() -> int:
    """How wide help is, in characters: as the terminal, or as COLUMNS says."""
    return shutil.get_terminal_size().columns


class Commands(click.Group):
    """A click group that guesses what a misspelt command should have been."""

    pipelines: Sequence[str] = ()  # that its commands take, for a shell to complete

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            raise UserError(
                f"unknown command '{args[0]}'; there are: {', '.join(known)}.{did_you_mean(args[0], known)}"
            )
        return super().resolve_command(ctx, args)
