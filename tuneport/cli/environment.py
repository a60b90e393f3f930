"""What the environment says, read here and nowhere else: logging, context, folders of the user's own."""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path

from tuneport.errors import UserError
from tuneport.launchers import torchrun
from tuneport.step import Context


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
            raise UserError(f"{variable}={folder!r}: no such folder; expected one with files NAME.py, {kind}.")
        path = importlib.import_module(package).__path__
        if (absolute := str(Path(folder).absolute())) not in path:
            path.append(absolute)
