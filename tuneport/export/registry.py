"""Make an exported model a version of a registered model in MLflow's model registry."""

from __future__ import annotations

import contextlib
import json
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneport.errors import UserError, excerpt
from tuneport.export import champion
from tuneport.export.logged_model import holds_model, model_digest
from tuneport.secrets import masked
from tuneport.step import Context
from tuneport.tracking import connect, has_files, model_uri_of, reason, run_id_of, tracked

if t.TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST_TAG = "tuneport.model_digest"  # on a version: what was registered, so that it is registered once
VERSIONS_TAG = "mlflow.modelVersions"  # on a logged model: what the user interface links to


@dataclass(frozen=True, kw_only=True)
class Registered:
    """Where a registered version stands."""

    name: str
    version: int
    source: str
    run_id: str
    tracking_uri: str
    champion: bool | None = None  # whether it has that alias now; None: it was not asked for
    champion_reason: str | None = None


def register(
    context: Context,
    name: str,
    model: Path,
    tags: Mapping[str, str],
    *,
    row_scores: Mapping[str, t.Any] | None = None,
    move_champion: bool = False,
) -> Registered:
    """Register the model of an exported folder, or of what `write_logged_model` says of one, from the run that it was
    logged to.

    A model that did not reach the server when it was exported, or is gone from there, is uploaded now; of the second
    kind of folder only where it holds the files, as it does where they did not reach the server. A model that is
    registered already, which its digest tells, stays the version that it is. ``row_scores`` are kept with its run, for
    later models to be compared with; ``move_champion``: see `tuneport.export.champion`. Raises `UserError` where there
    is no server or no run, and where the server refuses.
    """
    if context.tracking_uri is None:
        raise UserError(
            "model_registration: no MLflow server is set to register the model in. Set MLFLOW_TRACKING_URI, "
            "to sqlite:////path/mlflow.db or http://host:5000 for example."
        )
    run_id = run_id_of(model, context)
    if run_id is None:
        raise UserError(
            f"{model}: belongs to no run on '{context.tracking_uri}', and a registered model needs one. "
            "Set MLFLOW_TRACKING_URI to the server that finetune ran with, or run finetune and model_export with it."
        )
    uri, tags = context.tracking_uri, {**tags, DIGEST_TAG: model_digest(model)}
    uploaded = model_uri_of(model, context)
    try:
        client = connect(uri)
        if found := _found(client, uri, name, tags):
            version = int(found.version)
            source = f"models:/{found.model_id}" if found.model_id else uploaded or str(found.source)
        else:
            there = uploaded is not None and has_files(uri, uploaded)
            source = uploaded if uploaded and there else _upload(context, model, run_id, uploaded)
            version = _create_version(client, name, source, run_id, tags)
        if row_scores is not None:
            client.log_text(run_id, json.dumps(row_scores), champion.place_of(tags[DIGEST_TAG]))
        known = champion.KnownScores(client, name, DIGEST_TAG)
        decision = champion.challenge(client, name, version, known) if move_champion else None
    except UserError:
        raise
    except Exception as e:  # the server is not there, or refuses: neither is mended by a traceback
        raise UserError(
            f"registered_model_name={excerpt(name)}: registering {uploaded or model} at '{context.tracking_uri}' "
            f"failed ({reason(e)}). Check that the server runs and lets you register models, then run this stage again."
        ) from e
    return Registered(
        name=name,
        version=version,
        source=source,
        run_id=run_id,
        tracking_uri=masked(context.tracking_uri),
        champion=None if decision is None else decision.is_champion,
        champion_reason=None if decision is None else decision.reason,
    )


def _upload(context: Context, model: Path, run_id: str, gone: str | None) -> str:
    if not holds_model(model):
        raise UserError(
            f"{model}: names the model {gone}, which is gone from '{context.tracking_uri}', and holds no files of it. "
            "Run model_export again, or pass its mlflow_model_folder, which is uploaded again."
        )
    with tracked(context, "model_registration", run_id) as run:
        source = run.log_model(model)
    if source is None:
        raise UserError(
            f"{model}: could not be uploaded to '{context.tracking_uri}' (the warning above says why). "
            "Start the server, or set MLFLOW_TRACKING_URI to the one that finetune ran with, and run this stage again."
        )
    return source


def _found(client: MlflowClient, uri: str, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The newest version that was made of the same model, with these tags now; None where there is none with files."""
    quote = '"' if "'" in name else "'"
    versions = client.search_model_versions(f"name={quote}{name}{quote}")
    same = [v for v in versions if v.tags.get(DIGEST_TAG) == tags[DIGEST_TAG]]
    for version in sorted(same, key=lambda v: -int(v.version)):
        if has_files(uri, str(version.source)):
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
            return client.get_model_version(name, version.version)
    return None


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
