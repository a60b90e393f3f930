"""Run one step for real: verify what it reads, run it, seal what it wrote, leave nothing half-written behind."""

from __future__ import annotations

import errno
import logging
import shutil
import signal
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tuneport
from tuneport.address import Address, is_elsewhere
from tuneport.artifacts import (
    INCOMPLETE,
    MANIFEST,
    Artifact,
    digest,
    is_sealed,
    verify,
    write_atomically,
    write_manifest,
)
from tuneport.digests import recorded
from tuneport.errors import READ_ELSEWHERE, UserError, is_full_disk
from tuneport.json_yaml import read_json, to_json
from tuneport.links import link_or_copy
from tuneport.secrets import masked_values
from tuneport.step import Step, show

log = logging.getLogger("tuneport.stage")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # Slurm and others warn with the second


class Terminated(BaseException):
    """SIGTERM or SIGUSR1 arrived: unwinds the stack as Ctrl-C does, so that outputs are cleaned up."""


class Preempted(BaseException):
    """The same, but a checkpoint was written first: the work can go on from ``checkpoint``."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(str(checkpoint))
        self.checkpoint = checkpoint


def execute(step: Step) -> None:
    """Run a step: its outputs are whole artifacts afterwards, or absent.

    An output folder that holds a finished artifact of the same type is replaced, and only once the new one is whole.
    Raises `UserError` for the user's mistakes, among them an altered input and a full disk.
    """
    with recorded(step.context.digests):
        _execute(step)


def _execute(step: Step) -> None:
    inputs, outputs = _artifacts(step)
    for artifact in inputs.values() if step.context.local_rank == 0 else ():
        _verify_input(artifact, left=step.context.left_in_store)
    step.check()
    step.check_here()
    step.check_files()
    if step.context.rank > 0:
        _assist(step, outputs)
        return
    for output in outputs.values():
        _refuse_foreign(output)
    staged = {n: type(v)(_staging(v.path)) for n, v in outputs.items()}
    try:
        for name, artifact in staged.items():
            _begin(artifact, outputs[name].path, step.keeps_on_failure if step.resumes() else ())
            setattr(step, name, artifact)
        with terminated_on_signal():
            step.run()
            lineage = {n: digest(v) for n, v in inputs.items()} | dict(step.origins())
            for artifact in staged.values():
                _assert_filled(step, artifact)
                write_manifest(artifact, step.name(), tuneport.__version__, parameters(step), lineage)
        for name, artifact in staged.items():
            _commit(artifact.path, outputs[name].path)
            step.log.info("%s: %s", name, outputs[name].path)
    except BaseException as e:
        for name, artifact in staged.items():
            _abandon(artifact.path, outputs[name].path, step.keeps_on_failure)
        if is_full_disk(e):
            raise UserError(_full_disk_message(step, outputs.values())) from e
        if isinstance(e, OSError) and e.errno == errno.EROFS:
            raise UserError(_read_only_message(step, inputs, e)) from e
        raise
    finally:
        for name, artifact in outputs.items():
            setattr(step, name, artifact)


def _artifacts(step: Step) -> tuple[dict[str, Artifact], dict[str, Artifact]]:
    """The inputs that are given, and the outputs, but for those that may be left out and are.

    Raises `UserError` where an output has no place.
    """
    ports = step.ports()
    inputs = {n: v for n, p in ports.items() if p.kind == "input" and (v := getattr(step, n)) is not None}
    outputs = {n: getattr(step, n) for n, p in ports.items() if p.kind == "output"}
    if missing := [n for n, v in outputs.items() if v is None and not ports[n].optional]:
        raise UserError(f"{missing[0]}: is required by {step.name()}; expected a path to write to.")
    return inputs, {n: v for n, v in outputs.items() if v is not None}


def _assist(step: Step, outputs: dict[str, Artifact]) -> None:
    """Run a step beside the process of rank 0, which prepares, seals and clears away the outputs of all."""
    for name, artifact in outputs.items():
        if step.context.checkpoint_store is not None and step.context.local_rank == 0:
            # Of an earlier start, when rank 0 was on this machine, whose disk no other writes to: it is no result now.
            shutil.rmtree(artifact.path, ignore_errors=True)
        setattr(step, name, type(artifact)(_staging(artifact.path)))
    try:
        with terminated_on_signal():
            step.run()
    except Exception as e:
        if is_full_disk(e):  # of this machine
            raise UserError(_full_disk_message(step, outputs.values())) from e
        raise


def parameters(step: Step) -> dict[str, Any]:
    """Every parameter's value, as the manifest and the report record it."""
    return {n: masked_values(getattr(step, n)) for n, p in step.ports().items() if p.kind == "param"}


def changed(step: Step) -> dict[str, Any]:
    """The parameters that differ from their defaults."""
    ports = step.ports()
    return {name: value for name, value in parameters(step).items() if value != ports[name].default}


def arguments(step: type[Step], given: Mapping[str, Any]) -> list[str]:
    """What ``python -m`` takes to run a stage with these values."""
    flags = [
        text
        for name, value in given.items()
        for text in (f"--{name}", show(value) if isinstance(value, bool) else str(getattr(value, "location", value)))
    ]
    return [step.__module__.partition(".")[0], step.name(), *flags]


