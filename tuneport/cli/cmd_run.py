"""`tuneport run`."""

from __future__ import annotations

import dataclasses as dc
import os
import typing as t
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from tuneport.cli.arguments import without
from tuneport.cli.pipeline_command import path_option, pipeline_command, request_of, target_option
from tuneport.errors import UserError
from tuneport.secrets import credentials

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline
    from tuneport.runner.progress import Show


def command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    """Run a pipeline on a target that runs here."""

    def run(
        pipeline: Pipeline,
        values: Mapping[str, t.Any],
        platform: Mapping[str, t.Any],
        *,
        target: str,
        name: str | None,
        output_dir: Path | None,
        force: bool,
        start_from: str | None,
        verify: str,
        quiet: bool,
        as_json: bool,
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        targets.check_resources(pipeline, values, chosen)
        if chosen.remote:
            _refuse_here_alone(target, {"--name": name, "--force": force, "--quiet": quiet, "--json": as_json})
            place = Place(folder=Path.cwd() / (output_dir or Path("runs", pipeline.name)), siblings=None)
        else:
            place = place_of(pipeline, values, name=name, output_dir=output_dir, force=force)
        request = request_of(pipeline, platform, without(argv, "--from"), place.folder, start_from, verify=verify)
        show: Show = "json" if as_json else "quiet" if quiet else "progress"
        request = dc.replace(request, siblings=place.siblings, show=show)
        with said_as_json(pipeline.name, place.folder) if as_json else nullcontext():
            return chosen.submit(chosen.compile(pipeline, values, request))

    options = (
        target_option("local"),
        click.Option(
            ["--name"], metavar="NAME", help="Name of the run, kept in runs/PIPELINE/NAME.  [default: made up]"
        ),
        path_option("--output_dir", "DIR", "Exactly this folder, in the place of one in runs/PIPELINE."),
        click.Option(["--force"], is_flag=True, help="Write over the finished run that --name names."),
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
        click.Option(["--quiet"], is_flag=True, help="Print warnings and errors, and at the end verdict and folder."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object; progress goes to stderr."),
    )
    help = "Run a pipeline; what is done and unchanged is not done again."
    return pipeline_command("run", help, load, run, options)


def _refuse_here_alone(target: str, options: Mapping[str, t.Any]) -> None:
    """Refuse what says where a run of this machine is kept and how it is shown."""
    if given := [option for option, value in options.items() if value]:
        raise UserError(
            f"{', '.join(given)}: is of runs on this machine, and --target {target} sends them. Leave it out."
        )


@dc.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is written; ``siblings``: the folder of the pipeline's runs, where it is one of them."""

    folder: Path
    siblings: Path | None


def place_of(
    pipeline: Pipeline, values: Mapping[str, t.Any], *, name: str | None, output_dir: Path | None, force: bool
) -> Place:
    """Where a run with these values is written: see `tuneport.history.run_names.folder_of`.

    Raises `UserError` where that cannot be, or more is named than one place.
    """
    from tuneport.history.run_names import folder_of

    if output_dir is not None:
        if name is not None or force:
            raise UserError("--output_dir: names the run's whole folder; leave out --name and --force.")
        return Place(folder=Path.cwd() / output_dir, siblings=None)
    runs = Path.cwd() / "runs" / pipeline.name
    folder = folder_of(pipeline, values, runs, name=name, force=force, say=lambda text: click.echo(text, err=True))
    return Place(folder=folder, siblings=runs)


@contextmanager
def said_as_json(pipeline: str, folder: Path) -> Iterator[None]:
    """While entered, a mistake is said as a JSON object, too."""
    from tuneport.runner.ending import as_json, failed

    try:
        yield
    except UserError as e:
        click.echo(as_json(failed(pipeline, folder, str(e)), credentials(os.environ)))
        raise
