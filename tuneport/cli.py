"""The command lines: `python -m steps STAGE …` and `tuneport COMMAND …`; exit codes, and the only place that reads
the environment."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import os
import sys
import traceback
import typing as t
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from functools import partial
from pathlib import Path

import click

import tuneport
from tuneport.errors import EXIT_PREEMPTED, UserError, did_you_mean
from tuneport.launchers import torchrun
from tuneport.runner import bind
from tuneport.step import REQUIRED, Context, Port, Step, show

if t.TYPE_CHECKING:
    from tuneport.graph import Pipeline
    from tuneport.runner.request import Request

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # Ctrl-C
EXIT_TERMINATED = 143  # SIGTERM


os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # pydantic seeks them in every package, at each start


def guard(work: Callable[[], int | None]) -> int:
    """Run work and return the process's exit code; a user's mistake becomes one message on stderr."""
    from tuneport.stage import Preempted, Terminated

    try:
        return work() or 0
    except UserError as e:
        return _end(EXIT_USER_ERROR, str(e))
    except click.NoSuchOption as e:
        known = [o for p in e.ctx.command.params for o in p.opts] if e.ctx else []
        return _end(EXIT_USER_ERROR, f"unknown option '{e.option_name}'.{did_you_mean(e.option_name, known)}")
    except click.ClickException as e:
        return _end(EXIT_USER_ERROR, e.format_message())
    except (KeyboardInterrupt, click.Abort):
        return _end(EXIT_INTERRUPTED, "interrupted")
    except Preempted as e:
        return _end(
            EXIT_PREEMPTED,
            f"stopped by a signal; the state is saved in {e.checkpoint}. "
            "Run the same command again with resume_from_checkpoint=true to go on from there.",
        )
    except Terminated:
        return _end(EXIT_TERMINATED, "terminated")
    except Exception as e:
        traceback.print_exc()
        torchrun.report(os.environ, 1, f"failed: {type(e).__name__}: {e}")
        return 1


def _end(code: int, message: str) -> int:
    """Say a message last, here or, for one of several processes, through their launcher; returns the exit code."""
    if not torchrun.report(os.environ, code, message):
        _complain(message)
    return code


def _complain(message: str) -> None:
    sys.stdout.flush()
    click.echo("error: " + message.replace("\n", "\n       "), err=True)


def configure_logging() -> None:
    """Log lines go to stderr: time, stage, message. Of several processes, all but the first only warn."""
    rank = int(os.environ["RANK"]) if torchrun.is_rank(os.environ) else 0
    line = f"%(asctime)s %(name)s {f'[rank {rank}]' if rank else ''} %(message)s"
    logging.basicConfig(level=logging.WARNING, format=line, datefmt="%H:%M:%S", force=True)
    logging.getLogger("tuneport").setLevel(logging.WARNING if rank else logging.INFO)


def context_from_environment() -> Context:
    """What the platform tells a stage: MLflow's own variables, and torchrun's where it is one of several processes."""
    is_rank = torchrun.is_rank(os.environ)
    ranks = {n: int(os.environ[n.upper()]) for n in ("rank", "local_rank", "world_size")} if is_rank else {}
    return Context(
        tracking_uri=_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or None),
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or None,
        run_id=os.environ.get("MLFLOW_RUN_ID") or None,
        is_rank=is_rank,
        **ranks,
    )


def _tracking_uri(uri: str | None) -> str | None:
    """Azure ML's own scheme needs a plugin of MLflow's; what it stands for is a plain MLflow server over HTTPS."""
    if uri is None or not uri.startswith("azureml://"):
        return uri
    return "https" + uri.removeprefix("azureml").partition("?")[0]


def add_modules(variable: str, kind: str, path: MutableSequence[str]) -> None:
    """Let each file of the folder that a variable names be a task or target, too, by its name.

    ``path`` is the ``__path__`` of the package it then belongs to; what that has itself goes before one of the same
    name. The stages of a run inherit the variable. Raises `UserError` where there is no such folder.
    """
    if not (folder := os.environ.get(variable)):
        return
    if not Path(folder).is_dir():
        raise UserError(f"{variable}={folder!r}: no such folder; wanted one with a file NAME.py for each {kind}.")
    if (absolute := str(Path(folder).absolute())) not in path:
        path.append(absolute)


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
    notes = [port.wanted] if port.bounds else []
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
        context_settings={"help_option_names": ["--help"], "max_content_width": 120},
    )


def run_stage(argv: Sequence[str], names: Sequence[str], load: Callable[..., type[Step]]) -> int:
    """`python -m steps STAGE --flag value`: run one stage; returns the exit code."""
    configure_logging()
    torchrun.die_with_launcher(os.environ)
    return guard(lambda: _run_stage(list(argv), names, load))


def _run_stage(argv: list[str], names: Sequence[str], load: Callable[..., type[Step]]) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        lines = [f"  {name:20}{load(name).description()}" for name in names]
        click.echo(
            "Usage: python -m steps STAGE --flag value …   (STAGE --help lists the flags)\n\n" + "\n".join(lines)
        )
        return 0
    step = load(argv[0], _peek(argv, "task_name"))
    kfp = {name: _peek(argv, name) for name in ("kfp_executor_input", "kfp_job", "kfp_run_id")}  # Kubeflow's containers
    for name in kfp:
        argv = _without(argv, f"--{name}")

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

    def run_for_kfp(flags: Mapping[str, t.Any]) -> int:
        from tuneport.targets.kfp import executor

        work = run
        if kfp["kfp_job"] is not None:
            from tuneport.targets.kfp import multi_node

            work = partial(multi_node.run, step, kfp["kfp_job"], kfp["kfp_run_id"] or "")
        return executor.run(step, kfp["kfp_executor_input"] or "", flags, work)

    command = stage_command(step, run if kfp["kfp_executor_input"] is None else run_for_kfp)
    return int(command.main(argv[1:], prog_name=f"python -m steps {step.name()}", standalone_mode=False) or 0)


def _launch(stage: Step, processes: int, command: Sequence[str]) -> int:
    """Run a stage in several processes; what it refuses anyway, it refuses before they start."""
    stage.check()
    stage.check_files()
    nodes = max((getattr(stage, n) for n, p in stage.ports().items() if p.resource == "nodes"), default=1)
    code, message = torchrun.launch(command, processes, nodes, os.environ)
    if code != 0:
        _complain(message)
    return code


def _peek(argv: Sequence[str], name: str) -> str | None:
    """The value of one flag, before the flags are known."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=True):
        if flag == f"--{name}":
            return value
        if flag.startswith(f"--{name}="):
            return flag.partition("=")[2]
    return None


