"""Run a pipeline from this machine: one stage after another, in topological order, skipped where its result stands.

What the local target and the docker target share; they differ in how one stage becomes a process (`Executor`).
"""

from __future__ import annotations

import dataclasses as dc
import errno
import fcntl
import os
import shlex
import site
import sys
import time
import typing as t
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tuneport import digests
from tuneport.artifacts import MANIFEST, Artifact
from tuneport.digests import recorded
from tuneport.errors import EXIT_PREEMPTED, UserError, did_you_mean
from tuneport.graph import Node, Pipeline, Ref
from tuneport.plugins import plugins
from tuneport.runner import cache, run_record, saved_inputs, shared_stages
from tuneport.runner.bind import check, instantiate, output_path
from tuneport.runner.ending import Ending, Output, as_json, next_commands, print_ending, scores_of, warnings_of
from tuneport.runner.process import Interrupted, Signals, holders, kill_group, run, write_holders
from tuneport.runner.progress import Progress, Show, open_progress, say
from tuneport.runner.request import Request
from tuneport.runner.run_record import RunRecord, Status
from tuneport.secrets import credentials, masked
from tuneport.step import Context, Step, show

if t.TYPE_CHECKING:
    import subprocess

DATABASE = "mlflow.db"
LOCK_TRIES, LOCK_PAUSE = 4, 0.05  # seconds between two
LATEST = "latest"  # the link to the run that began last
ODD = "'%?#\n"  # what MLflow or an sqlite URI takes for something else in a folder's name


@dc.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's command and all that is known of it before it runs."""

    name: str
    argv: tuple[str, ...]
    parameters: Mapping[str, t.Any]
    inputs: Mapping[str, Artifact]
    outputs: Mapping[str, Artifact]
    environment: Mapping[str, str]  # what is set on top of the surrounding environment
    log: Path
    cacheable: bool = True
    step: Step = dc.field(compare=False, repr=False)

    @property
    def folder(self) -> Path:
        return self.log.parent.parent / self.name


@dc.dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs, in order, and what comes of it."""

    pipeline: str
    output_dir: Path
    folder: Path
    stages: tuple[Stage, ...]
    outputs: Mapping[str, Artifact]
    environment: Mapping[str, str]
    start_from: str | None
    command: tuple[str, ...]
    tracking_uri: str
    record: RunRecord = dc.field(compare=False)
    about: Mapping[str, str]  # what each output is
    siblings: Path | None = None  # the folder of the pipeline's runs that share finished stages
    show: Show = "progress"
    digests: Path | None = None  # the record of what this machine has read; None: each file is read again


@dc.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: the process's exit code, and what to tell the user where it is not 0."""

    code: int = 0
    message: str = ""
    interrupted: bool = False  # a signal stopped it


class Executor:
    """How one stage becomes a process of this machine: here, as it stands."""

    def command(self, plan: Plan, stage: Stage) -> tuple[str, ...]:
        """What to start for a stage."""
        return stage.argv

    def image(self, stage: Stage) -> str | None:
        """The exact image that holds the stage's code and libraries; None: they are those that we run with."""
        return None

    def send(self, process: subprocess.Popen[bytes], number: int) -> None:
        """Pass a signal on to a running stage; returns at once."""
        process.send_signal(number)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a running stage and all it started; returns at once."""
        kill_group(process.pid)

    def ended(self, stage: Stage, code: int) -> list[str]:
        """Clear away what a stage's process leaves; returns what is known of its end beyond its exit code."""
        if code != -9:
            return []
        return ["It was killed from outside, most often because the machine ran out of memory: try a smaller batch."]


def compile_plan(
    pipeline: Pipeline, values: Mapping[str, t.Any], request: Request, python: tuple[str, ...] = (sys.executable, "-P")
) -> Plan:
    """Bind a pipeline to values and paths of this machine; touches nothing. ``python``: what runs a stage's module.

    -P: a folder that happens to be called like a package of ours, or like a library, must not come first.
    """
    steps = instantiate(pipeline, values, request.output_dir)
    _check_start(pipeline, steps, request.start_from)
    nodes = {node.name: node for node in pipeline.nodes}
    types = {Ref(n.name, p.name): p.type for n in pipeline.nodes for p in n.step.ports().values()}
    return Plan(
        pipeline=pipeline.name,
        output_dir=request.output_dir,
        folder=request.folder,
        stages=tuple(_stage(pipeline, nodes[name], step, request, python) for name, step in steps.items()),
        outputs={
            name: types[ref](output_path(request.output_dir, ref))
            for name, ref in pipeline.outputs.items()
            if ref.node in steps
        },
        environment=request.environment,
        start_from=request.start_from,
        command=request.command,
        tracking_uri=request.environment.get("MLFLOW_TRACKING_URI") or default_tracking_uri(request.folder),
        record=run_record.record_of(pipeline, values),
        about={name: nodes[str(ref.node)].step.ports()[ref.port].help for name, ref in pipeline.outputs.items()},
        siblings=request.siblings,
        show=request.show,
        digests=_digests(request),
    )


