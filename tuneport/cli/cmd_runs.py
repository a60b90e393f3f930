"""`tuneport runs`: the runs that are kept."""

from __future__ import annotations

import json
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import click

from tuneport.cli.commands import Commands
from tuneport.errors import UserError

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")


def command() -> click.Command:
    """List, show, compare, open and remove runs."""

    @click.group("runs", cls=Commands, invoke_without_command=True, help="Runs that are kept: list, compare, remove.")
    @click.option(
        "--root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where they lie."
    )
    @click.pass_context
    def runs(ctx: click.Context, root: Path) -> None:
        ctx.obj = Path.cwd() / root
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())

    for add in (_list, _show, _compare, _open, _remove):
        add(runs)
    return runs


def _list(runs: click.Group) -> None:
    @runs.command("list", help="List the runs, the newest first.")
    @click.argument("pipeline", required=False)
    @as_json_option
    @click.pass_obj
    def list_(root: Path, pipeline: str | None, as_json: bool) -> None:
        from tuneport.history import kept_runs, show_runs

        found = list(kept_runs.listed(root, pipeline))
        if as_json:
            _echo([run.as_json() for run in found])
        elif found:
            show_runs.printed(show_runs.run_list(found))
        else:
            click.echo(f"no runs in {root / (pipeline or '')}")


def _show(runs: click.Group) -> None:
    @runs.command("show", help="Show a run: scores, verdict, values, data, warnings, outputs.")
    @_run_argument()
    @as_json_option
    @click.pass_obj
    def show(root: Path, run: str, as_json: bool) -> None:
        from rich.console import Console

        from tuneport.history import kept_runs, show_runs

        found = kept_runs.find(run, root)
        if as_json:
            _echo(found.as_json())
        else:
            show_runs.printed(show_runs.one_run(found, Console().width))


def _compare(runs: click.Group) -> None:
    help = "Compare two runs: scores with the paired interval of their difference, and parameters and data that differ."

    @runs.command("compare", help=help)
    @click.argument("first", metavar="A", shell_complete=complete_runs)
    @click.argument("second", metavar="B", shell_complete=complete_runs)
    @click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write it as one HTML file.")
    @as_json_option
    @click.pass_obj
    def compare(root: Path, first: str, second: str, html: Path | None, as_json: bool) -> None:
        from tuneport.history import compare_runs, kept_runs, show_runs
        from tuneport.runner import html_page

        found = compare_runs.compare(kept_runs.find(first, root), kept_runs.find(second, root))
        if as_json:
            _echo(found.as_json())
        else:
            show_runs.printed(show_runs.comparison(found))
        if html is not None:
            html_page.save_html(show_runs.comparison(found), f"{first} and {second}", html)
            click.echo(f"written: {html}", err=as_json)


def _open(runs: click.Group) -> None:
    @runs.command("open", help="Open a run's report in the browser, and print where it lies.")
    @_run_argument()
    @click.pass_obj
    def open_(root: Path, run: str) -> None:
        import webbrowser

        from tuneport.history import kept_runs

        found = kept_runs.find(run, root)
        report = (found.evaluation or found.folder) / "report.html"
        if not report.is_file():
            raise UserError(f"{found.folder}: has no report; the run has {found.record.status}.")
        click.echo(str(report))
        webbrowser.open(report.as_uri())


def _remove(runs: click.Group) -> None:
    @runs.command("rm", help="Delete runs. What others share with them stays.")
    @click.argument("names", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_runs)
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @click.pass_obj
    def remove(root: Path, names: tuple[str, ...], yes: bool) -> None:
        from tuneport.history import kept_runs

        found = [kept_runs.find(name, root) for name in names]
        if not yes:
            listed = "\n".join(f"  {run.folder}" for run in found)
            if not sys.stdin.isatty():
                raise UserError(f"--yes: is required where nobody can be asked. It would delete:\n{listed}")
            click.confirm(f"Delete?\n{listed}", abort=True)
        for run in {run.folder: run for run in found}.values():
            kept_runs.remove(run)
            click.echo(f"deleted {run.folder}")


def complete_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The names of runs that begin like this."""
    from tuneport.history import kept_runs

    known = [run.name for run in kept_runs.listed(Path.cwd() / "runs")]
    return [name for name in known if name.startswith(incomplete)]


def _run_argument() -> Callable[[t.Any], t.Any]:
    return click.argument("run", metavar="RUN", shell_complete=complete_runs)


def _echo(found: t.Any) -> None:
    click.echo(json.dumps(found, indent=1, ensure_ascii=False))
