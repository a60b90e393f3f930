"""`tuneport deploy`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click

from tuneport.errors import UserError


def command() -> click.Command:
    """Serve a finished run's model."""
    from tuneport import deploy

    places = deploy.names()

    @click.command("deploy", context_settings={"max_content_width": 120})
    @click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
    @click.argument("settings", nargs=-1, metavar="[NAME=VALUE]...")
    @click.option("--to", "place", required=True, help=f"Where: {', '.join(places)}.")
    @click.option("--dry_run", is_flag=True, help="Print the documents and the commands; write and send nothing.")
    @click.option("--settings_of", is_flag=True, help="Print the settings of the place.")
    @click.option(
        "--output_dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of the documents.  [default: RUN/deploy/PLACE; of a model outside of a run: deploy/PLACE]",
    )
    def deploy_command(
        run: Path, settings: tuple[str, ...], *, place: str, dry_run: bool, settings_of: bool, output_dir: Path | None
    ) -> int:
        """Serve the exported model of a run on KServe, Azure ML, in a Docker image or by vLLM.

        RUN is the folder of a run, or of an exported model. The documents are written, and handed over by the
        platform's own command: kubectl, az, docker or vllm.
        """
        from tuneport.deploy.deployment import found
        from tuneport.deploy.output_folder import write

        if settings_of:
            click.echo(deploy.settings_help(place) if place in places else ", ".join(places))
            return 0
        model = found(Path.cwd() / run)
        rendered = deploy.render(place, model, _given(settings))
        if dry_run:
            for name, text in rendered.files.items():
                click.echo(f"--- {name}\n{text}")
            for name, folder in rendered.folders.items():
                click.echo(f"--- {name}: a copy of {folder}")
            click.echo("\n".join(shlex.join(argv) for argv in rendered.commands))
            return 0
        folder = Path.cwd() / (output_dir or (model.run or Path()) / "deploy" / place)
        written = write(rendered, folder, model.folder)
        click.echo(f"wrote {', '.join(written)} to {folder}")
        return _send(rendered.commands, folder, rendered.hint)

    return deploy_command


def _given(settings: Sequence[str]) -> dict[str, str]:
    if wrong := [text for text in settings if "=" not in text]:
        raise UserError(f"'{wrong[0]}': not valid; expected NAME=VALUE, for example name=answers.")
    return dict(text.split("=", 1) for text in settings)


def _send(commands: Sequence[Sequence[str]], folder: Path, hint: str) -> int:
    """Run the platform's own commands; the first one that fails ends it. Raises `UserError` where one is not there."""
    for argv in commands:
        click.echo(f"$ {shlex.join(argv)}")
        if shutil.which(argv[0]) is None:
            raise UserError(
                f"{argv[0]}: is not installed here. Install it, or run this in {folder} where it is: "
                f"{' && '.join(shlex.join(c) for c in commands)}"
            )
        if code := subprocess.run(argv, cwd=folder, check=False).returncode:
            raise UserError(f"{shlex.join(argv)}: ended with exit code {code}; what it said stands above.")
    click.echo(f"Look at it: {hint}")
    return 0