def run_plan(plan: Plan, executor: Executor) -> int:
    """Run the stages; returns 0, the exit code of the stage that failed, or 128 + the signal that stopped us."""
    here = not any(executor.image(stage) for stage in plan.stages)
    check({stage.name: stage.step for stage in plan.stages}, here=here)
    names = [stage.name for stage in plan.stages]
    with _locked(plan.output_dir) as lock:
        record = run_record.begun(plan.output_dir, plan.record)
        if plan.siblings:
            point_latest(plan.siblings, plan.output_dir)
        try:
            with open_progress(names, plan.show) as progress, recorded(plan.digests):
                outcome = _run_all(plan, executor, progress, lock)
        except UserError:
            run_record.ended(plan.output_dir, record, "failed")
            raise
        status: Status = "finished" if outcome.code == 0 else "stopped" if outcome.interrupted else "failed"
        record = run_record.ended(plan.output_dir, record, status)
    _say_ending(plan, record, outcome, progress)
    return outcome.code


def point_latest(siblings: Path, run: Path) -> None:
    """Let the link `latest` name a run, where the file system has links."""
    link = siblings / f".{LATEST}.{os.getpid()}"
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(run.name)
        link.replace(siblings / LATEST)


def _say_ending(plan: Plan, record: RunRecord, outcome: Outcome, progress: Progress) -> None:
    """Say how a run ended, as `Request.show` says; an error on standard error whatever that is."""
    known = credentials(plan.environment)
    message = masked(outcome.message, known)
    if outcome.code != 0:
        progress.complain(message)
    whole = {name: artifact for name, artifact in plan.outputs.items() if (artifact.path / MANIFEST).is_file()}
    relative = plan.tracking_uri == f"sqlite:///{DATABASE}"
    ending = Ending(
        pipeline=plan.pipeline,
        folder=plan.output_dir,
        status=record.status,
        outputs={name: Output(artifact=artifact, about=plan.about[name]) for name, artifact in whole.items()},
        scores=scores_of(whole) if outcome.code == 0 else None,
        warnings=warnings_of([stage.name for stage in plan.stages], plan.output_dir),
        error=message,
        commands=next_commands(whole, plan.tracking_uri, plan.folder if relative else None),
        seconds=record.seconds,
    )
    if plan.show == "json":
        say(as_json(ending, known))
    elif outcome.code == 0:
        print_ending(ending, known, brief=plan.show == "quiet")


def _check_start(pipeline: Pipeline, steps: Mapping[str, Step], start: str | None) -> None:
    if start is None or start in steps:
        return
    for node in pipeline.nodes:
        if node.name == start:
            raise UserError(
                f"--from {start}: this stage does not run, as {node.step.only_if} has no value. "
                "Set it, or leave --from out."
            )
    raise UserError(f"--from {start}: unknown stage; there are: {', '.join(steps)}.{did_you_mean(start, steps)}")


def _stage(pipeline: Pipeline, node: Node, step: Step, request: Request, python: tuple[str, ...]) -> Stage:
    ports = step.ports()
    values = {n: value for n, p in ports.items() if p.kind != "resource" and (value := getattr(step, n)) is not None}
    environment = stage_environment(pipeline.name, step, request)
    surroundings = {**request.environment, **environment}
    step.context = Context(
        tracking_uri=surroundings.get("MLFLOW_TRACKING_URI"),
        experiment=surroundings.get("MLFLOW_EXPERIMENT_NAME"),
        run_id=surroundings.get("MLFLOW_RUN_ID") or None,
        digests=_digests(request),
    )
    argv = [*python, "-m", _package(step), node.name]
    for name, value in values.items():
        argv += [f"--{name}", _text(value)]
    return Stage(
        name=node.name,
        argv=tuple(argv),
        parameters={n: getattr(step, n) for n, p in ports.items() if p.kind == "param"},
        inputs={n: v for n, v in values.items() if ports[n].kind == "input"},
        outputs={n: v for n, v in values.items() if ports[n].kind == "output"},
        environment=environment,
        log=request.output_dir / "logs" / f"{node.name}.log",
        cacheable=step.cacheable,
        step=step,
    )