# -- the `tuneport` command -------------------------------------------------------------------------------------------

Load = Callable[[str], "Pipeline"]
LoadStage = Callable[..., type[Step]]


class Commands(click.Group):
    """A click group that guesses what a misspelt command should have been."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            raise UserError(
                f"unknown command '{args[0]}'; there are: {', '.join(known)}.{did_you_mean(args[0], known)}"
            )
        return super().resolve_command(ctx, args)


class PipelineCommand(click.Command):
    """A click command over one pipeline: the pipeline's own inputs are no flags but ``name=value``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not self.add_help_option:  # click's own option looks to it that who asks for help may leave all else out
            ctx.resilient_parsing = "--help" in args
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            known = [option for parameter in self.params for option in parameter.opts if option.startswith("-")]
            guess = did_you_mean(e.option_name, known) or " A pipeline's inputs are written name=value, without dashes."
            raise UserError(f"unknown option '{e.option_name}'; there are: {', '.join(known)}.{guess}") from None


def main(argv: Sequence[str], names: Callable[[], Sequence[str]], load: Load, load_stage: LoadStage) -> int:
    """`tuneport COMMAND …`; returns the exit code."""
    configure_logging()

    def work() -> int:
        code = commands(names(), load, load_stage, argv).main(list(argv), prog_name="tuneport", standalone_mode=False)
        return int(code or 0)

    return guard(work)


def commands(pipelines: Sequence[str], load: Load, load_stage: LoadStage, argv: Sequence[str]) -> click.Group:
    """The commands; ``argv`` is what the user typed, shown again as the way to go on after a failure."""

    @click.group(
        cls=Commands,
        invoke_without_command=True,
        help="Fine-tune, evaluate and package a model with one command.",
        epilog=f"Pipelines: {', '.join(pipelines)}",
        context_settings={"max_content_width": 120},
    )
    @click.version_option(tuneport.__version__, message="tuneport %(version)s")
    @click.pass_context
    def group(ctx: click.Context) -> None:
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())

    def named(pipeline: str | None) -> Pipeline:
        if pipeline is None:
            raise UserError(f"no pipeline is named; wanted one of {', '.join(pipelines)}.")
        return load(pipeline)

    for command in (
        _run_command(named, argv),
        _compile_command(named, argv),
        _submit_command(named, argv),
        _validate_command(named),
        _replay_command(load_stage),
        _schema_command(named),
        _init_command(named),
    ):
        group.add_command(command)
    return group


