"""The command lines: `python -m steps STAGE …` and `tuneport COMMAND …`; exit codes, and the only place that reads
the environment."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import typing as t
from collections.abc import Callable, Mapping, Sequence

import click

from tuneport.errors import UserError, did_you_mean
from tuneport.step import REQUIRED, Context, Port, Step, show

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # Ctrl-C
EXIT_TERMINATED = 143  # SIGTERM


def guard(work: Callable[[], int | None]) -> int:
    """Run work and return the process's exit code; a user's mistake becomes one message on stderr."""
    from tuneport.stage import Terminated

    try:
        return work() or 0
    except UserError as e:
        _complain(str(e))
        return EXIT_USER_ERROR
    except click.NoSuchOption as e:
        known = [o for p in e.ctx.command.params for o in p.opts] if e.ctx else []
        _complain(f"unknown option '{e.option_name}'.{did_you_mean(e.option_name, known)}")
        return EXIT_USER_ERROR
    except click.ClickException as e:
        _complain(e.format_message())
        return EXIT_USER_ERROR
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except Terminated:
        _complain("terminated")
        return EXIT_TERMINATED
    except Exception:
        traceback.print_exc()
        return 1


def _complain(message: str) -> None:
    sys.stdout.flush()
    click.echo("error: " + message.replace("\n", "\n       "), err=True)


def configure_logging() -> None:
    """Log lines go to stderr: time, stage, message."""
    line = "%(asctime)s %(name)s  %(message)s"
    logging.basicConfig(level=logging.WARNING, format=line, datefmt="%H:%M:%S", force=True)
    logging.getLogger("tuneport").setLevel(logging.INFO)


def context_from_environment() -> Context:
    """What the platform tells a stage: MLflow's own variables."""
    return Context(
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or None,
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or None,
        run_id=os.environ.get("MLFLOW_RUN_ID") or None,
    )


class GroupedCommand(click.Command):
    """A click command whose help lists options under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if record := option.get_help_record(ctx):
                sections.setdefault(getattr(option, "group", "") or "Other", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class PortOption(click.Option):
    """One port as a flag."""

    def __init__(self, port: Port) -> None:
        headings = {"input": "Inputs", "output": "Outputs", "param": "Parameters"}
        self.group = port.group or headings[port.kind]
        metavar = "PATH" if port.kind != "param" else "|".join(map(str, port.choices)) or port.type.__name__.upper()
        super().__init__([f"--{port.name}"], type=click.UNPROCESSED, metavar=metavar, help=port.help + _note(port))


def _note(port: Port) -> str:
    notes = [port.wanted] if port.bounds else []
    if port.required:
        notes.append("required")
    elif port.default not in (None, REQUIRED):
        notes.append(f"default: {show(port.default)}")
    return f"  [{'; '.join(notes)}]" if notes else ""


def stage_command(step: type[Step], run: Callable[[Mapping[str, t.Any]], None]) -> click.Command:
    """A click command with one option for each port of a step; calls ``run`` with those that were given."""

    def callback(**given: t.Any) -> None:
        run({name: value for name, value in given.items() if value is not None})

    return GroupedCommand(
        name=step.name(),
        params=[PortOption(port) for port in step.ports().values()],
        callback=callback,
        help=step.description(),
        context_settings={"help_option_names": ["--help"], "max_content_width": 120},
    )


def run_stage(argv: Sequence[str], names: Sequence[str], load: Callable[..., type[Step]]) -> int:
    """`python -m steps STAGE --flag value`: run one stage; returns the exit code."""
    configure_logging()
    return guard(lambda: _run_stage(list(argv), names, load))


def _run_stage(argv: list[str], names: Sequence[str], load: Callable[..., type[Step]]) -> None:
    if not argv or argv[0] in ("--help", "-h"):
        lines = [f"  {name:20}{load(name).description()}" for name in names]
        click.echo("Usage: python -m steps STAGE --flag value …   (STAGE --help lists the flags)\n\n" + "\n".join(lines))
        return
    step = load(argv[0], _peek(argv, "task_name"))

    def run(given: Mapping[str, t.Any]) -> None:
        from tuneport.stage import execute
        from tuneport.step import parse_values

        stage = step(**parse_values(step.ports(), given, step.name()))
        stage.context = context_from_environment()
        execute(stage)

    stage_command(step, run).main(argv[1:], prog_name=f"python -m steps {step.name()}", standalone_mode=False)


def _peek(argv: Sequence[str], name: str) -> str | None:
    """The value of one flag, before the flags are known."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag == f"--{name}":
            return value
        if flag.startswith(f"--{name}="):
            return flag.partition("=")[2]
    return None
