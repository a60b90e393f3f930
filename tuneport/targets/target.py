"""What a target is."""

from __future__ import annotations

import typing as t
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.runner.request import Request
from tuneport.step import Resource, Step

if t.TYPE_CHECKING:
    from pydantic import BaseModel


class Target(ABC):
    """Turns a pipeline into a platform's own document and sends it there."""

    name: str  # as --target calls it; `tuneport.targets.load` sets it
    honours: t.ClassVar[frozenset[Resource]] = frozenset()  # the resources of a step that it can give
    remote: t.ClassVar[bool] = False  # whether a service runs what is sent, so that no file of this machine is read
    here: t.ClassVar[bool] = False  # whether stages run with the packages that are installed here

    def settings(self) -> type[BaseModel] | None:
        """The model of this target's part of the configuration's ``platform`` section; None: it has no such part."""
        return None

    @abstractmethod
    def compile(self, pipeline: Pipeline, values: Mapping[str, t.Any], request: Request) -> t.Any:
        """Return the platform's document; touches nothing.

        Raises `UserError` for what this target cannot honour.
        """

    def write(self, document: t.Any, output: Path) -> None:
        """Write the document, whole or not at all, where `tuneport compile -o` says.

        Raises `UserError` where the place cannot be written, or the target has no document.
        """
        raise UserError(f"--target {self.name}: has no document to write. Use tuneport run, or name another target.")

    def shell(self, document: t.Any) -> list[str]:
        """The commands by which a person runs the document's stages on this machine, one line each.

        Raises `UserError` for a target that runs no stage on this machine.
        """
        raise UserError(f"--target {self.name}: runs no stage on this machine. Name local or docker.")

    @abstractmethod
    def submit(self, document: t.Any) -> int:
        """Check the user's files, send the document, and return the process's exit code."""

    # -- inside a stage that this target started ---------------------------------------------------------------------
    def run_stage(
        self,
        step: type[Step],
        flags: Mapping[str, str],
        given: Mapping[str, t.Any],
        work: Callable[[Mapping[str, t.Any]], int],
    ) -> int:
        """Run a stage whose command line has flags of this target's own, which begin with its name.

        ``flags``: those, by name without dashes; ``given``: the others; ``work`` runs the stage with all its values by
        name. Returns the exit code. Raises `UserError` for a flag that the target does not know.
        """
        raise UserError(f"unknown option '--{min(flags)}'; {step.name()} --help lists those there are.")

    def tracking_uri(self, uri: str) -> str:
        """The plain MLflow server behind an address whose scheme is this target's name."""
        return uri