def _pipeline_command(
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
            click.echo(click.get_current_context().get_help() + (_inputs_help(load(pipeline)) if pipeline else ""))
            return 0
        from tuneport.config import given, platform

        traced = load(pipeline)
        values = traced.resolve(given(traced, config, overrides, Path.cwd()))
        return work(traced, values, platform(config), **rest)

    parameters: list[click.Parameter] = [
        click.Argument(["pipeline"], required=False),
        click.Argument(["overrides"], nargs=-1, metavar="[NAME=VALUE]..."),
        _path_option("--config", "FILE", "YAML file with values for the pipeline's inputs."),
        *options,
        click.Option(["--help"], is_flag=True, help="Show this message; after PIPELINE also all its inputs."),
    ]
    settings = {"max_content_width": 120}
    return PipelineCommand(
        name, params=parameters, callback=callback, help=help, add_help_option=False, context_settings=settings
    )


def _path_option(flag: str, metavar: str, help: str) -> click.Option:
    return click.Option([flag], type=click.Path(path_type=Path), metavar=metavar, help=help)


def _target_option(default: str | None) -> click.Option:
    from tuneport import targets

    help = f"Where: {', '.join(targets.names())}."
    if default is None:  # click takes a default that is None for a value
        return click.Option(["--target"], required=True, help=help)
    return click.Option(["--target"], default=default, show_default=True, help=help)


def _run_command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    def run(
        pipeline: Pipeline,
        values: Mapping[str, t.Any],
        platform: Mapping[str, t.Any],
        *,
        target: str,
        output_dir: Path | None,
        start_from: str | None,
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        targets.check_resources(pipeline, values, chosen)
        request = _request(pipeline, platform, _without(argv, "--from"), output_dir, start_from)
        return chosen.submit(chosen.compile(pipeline, values, request))

    options = (
        _target_option("local"),
        _path_option("--output_dir", "DIR", "Folder of the run.  [default: runs/PIPELINE]"),
        click.Option(
            ["--from", "start_from"], metavar="STAGE", help="Keep what earlier stages wrote; rerun from here."
        ),
    )
    help = "Run a pipeline; what is done and unchanged is not done again."
    return _pipeline_command("run", help, load, run, options)


def _request(
    pipeline: Pipeline,
    platform: Mapping[str, t.Any],
    argv: Sequence[str],
    output_dir: Path | None = None,
    start_from: str | None = None,
) -> Request:
    from tuneport.runner.request import Request

    return Request(
        output_dir=Path.cwd() / (output_dir or Path("runs", pipeline.name)),
        folder=Path.cwd(),
        environment=dict(os.environ),
        start_from=start_from,
        command=("tuneport", *argv),
        platform=platform,
    )


def _compile_command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    def compile_(
        pipeline: Pipeline, values: Mapping[str, t.Any], platform: Mapping[str, t.Any], target: str, output: Path
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        targets.check_resources(pipeline, values, chosen)
        chosen.write(chosen.compile(pipeline, values, _request(pipeline, platform, argv)), Path.cwd() / output)
        click.echo(f"wrote {output}")
        return 0

    output = click.Option(
        ["-o", "--output"], type=click.Path(path_type=Path), metavar="PATH", required=True, help="File or folder."
    )
    help = "Write a pipeline as a platform's own document, without sending it."
    return _pipeline_command("compile", help, load, compile_, (_target_option(None), output))


def _submit_command(load: Callable[[str | None], Pipeline], argv: Sequence[str]) -> click.Command:
    def submit(
        pipeline: Pipeline,
        values: Mapping[str, t.Any],
        platform: Mapping[str, t.Any],
        *,
        target: str,
        wait: bool,
        dry_run: bool,
    ) -> int:
        from tuneport import targets

        chosen = targets.load(target)
        if not chosen.remote:
            able = ", ".join(name for name in targets.names() if targets.load(name).remote)
            raise UserError(f"--target {target}: runs here, so there is nothing to send. Use tuneport run, or: {able}.")
        targets.check_resources(pipeline, values, chosen)
        request = dc.replace(_request(pipeline, platform, argv), wait=wait, dry_run=dry_run)
        return chosen.submit(chosen.compile(pipeline, values, request))

    options = (
        _target_option(None),
        click.Option(["--wait"], is_flag=True, help="Follow the run to its end, and end with its result."),
        click.Option(["--dry_run"], is_flag=True, help="Print what would be sent; send nothing."),
    )
    help = "Compile a pipeline and send it to a platform; prints where the run is to be seen."
    return _pipeline_command("submit", help, load, submit, options)


def _without(argv: Sequence[str], flag: str) -> list[str]:
    """Arguments without one flag and its value."""
    kept, skip = [], False
    for argument in argv:
        if not skip and argument != flag and not argument.startswith(f"{flag}="):
            kept.append(argument)
        skip = not skip and argument == flag
    return kept


def _validate_command(load: Callable[[str | None], Pipeline]) -> click.Command:
    def validate(pipeline: Pipeline, values: Mapping[str, t.Any], platform: Mapping[str, t.Any], target: str) -> int:
        from tuneport import targets

        chosen, request = targets.load(target), _request(pipeline, platform, ())
        targets.check_resources(pipeline, values, chosen)
        targets.settings(chosen, request)
        if chosen.remote:
            chosen.compile(pipeline, values, request)
        else:
            bind.check(bind.instantiate(pipeline, values, request.output_dir))
        click.echo(f"valid: {pipeline.name} ({' → '.join(node.name for node in pipeline.active(values))})")
        return 0

    help = "Check values, files and columns without running anything."
    return _pipeline_command("validate", help, load, validate, (_target_option("local"),))


def _replay_command(load: LoadStage) -> click.Command:
    def replay(
        run_stage: Path,
        overrides: tuple[str, ...],
        *,
        config: Path | None,
        target: str,
        run: bool,
        stage: str | None,
        output_dir: Path | None,
    ) -> int:
        from tuneport import replay, targets
        from tuneport.config import platform

        source = Path.cwd() / run_stage
        name, saved = replay.read(source, stage)
        pipeline = replay.pipeline(name, saved, overrides, load, Path.cwd())
        chosen = targets.load(target)
        run_folder = Path.cwd() if source.is_file() else source.parent
        folder = Path.cwd() / output_dir if output_dir else replay.fresh(run_folder / "replays" / name)
        request = _request(pipeline, platform(config), ("replay", *sys.argv[2:]), folder)
        # a store of its own: a stage adds to the MLflow run that its inputs come from
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", **request.environment}
        document = chosen.compile(pipeline, {}, dc.replace(request, environment=environment))
        if run:
            return chosen.submit(document)
        click.echo("\n".join(chosen.shell(document)))
        return 0

    parameters: list[click.Parameter] = [
        click.Argument(["run_stage"], type=click.Path(path_type=Path), metavar="RUN/STAGE"),
        click.Argument(["overrides"], nargs=-1, metavar="[NAME=VALUE]..."),
        _path_option("--config", "FILE", "YAML file with the target's settings, under platform."),
        _target_option("local"),
        click.Option(["--run"], is_flag=True, help="Run the command, do not only print it."),
        click.Option(["--stage"], metavar="STAGE", help="Whose executor input of Kubeflow Pipelines the file is."),
        _path_option("--output_dir", "DIR", "Folder of what it writes.  [default: a new one in RUN/replays]"),
    ]
    help = (
        "Print or run the command that repeats one stage of a run with the same values. RUN/STAGE is a stage's folder, "
        "a saved STAGE.inputs.json, or an executor input of Kubeflow Pipelines; NAME=VALUE changes a value."
    )
    settings = {"max_content_width": 120}
    return PipelineCommand("replay", params=parameters, callback=replay, help=help, context_settings=settings)


def _schema_command(load: Callable[[str | None], Pipeline]) -> click.Command:
    @click.command("schema", help="Print the JSON schema of a configuration file, for editors.")
    @click.argument("pipeline", required=False)
    def schema(pipeline: str | None) -> None:
        from tuneport import targets
        from tuneport.config import json_schema

        models = {name: targets.load(name).settings() for name in targets.names()}
        platforms = {name: model.model_json_schema() for name, model in models.items() if model}
        click.echo(json.dumps(json_schema(load(pipeline), platforms), indent=1, ensure_ascii=False))

    return schema


def _init_command(load: Callable[[str | None], Pipeline]) -> click.Command:
    @click.command("init", help="Write a commented example configuration for a task.")
    @click.argument("task", required=False)
    @click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: standard output.")
    def init(task: str | None, output: Path | None) -> None:
        from tuneport.config import example

        text = example(load(task))
        if output is None:
            click.echo(text, nl=False)
            return
        try:
            with output.open("x", encoding="utf-8") as f:
                f.write(text)
        except FileExistsError:
            raise UserError(f"{output}: exists already and is not overwritten. Name another file.") from None
        except OSError as e:
            raise UserError(f"{output}: cannot be written ({e.strerror}). Name another file.") from None
        click.echo(f"wrote {output}. Fill in what is required, then: tuneport run {task} --config {output}")

    return init


def _inputs_help(pipeline: Pipeline) -> str:
    """Every input of a pipeline under the heading of its group."""
    formatter = click.HelpFormatter(width=120)
    sections: dict[str, list[tuple[str, str]]] = {}
    for option in map(PortOption, pipeline.params.values()):
        sections.setdefault(option.group, []).append((f"{option.name}={option.metavar}", option.help or ""))
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl(rows)
    return "\n\n" + formatter.getvalue().rstrip()
