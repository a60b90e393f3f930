"""What the environment says, read here and nowhere else: logging, secrets, context, folders of the user's own."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import typing as t
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from tuneport import digests
from tuneport.errors import UserError, excerpt
from tuneport.launchers import torchrun
from tuneport.secrets import credentials, masked
from tuneport.step import Context
from tuneport.stored_artifacts import CHECKPOINTS, LEFT


def shown(text: str) -> str:
    """A text for the terminal or a log: without the secrets of addresses, and without what variables of ours hold."""
    return masked(text, credentials(os.environ))


class _Shown:
    """A stream of text that writes what `shown` gives; for all else the stream itself."""

    def __init__(self, stream: t.TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._stream, name)


@contextmanager
def shown_streams() -> Iterator[None]:
    """While entered, what anybody prints goes out without secrets."""
    out, err = (t.cast(t.TextIO, _Shown(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


class _Formatter(logging.Formatter):
    """Formats a log line, its traceback included, without secrets; of a warning it says so."""

    def format(self, record: logging.LogRecord) -> str:
        record.level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return shown(super().format(record))


def configure_logging() -> None:
    """Log lines go to stderr: time, stage, a mark of warnings, message. Of several processes, all but one only warn."""
    rank = int(os.environ["RANK"]) if torchrun.is_rank(os.environ) else 0
    line = f"%(asctime)s %(name)s {f'[rank {rank}] ' if rank else ''}%(level)s%(message)s"
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(line, "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tuneport").setLevel(logging.WARNING if rank else logging.INFO)


def context_from_environment() -> Context:
    """What the platform tells a stage: MLflow's own variables, torchrun's where it is one of several processes, and
    where a run keeps the digests of files."""
    is_rank = torchrun.is_rank(os.environ)
    ranks = {n: int(os.environ[n.upper()]) for n in ("rank", "local_rank", "world_size")} if is_rank else {}
    return Context(
        tracking_uri=_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or None),
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or None,
        run_id=os.environ.get("MLFLOW_RUN_ID") or None,
        is_rank=is_rank,
        left_in_store=bool(os.environ.get(LEFT)),
        checkpoint_store=os.environ.get(CHECKPOINTS) or None,
        digests=Path(record) if (record := os.environ.get(digests.VARIABLE)) else None,
        **ranks,
    )


def _tracking_uri(uri: str | None) -> str | None:
    """The address of a plain MLflow server; a scheme of a platform's own, named as its target is, is that target's."""
    from tuneport import targets

    scheme = (uri or "").partition("://")[0]
    return targets.load(scheme).tracking_uri(str(uri)) if scheme in targets.names() else uri


def add_modules(*packages: str) -> None:
    """Let each file of the user's own folders be a task, target, stage or pipeline, too, by its name.

    ``packages``: what a folder's files then belong to, as tuneport.tasks, whose folder is named by TUNEPORT_TASKS. What
    a package has itself goes before a file of the same name. The stages of a run inherit the variables. A package is
    imported only where its variable is set. Raises `UserError` where there is no such folder.
    """
    for package in packages:
        kind = package.rpartition(".")[2]
        variable = f"TUNEPORT_{kind.upper()}"
        if not (folder := os.environ.get(variable)):
            continue
        if not Path(folder).is_dir():
            raise UserError(f"{variable}={excerpt(folder)}: no such folder; expected one with files NAME.py, {kind}.")
        path = importlib.import_module(package).__path__
        if (absolute := str(Path(folder).absolute())) not in path:
            path.append(absolute)
