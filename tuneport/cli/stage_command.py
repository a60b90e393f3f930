"""`python -m steps STAGE --flag value`: a stage as a command, one flag a port."""

from __future__ import annotations

import gc
import os
import typing as t
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from tuneport.cli.arguments import peek, without
from tuneport.cli.commands import help_width
from tuneport.cli.environment import configure_logging, context_from_environment, shown_streams
from tuneport.cli.exit_codes import _complain, guard
from tuneport.launchers import torchrun
from tuneport.step import REQUIRED, Port, Step, show

if t.TYPE_CHECKING:
    from tuneport.targets.target import Target

LoadStage = Callable[..., type[Step]]


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
        headings = {"input": "Inputs", "output": "Outputs", "param": "Parameters", "resource": "Compute"}
        self.group = port.group or headings[port.kind]
        metavar = "PATH" if port.is_artifact else "|".join(map(str, port.choices)) or port.type.__name__.upper()
        super().__init__([f"--{port.name}"], type=click.UNPROCESSED, metavar=metavar, help=port.help + _note(port))


def _note(port: Port) -> str:
    notes = [port.wanted] if port.bounds else [f"or {words}" for words in port.besides.values()]
    if port.required:
        notes.append("required")
    elif port.default not in (None, REQUIRED):
        notes.append(f"default: {show(port.default)}")
    return f"  [{'; '.join(notes)}]" if notes else ""


def stage_command(step: type[Step], run: Callable[[Mapping[str, t.Any]], int]) -> click.Command:
    """A click command with one option for each port of a step; calls ``run`` with those that were given."""

    def callback(**given: t.Any) -> int:
        return run({name: value for name, value in given.items() if value is not None})

    return GroupedCommand(
        name=step.name(),
        params=[PortOption(port) for port in step.ports().values() if port.kind != "resource"],
        callback=callback,
        help=step.description(),
        context_settings={"help_option_names": ["--help"], "terminal_width": help_width()},
    )


def run_stage(argv: Sequence[str], names: Sequence[str], load: LoadStage, program: str = "python -m steps") -> int:
    """`python -m steps STAGE --flag value`: run one stage; returns the exit code. ``program``: what help calls it."""
    gc.set_threshold(
        10_000, 10, 10
    )  # at Python's 700, a tenth of the time for importing torch and transformers goes here
    configure_logging()
    torchrun.die_with_launcher(os.environ)
    with shown_streams():
        return guard(lambda: _run_stage(list(argv), names, load, program))


def _run_stage(argv: list[str], names: Sequence[str], load: LoadStage, program: str) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        lines = [f"  {name:20}{load(name).description()}" for name in names]
        click.echo(f"Usage: {program} STAGE --flag value …   (STAGE --help lists the flags)\n\n" + "\n".join(lines))
        return 0
    step = load(argv[0], peek(argv, "task_name"))
    target, of_target, argv = _split_off_target(argv, step)

    def run(given: Mapping[str, t.Any]) -> int:
        from tuneport.runner import saved_inputs
        from tuneport.stage import arguments, execute
        from tuneport.step import parse_values

        stage = step(**parse_values(step.ports(), given, step.name()))
        stage.context = context_from_environment()
        if (processes := stage.processes()) is not None and not stage.context.is_rank:
            return _launch(stage, processes, arguments(step, given))
        if stage.context.rank == 0 and (path := os.environ.get(saved_inputs.VARIABLE)):
            saved_inputs.save(Path(path), stage)
        execute(stage)
        return 0

    def run_for_target(given: Mapping[str, t.Any]) -> int:
        return run(given) if target is None else target.run_stage(step, of_target, given, run)

    command = stage_command(step, run_for_target)
    return int(command.main(argv[1:], prog_name=f"{program} {step.name()}", standalone_mode=False) or 0)


def _split_off_target(argv: list[str], step: type[Step]) -> tuple[Target | None, dict[str, str], list[str]]:
    """The target in whose container the stage runs, its own flags by name, and the other arguments.

    A target's own flags begin with its name, as in ``--kfp_executor_input``.
    """
    names = [arg.removeprefix("--").partition("=")[0] for arg in argv if arg.startswith("--")]
    owner = {flag: flag.partition("_")[0] for flag in names if "_" in flag and flag not in step.ports()}
    if not owner:
        return None, {}, argv
    from tuneport import targets

    known = set(targets.names()) & set(owner.values())
    of_target = {flag: peek(argv, flag) or "" for flag, target in owner.items() if target in known}
    for flag in of_target:
        argv = without(argv, f"--{flag}")
    return (targets.load(min(known)) if known else None), of_target, argv


def _launch(stage: Step, processes: int, command: Sequence[str]) -> int:
    """Run a stage in several processes; what it refuses anyway, it refuses before they start."""
    stage.check()
    stage.check_here()
    stage.check_files()
    nodes = max((getattr(stage, n) for n, p in stage.ports().items() if p.resource == "nodes"), default=1)
    code, message = torchrun.launch(command, processes, nodes, os.environ)
    if code != 0:
        _complain(message)
    return code
