"""Where a graph runs: one module = one target, found by file name and imported when asked for."""

from __future__ import annotations

import dataclasses as dc
import importlib
import pkgutil
import typing as t
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Node, Pipeline, Ref
from tuneport.step import Resource, Step, show

if t.TYPE_CHECKING:
    from pydantic import BaseModel


@dc.dataclass(frozen=True, kw_only=True)
class Request:
    """How the user wants a pipeline run, with what the surroundings say; read in the command line, passed on here."""

    output_dir: Path  # absolute
    folder: Path  # the current one, absolute
    environment: Mapping[str, str]
    start_from: str | None = None  # the stage to go on from, with earlier stages' outputs as they are
    command: tuple[str, ...] = ()  # what the user typed, without --from: the way to go on
    platform: Mapping[str, t.Any] = dc.field(default_factory=dict)  # the configuration's section of that name
    wait: bool = False  # whether a remote run is followed to its end
    dry_run: bool = False  # print what would be sent, send nothing


class Target(ABC):
    """Turns a pipeline into a platform's own document and sends it there."""

    honours: t.ClassVar[frozenset[Resource]] = frozenset()  # the resources of a step that it can give
    remote: t.ClassVar[bool] = False  # whether a service runs what is sent, so that no file of this machine is read

    def settings(self) -> type[BaseModel] | None:
        """The model of this target's part of the configuration's ``platform`` section; None: it has no such part."""
        return None

    @abstractmethod
    def compile(self, pipeline: Pipeline, values: Mapping[str, t.Any], request: Request) -> t.Any:
        """Return the platform's document; touches nothing.

        Raises `UserError` for what this target cannot honour.
        """

    def write(self, document: t.Any, output: Path) -> None:
        """Write the document, whole or not at all, where `tuneport compile -o` says."""
        name = type(self).__module__.rpartition(".")[2]
        raise UserError(f"--target {name}: has no document to write. Use tuneport run, or name another target.")

    def shell(self, document: t.Any) -> list[str]:
        """The commands by which a person runs the document's stages on this machine, one line each."""
        name = type(self).__module__.rpartition(".")[2]
        raise UserError(f"--target {name}: runs no stage on this machine. Name local or docker.")

    @abstractmethod
    def submit(self, document: t.Any) -> int:
        """Check the user's files, send the document, and return the process's exit code."""


def names() -> list[str]:
    """The targets, found by file name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> Target:
    """Return a target by name.

    Raises `UserError` for a name that is not a target.
    """
    if name not in names():
        raise UserError(f"unknown target '{name}'; there are: {', '.join(names())}.{did_you_mean(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    (target,) = (
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Target) and v.__module__ == module.__name__
    )
    return target()


def settings(target: Target, request: Request) -> t.Any:
    """The target's own settings, ``platform: {<target>: …}`` in the configuration, validated by its model.

    Raises one `UserError` that lists every unknown name and every value that is not valid.
    """
    from pydantic import ValidationError

    name, model = type(target).__module__.rpartition(".")[2], target.settings()
    if unknown := set(request.platform) - set(names()):
        first = min(unknown)
        raise UserError(
            f"platform.{first}: unknown target; there are: {', '.join(names())}.{did_you_mean(first, names())}"
        )
    if model is None:
        return None
    try:
        return model.model_validate(request.platform.get(name) or {})
    except ValidationError as e:
        problems = [
            f"platform.{'.'.join(map(str, (name, *error['loc'])))}={error['input']!r}: {error['msg']}."
            for error in e.errors()
        ]
        raise UserError("\n".join(problems)) from None


def check_resources(pipeline: Pipeline, values: Mapping[str, t.Any], target: Target) -> None:
    """Raise one `UserError` that lists the values which ask for what this target cannot give."""
    name = type(target).__module__.rpartition(".")[2]
    able = ", ".join(n for n in names() if n != name)
    _raise(
        [
            f"{port.name}={show(values[port.name])}: --target {name} has no way to honour it. Leave it out "
            f"(default {show(port.default)}), or choose another target: {able}."
            for port in pipeline.params.values()
            if port.resource and port.resource not in target.honours and values[port.name] != port.default
        ]
    )


def output_path(output_dir: Path, ref: Ref) -> Path:
    """Where a stage's output stands under a run's folder: ``<stage>/<port>``."""
    return output_dir / str(ref.node) / ref.port


def instantiate(pipeline: Pipeline, values: Mapping[str, t.Any], output_dir: Path) -> dict[str, Step]:
    """The steps that run with these values, in topological order, each with its values and outputs bound.

    Raises one `UserError` that lists what the steps refuse.
    """
    found: dict[str, Step] = {}
    problems: list[str] = []
    for node in pipeline.active(values):
        bound = pipeline.bind(node, values, lambda ref: output_path(output_dir, ref))
        try:
            found[node.name] = node.step(**bound, **_outputs(node, output_dir))
        except UserError as e:
            problems += str(e).splitlines()
    _raise(problems)
    return found


def _outputs(node: Node, output_dir: Path) -> dict[str, Path]:
    ports = node.step.ports().values()
    return {p.name: output_path(output_dir, Ref(node.name, p.name)) for p in ports if p.kind == "output"}


def check(steps: Mapping[str, Step], files: bool = True) -> None:
    """Let every step look at its values and, where this machine has them, at the user's files, before any work.

    Raises one `UserError` that lists what they refuse.
    """
    problems: list[str] = []
    for step in steps.values():
        try:
            step.check()
            if files:
                step.check_files()
        except UserError as e:
            problems += str(e).splitlines()
    _raise(problems)


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))  # two steps may refuse the same value