def _digests(request: Request) -> Path | None:
    return request.output_dir / ".digests.jsonl" if request.verify == "changed" else None


def _package(step: Step) -> str:
    """The package whose `__main__` runs this step."""
    return type(step).__module__.partition(".")[0]


def _text(value: t.Any) -> str:
    """A value as a stage's command line takes it."""
    if isinstance(value, bool):
        return show(value)
    return value.location if isinstance(value, Artifact) else str(value)


def stage_environment(pipeline: str, step: Step, request: Request) -> dict[str, str]:
    """The variables a stage gets beyond those that are set already; the user's own win, but for the network's."""
    defaults = {"MLFLOW_TRACKING_URI": default_tracking_uri(request.folder), "MLFLOW_EXPERIMENT_NAME": pipeline}
    defaults["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting threads that spin cost a busy machine more than they gain
    if not request.environment.get("MLFLOW_TRACKING_URI") and any(c in str(request.folder) for c in ODD):
        # MLflow puts its store's folder into SQL and decodes it as if it were a URI: so give it one
        defaults["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (request.folder / "mlruns").as_uri()
    environment = {name: value for name, value in defaults.items() if not request.environment.get(name)}
    if record := _digests(request):
        environment[digests.VARIABLE] = str(record)
    if not step.needs_network():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment | {"PYTHONUNBUFFERED": "1"} | _python_path(step, request.environment)


def default_tracking_uri(folder: Path) -> str:
    """MLflow's own default, an sqlite file in the current folder; so a plain `mlflow ui` there shows the runs."""
    database = str(folder / DATABASE)
    if any(character in database for character in ODD):  # an sqlite URI cannot hold them all, escaped or not
        database = DATABASE
    return f"sqlite:///{database}"


def _python_path(step: Step, environment: Mapping[str, str]) -> dict[str, str]:
    """Where the stage's Python finds the package of the step, if that is not installed but was found beside us."""
    root = str(Path(next(iter(sys.modules[_package(step)].__path__))).absolute().parent)
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))}


