"""`tuneport verify`."""

from __future__ import annotations

import dataclasses as dc
import json
from pathlib import Path

import click

from tuneport.cli.exit_codes import EXIT_USER_ERROR


def command() -> click.Command:
    """Check artifacts, checkpoints and whole runs."""

    @click.command("verify")
    @click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of lines.")
    def verify(paths: tuple[Path, ...], as_json: bool) -> int:
        """Read every byte of artifacts and checkpoints, and say what is missing, altered or added.

        PATH is a run's folder, one of its artifacts, or a checkpoint. Of each artifact the manifest's sizes and digests
        are checked, also of checkpoints, and whether it was made from the artifacts that stand beside it.

        Exits with 2 where something is damaged.
        """
        from tuneport.runner.verification import check

        found = []
        for path in paths:
            for entry in check(path):
                found.append(entry)
                if not as_json:
                    click.echo("\n         ".join((entry.line(), *entry.faults)))
        if as_json:
            click.echo(json.dumps([dc.asdict(entry) for entry in found], indent=1, ensure_ascii=False))
        return EXIT_USER_ERROR if any(entry.faults for entry in found) else 0

    return verify