def _verify_input(artifact: Artifact, *, left: bool) -> None:
    if not artifact.user_supplied or is_sealed(artifact):
        verify(artifact, left=left)


def _staging(path: Path) -> Path:
    """Where an output is built: beside its place, or inside it where the place itself is a mount that must stay."""
    if path.is_mount() or (path.is_dir() and not _can_write(path.parent)):
        return path
    return path.with_name(f".{path.name}.partial")


def _can_write(folder: Path) -> bool:
    probe = folder / f".tuneport-{id(folder)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _refuse_foreign(artifact: Artifact) -> None:
    """Refuse to write where something stands that this program did not write."""
    path = artifact.path
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; expected a folder to write a {artifact.type_name()} to.")
    if not path.is_dir() or not any(path.iterdir()) or (path / INCOMPLETE).exists():
        return
    try:
        found = read_json(path / MANIFEST)["type"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != artifact.type_name():
        lost = "" if (path / MANIFEST).exists() else f" If it is one that lost its {MANIFEST}, delete the folder."
        raise UserError(
            f"{path}: is not empty and holds no {artifact.type_name()} of an earlier run. "
            f"Name an empty or new folder, so that nothing is lost.{lost}"
        )


def _begin(artifact: Artifact, final: Path, keep: tuple[str, ...]) -> None:
    """Empty the folder that an output is built in, but for what an earlier run left there to go on from.

    What it left in a finished output is linked from there.
    """
    folder = artifact.path
    try:
        for old in folder.iterdir() if folder.is_dir() else ():
            if old.name not in keep:
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INCOMPLETE).touch()
        for name in keep:
            if (final / name).is_dir() and not (folder / name).is_dir():
                shutil.copytree(final / name, folder / name, copy_function=link_or_copy)
    except OSError as e:
        if is_full_disk(e):
            raise
        raise UserError(f"{folder}: cannot be written to ({e.strerror}). Name a folder you may write to.") from None


def _commit(staged: Path, final: Path) -> None:
    (staged / INCOMPLETE).unlink()
    if staged == final:
        return
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.is_dir():
        final.replace(old)
    staged.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _abandon(staged: Path, final: Path, keep: tuple[str, ...]) -> None:
    """After a failure: leave only what the step says outlives it, marked as incomplete."""
    if not staged.is_dir():
        return
    kept = [staged / k for k in keep if (staged / k).is_dir() and any((staged / k).iterdir())]
    for path in staged.iterdir():
        if path not in kept and path.name != INCOMPLETE:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if kept:
        log.warning("kept %s from the failed run", ", ".join(map(str, kept)))
    elif staged != final:
        shutil.rmtree(staged, ignore_errors=True)
    else:
        (staged / INCOMPLETE).unlink(missing_ok=True)


def _assert_filled(step: Step, artifact: Artifact) -> None:
    if not any(p.name != INCOMPLETE for p in artifact.path.iterdir()):
        raise RuntimeError(f"{step.name()} wrote nothing to {artifact.path}")


def _full_disk_message(step: Step, outputs: Any) -> str:
    where = next(iter(outputs)).path
    free = shutil.disk_usage(next(p for p in (where, *where.parents) if p.exists())).free
    return (
        f"{where}: the disk is full ({free / 1e6:.0f} MB free) and {step.name()} could not go on. "
        "Free some space, write to another disk, or keep fewer checkpoints with save_total_limit."
    )


def _read_only_message(step: Step, inputs: Mapping[str, Artifact], error: OSError) -> str:
    path = Path(str(error.filename or "a file"))
    for name, artifact in inputs.items():
        if path.is_relative_to(artifact.path):
            return (
                f"{path}: cannot be changed, as {name} is a read-only input of {step.name()}. Give it a copy instead."
            )
    return (
        f"{path}: is on a read-only file system, and {step.name()} has to write there. In a container, mount its "
        "outputs writable and give it a /tmp (--tmpfs /tmp)."
    )


@contextmanager
def terminated_on_signal() -> Iterator[None]:
    """While entered, a signal by which a platform asks a process to stop raises `Terminated`."""

    def handler(signum: int, frame: types.FrameType | None) -> None:
        raise Terminated

    with handled(handler):
        yield


@contextmanager
def handled(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    """Let a function handle the signals by which a platform asks a process to stop."""
    try:
        previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def save_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomically(path, to_json(value, indent=1))


def read_json_object(port: str, file: Path, expected: str) -> dict[str, Any]:
    """Read the JSON object in the file that a user gives for an input; ``expected`` says what it should hold.

    Raises `UserError` for a file that cannot be read or holds no such object.
    """
    if is_elsewhere(str(file)):
        raise UserError(f"{port}={Address.of(file)}: is an address, and no file of this machine. {READ_ELSEWHERE}")
    try:
        found = read_json(file)
    except OSError as e:
        raise UserError(f"{port}={file}: cannot be read ({e.strerror}). Name a JSON file.") from None
    except ValueError as e:
        raise UserError(f"{port}={file}: is not valid JSON ({e}).") from None
    if not isinstance(found, dict):
        raise UserError(f"{port}={file}: holds no JSON object; expected {expected}.")
    return found