@contextmanager
def _locked(output_dir: Path) -> Iterator[int]:
    """Keep other runs out of a run's folder; yields the lock, which a stage holds as well as long as it lives."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise UserError(
            f"{output_dir}: cannot be written to ({e.strerror}). Name another folder with --output_dir."
        ) from None
    try:
        _lock(descriptor)
    except OSError as e:
        found = holders(descriptor)
        holder = f"process {found[0]}" if found else "on another machine"
        os.close(descriptor)
        if e.errno not in (errno.EAGAIN, errno.EACCES):
            raise UserError(f"{output_dir}: cannot be locked ({e.strerror}). Name a folder on another disk.") from None
        raise UserError(
            f"{output_dir}: another run ({holder}) is using this folder. Wait for it, or name another --output_dir."
        ) from None
    try:
        write_holders(descriptor, os.getpid())
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file; whoever only looks whether it is locked holds it for a moment. Raises OSError where it stays so."""
    for left in range(LOCK_TRIES - 1, -1, -1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if not left or e.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            time.sleep(LOCK_PAUSE)
        else:
            return


def _run_all(plan: Plan, executor: Executor, progress: Progress, lock: int) -> Outcome:
    of_users = cache.Digests()
    name = plan.stages[0].name
    reuse = plan.start_from is not None
    try:
        with Signals(progress.stopping, lock, executor.send, executor.kill) as signals:
            for stage in plan.stages:
                name = stage.name
                reuse = reuse and name != plan.start_from
                if reuse:
                    _reuse(plan, stage, progress)
                    continue
                code, known = _run_stage(plan, stage, progress, signals, of_users, executor=executor)
                if code != 0:
                    progress.end(name, "failed", _ending(code))
                    message = _failure(plan, stage, code, known)
                    interrupted = code == EXIT_PREEMPTED
                    return Outcome(code=code if code > 0 else 128 - code, message=message, interrupted=interrupted)
                signals.raise_if_received()
    except Interrupted as e:
        progress.end(name, "stopped")
        again = shlex.join((*plan.command, *(("--from", name) if plan.start_from else ())))
        message = f"{e} in {name}. To go on, repeat the same command; finished stages are kept:\n{again}"
        return Outcome(code=128 + e.signal, message=message, interrupted=True)
    return Outcome()


def _reuse(plan: Plan, stage: Stage, progress: Progress) -> None:
    """With ``--from``: an earlier stage's outputs are taken as they are, if they are whole.

    A run that has none takes those of the newest run beside it.
    """
    there = any(output.path.exists() for output in stage.outputs.values())
    others = shared_stages.others(plan.siblings, plan.output_dir)
    taken = None if there else shared_stages.take_as_it_is(others, stage.folder, stage.outputs, stage.log)
    for output in stage.outputs.values():
        try:
            cache.check_sizes(output)
        except UserError as e:
            raise UserError(f"--from needs what {stage.name} wrote earlier. {e}") from None
    progress.end(stage.name, "reused", f"from {taken}" if taken else "")


def _run_stage(
    plan: Plan, stage: Stage, progress: Progress, signals: Signals, of_users: cache.Digests, *, executor: Executor
) -> tuple[int, list[str]]:
    """Run a stage, or find that its result stands; returns its exit code and what else is known of its end."""
    progress.begin(stage.name)
    library = __name__.partition(".")[0]
    packages = [_package(stage.step), library, f"{library}.tasks"]  # tasks may stand in a folder of the user's
    if brought := plugins(packages[-1], ()).get(str(stage.step.fixed.get("task_name"))):
        packages.append(brought.package)
    origins = stage.step.origins()
    record = cache.record(
        stage.name, stage.parameters, stage.inputs, packages, of_users, origins=origins, image=executor.image(stage)
    )
    reason = f"--from {plan.start_from}" if plan.start_from else ""
    if not reason and stage.cacheable:
        reason = cache.stale(stage.folder, record, stage.outputs)
        taken = _take_done(plan, stage, record) if reason else None
        reason = ("" if taken else reason) or stage.step.lost_effect()
        if not reason:
            progress.end(stage.name, "cached", f"from {taken}" if taken else "")
            return 0, []
    progress.line(stage.name, f"running ({reason})" if reason else "running")
    if plan.start_from:
        cache.forget(stage.folder)
    others = shared_stages.others(plan.siblings, plan.output_dir)
    shared_stages.hand_on(others, stage.folder, stage.step.useful_to_others, stage.outputs)
    started = time.monotonic()
    environment, argv = {**plan.environment, **stage.environment}, executor.command(plan, stage)
    _save_inputs(stage)
    try:
        code = run(argv, environment, stage.log, lambda line: progress.line(stage.name, line), signals)
    except OSError as e:
        raise UserError(f"{stage.name}: cannot be started ({e.strerror}: {e.filename or argv[0]}).") from None
    known = executor.ended(stage, code)
    if code == 0:
        cache.remember(stage.folder, record, stage.outputs, time.monotonic() - started)
        progress.end(stage.name, "done")
    elif code != EXIT_PREEMPTED:
        signals.raise_if_received()
    return code, known


def _take_done(plan: Plan, stage: Stage, record: cache.Record) -> str | None:
    """The run beside this one whose result of a stage was linked into this one."""
    others = shared_stages.others(plan.siblings, plan.output_dir)
    taken = shared_stages.take_done(others, stage.folder, record, stage.outputs, stage.log)
    if taken:
        _save_inputs(stage)
    return taken


def _save_inputs(stage: Stage) -> None:
    path = saved_inputs.file_of(stage.log)
    try:
        saved_inputs.save(path, stage.step)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}). Name another folder with --output_dir.") from None


def shell_lines(plan: Plan) -> list[str]:
    """The stages' commands as a shell takes them, each with the variables that it is given."""
    return [f"{variables(plan, stage)} {shlex.join(stage.argv)}" for stage in plan.stages]


def variables(plan: Plan, stage: Stage) -> str:
    """A stage's variables as a shell takes them; an MLflow store that is a file is among them."""
    store = {"MLFLOW_TRACKING_URI": plan.tracking_uri} if plan.tracking_uri.startswith("sqlite:") else {}
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in {**store, **stage.environment}.items())


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _failure(plan: Plan, stage: Stage, code: int, known: list[str]) -> str:
    lines = [f"stage {stage.name} failed ({_ending(code)})", *(f"  {line}" for line in _last_words(stage.log))]
    lines += [*known, f"Its whole log: {stage.log}"]
    again = shlex.join((*plan.command, "--from", stage.name))
    lines.append(f"Mend the cause and repeat the same command: finished stages are kept. To rerun from here: {again}")
    return "\n".join(lines)


def _last_words(path: Path) -> list[str]:
    """A stage's error message, else the end of its log."""
    try:
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - 20_000))
            lines = f.read().decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return []
    lines = [line for line in lines if line.strip() and not line.startswith("$ ")]
    messages = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if messages and all(line.startswith("       ") for line in lines[messages[-1] + 1 :]):
        return lines[messages[-1] :]
    return lines[-20:]
