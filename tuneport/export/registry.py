"""Make an exported model a version of a registered model in MLflow's model registry."""

from __future__ import annotations

import contextlib
import json
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneport.errors import UserError
from tuneport.step import Context
from tuneport.tracking import connect, model_uri_of, reason, run_id_of, shown, tracked

if t.TYPE_CHECKING:
    from mlflow import MlflowClient

VERSIONS_TAG = "mlflow.modelVersions"  # on a logged model: what the user interface links to


@dataclass(frozen=True, kw_only=True)
class Registered:
    """Where a registered version stands."""

    name: str
    version: int
    source: str
    run_id: str
    tracking_uri: str


def register(context: Context, name: str, model: Path, tags: Mapping[str, str]) -> Registered:
    """Register the model of an exported folder, from the run that it was logged to.

    A model that did not reach the server when it was exported is uploaded now. Raises `UserError` where there is no
    server or no run, and where the server refuses.
    """
    if context.tracking_uri is None:
        raise UserError(
            "model_registration: no MLflow server is set to register the model in. Set MLFLOW_TRACKING_URI, "
            "to sqlite:////path/mlflow.db or http://host:5000 for example."
        )
    run_id = run_id_of(model, context)
    if run_id is None:
        raise UserError(
            f"{model}: belongs to no run on '{shown(context.tracking_uri)}', and a registered model needs one. "
            "Set MLFLOW_TRACKING_URI to the server that finetune ran with, or run finetune and model_export with it."
        )
    source = model_uri_of(model, context) or _upload(context, model, run_id)
    try:
        version = _create_version(connect(context.tracking_uri), name, source, run_id, tags)
    except UserError:
        raise
    except Exception as e:  # the server is not there, or refuses: neither is mended by a traceback
        raise UserError(
            f"registered_model_name={name!r}: registering {source} at '{shown(context.tracking_uri)}' failed "
            f"({reason(e)}). Check that the server runs and lets you register models, then run this stage again."
        ) from e
    return Registered(
        name=name, version=version, source=source, run_id=run_id, tracking_uri=shown(context.tracking_uri)
    )


def _upload(context: Context, model: Path, run_id: str) -> str:
    with tracked(context, "model_registration", run_id) as run:
        source = run.log_model(model)
    if source is None:
        raise UserError(
            f"{model}: could not be uploaded to '{shown(context.tracking_uri or '')}' (the warning above says why). "
            "Start the server, or set MLFLOW_TRACKING_URI to the one that finetune ran with, and run this stage again."
        )
    return source


def _create_version(client: MlflowClient, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    if not source.startswith("models:/"):
        stored = f"{client.get_run(run_id).info.artifact_uri}/{source.rpartition('/')[2]}"
        return int(client.create_model_version(name, stored, run_id, tags=dict(tags)).version)
    model_id = source.removeprefix("models:/")
    logged = client.get_logged_model(model_id)
    made = client.create_model_version(name, logged.artifact_location, run_id, tags=dict(tags), model_id=model_id)
    with contextlib.suppress(MlflowException):  # only a link in the user interface
        before = json.loads(logged.tags.get(VERSIONS_TAG, "[]"))
        link = {"name": name, "version": made.version}
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([*before, link])})
    return int(made.version)
