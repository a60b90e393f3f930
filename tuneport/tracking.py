"""MLflow: one run that every stage of a pipeline adds parameters, metrics, reports and the model to."""

from __future__ import annotations

import dataclasses as dc
import fcntl
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import time
import typing as t
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuneport.artifacts import INCOMPLETE, write_atomically
from tuneport.errors import UserError
from tuneport.json_yaml import read_json, to_json
from tuneport.links import link_tree
from tuneport.secrets import masked
from tuneport.step import Context
from tuneport.system_metrics import watched

if t.TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

EXPERIMENT = "tuneport"
TRACKING_FILE = "tracking.json"  # in a model folder: the run that made it
MAX_PARAM_LENGTH = 6000  # MLflow's own limits
MAX_PARAMS_PER_BATCH = 100
MAX_DIGEST_LENGTH = 36
SCORES = ("test/", "baseline/", "benchmark/")  # groups of metrics that are a model's
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # its page is that of trainings
RETRY_AFTER = 30.0  # seconds that a server which does not answer is left alone

log = logging.getLogger("tuneport.tracking")


@dc.dataclass(frozen=True, kw_only=True)
class Split:
    """Rows that a run reads, as MLflow lists them; ``role``: train, validation or test; ``source``: the file."""

    name: str
    role: str
    source: str
    digest: str
    rows: int


class Run:
    """A run that keeps nothing: what a stage logs to when no tracking server is named."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, t.Any]) -> None:
        """Log parameters that the run has not yet; values are cut to MLflow's limit."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; returns at once."""

    def log_artifacts(self, folder: Path, artifact_path: str) -> None:
        """Upload a folder; returns when it is there, so that the folder may be moved afterwards."""

    def log_model(self, folder: Path, name: str = "model") -> str | None:
        """Upload an MLflow model folder as the run's model; return its URI once it is there, None if it is not."""
        return None

    def log_model_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the run's models, as far as models were uploaded to it, and of the run."""

    def log_splits(self, splits: Sequence[Split]) -> None:
        """Say which rows the run reads."""

    def describe(self, text: str) -> None:
        """Say in a sentence what came of the run."""

    def set_tags(self, tags: Mapping[str, t.Any]) -> None:
        """Tag the run."""


class MlflowRun(Run):
    """A run on a tracking server.

    One thread sends everything in order, so training never waits for the server. While the server fails, updates
    are kept and sent again later; what could not be sent when the run ends is given up with a warning.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id: str = run_id
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._unsent: deque[Callable[[], object]] = deque()
        self._retry_at = 0.0
        self._warned = False

    def log_params(self, params: Mapping[str, t.Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(_key(k), masked(str(v))[:MAX_PARAM_LENGTH]) for k, v in params.items()]

        def log_new() -> None:
            known = self.client.get_run(self.run_id).data.params
            new = [entry for entry in entries if entry.key not in known]
            for start in range(0, len(new), MAX_PARAMS_PER_BATCH):
                self.client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS_PER_BATCH])

        self._send(log_new)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        entries = _metrics(metrics, step or 0)
        self._send(lambda: self.client.log_batch(self.run_id, metrics=entries))

    def log_model_metrics(self, metrics: Mapping[str, float]) -> None:
        def log() -> None:
            outputs = self.client.get_run(self.run_id).outputs
            ids: list[str | None] = [output.model_id for output in outputs.model_outputs] if outputs else []
            entries = [entry for model_id in ids or [None] for entry in _metrics(metrics, model_id=model_id)]
            self.client.log_batch(self.run_id, metrics=entries)

        self._send(log)

    def log_splits(self, splits: Sequence[Split]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=masked(split.name),
                    digest=split.digest[:MAX_DIGEST_LENGTH],
                    source_type="local",
                    source=to_json({"uri": masked(split.source)}),
                    profile=to_json({"num_rows": split.rows}),
                ),
                [InputTag("mlflow.data.context", split.role)],
            )
            for split in splits
        ]
        self._send(lambda: self.client.log_inputs(self.run_id, inputs))

    def describe(self, text: str) -> None:
        self.set_tags({"mlflow.note.content": text})

    def log_artifacts(self, folder: Path, artifact_path: str) -> None:
        self._send(lambda: self._upload(folder, artifact_path), wait=True)

    def log_model(self, folder: Path, name: str = "model") -> str | None:
        uris: list[str] = []
        self._send(lambda: uris.append(self._upload_model(folder, name)), wait=True)
        return uris[0] if uris else None

    def set_tags(self, tags: Mapping[str, t.Any]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(_key(k), masked(str(v))) for k, v in tags.items()]
        self._send(lambda: self.client.log_batch(self.run_id, tags=entries))

    def close(self, status: str | None) -> None:
        """Send what is left; with a status, end the run with it."""
        if status is not None:
            self._send(lambda: self.client.set_terminated(self.run_id, status))
        self._sender.submit(self._flush).result()
        self._sender.shutdown()
        if self._unsent:
            log.warning("%d updates did not reach the server; run %s is incomplete", len(self._unsent), self.run_id)

    def _send(self, update: Callable[[], object], wait: bool = False) -> None:
        def work() -> None:
            self._unsent.append(update)
            if time.monotonic() >= self._retry_at:
                self._flush()

        sent = self._sender.submit(work)
        if wait:
            sent.result()
            if update in self._unsent:  # its folder will not be there later
                self._unsent.remove(update)
                log.warning("an upload did not reach the tracking server; run %s is incomplete", self.run_id)

    def _flush(self) -> None:
        while self._unsent:
            try:
                self._unsent[0]()
            except Exception as e:  # whatever a server or a network does, training goes on
                self._warn(e)
                if not _refused(e):
                    self._retry_at = time.monotonic() + RETRY_AFTER
                    return
            self._unsent.popleft()

    def _warn(self, error: Exception) -> None:
        if not self._warned or _refused(error):
            log.warning("tracking: %s; the work goes on", reason(error))
        self._warned = True

    def _upload(self, folder: Path, artifact_path: str) -> None:
        for path in _content(folder):
            self.client.log_artifact(self.run_id, str(path), artifact_path)

    def _upload_model(self, folder: Path, name: str) -> str:
        """As a logged model, which the server shows under the run; on a server without those, as plain artifacts."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_run(self.run_id).info.experiment_id
        try:
            model = self.client.create_logged_model(experiment, name, source_run_id=self.run_id)
        except MlflowException as e:
            if not _refused(e):
                raise
            self._upload(folder, name)
            return f"runs:/{self.run_id}/{name}"
        try:
            if place := _local_folder(model.artifact_location):
                link_tree(folder, place, leave_out=[INCOMPLETE])
            for path in _content(folder) if place is None else ():
                if path.is_dir():
                    self.client.log_model_artifacts(model.model_id, str(path), path.name)
                else:
                    self.client.log_model_artifact(model.model_id, str(path))
        except BaseException:
            self.client.finalize_logged_model(model.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._score(model.model_id)
        return f"models:/{model.model_id}"

    def _score(self, model_id: str) -> None:
        """Give a model the scores that its run has already, where an evaluation was faster than the upload."""
        found = self.client.get_run(self.run_id).data.metrics
        if scores := {name: value for name, value in found.items() if name.startswith(SCORES)}:
            self.client.log_batch(self.run_id, metrics=_metrics(scores, model_id=model_id))


@contextmanager
def tracked(
    context: Context, name: str, run_id: str | None = None, *, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Open the MLflow run that a stage adds to; a new one gets the name and tags, and the machine is watched while it
    is open.

    Without a tracking URI: a run that keeps nothing. With ``run_id`` (an earlier stage's) or ``context.run_id``
    (the platform's): that run, whose end is left to whoever started it. Else a new run, ended here. Raises
    `UserError` where the tracking URI cannot be used; a server that fails later, or that an earlier stage could
    still use, costs a warning only.
    """
    if context.tracking_uri is None or context.rank > 0:
        yield Run()
        return
    try:
        run = _open(context, context.tracking_uri, name, run_id or context.run_id)
    except Exception as e:
        if run_id is None:
            raise _unusable(context, e) from e
        log.warning("tracking: %s; the work goes on untracked", reason(e))
        yield Run()
        return
    status = "KILLED"
    run.set_tags(tags or {})
    try:
        with nullcontext() if run_id else watched(run.log_metrics):
            yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        run.close(None if run_id or context.run_id else status)


def connect(tracking_uri: str) -> MlflowClient:
    """Return a client of a tracking server and of its model registry; MLflow's chatter is silenced.

    Raises `UserError` for an SQLite file that cannot be used: MLflow itself would try again for hours.
    """
    _check_sqlite(tracking_uri)
    quieten()
    from mlflow import MlflowClient

    if (database := _sqlite_file(tracking_uri)) is None:
        return MlflowClient(tracking_uri)
    with _one_at_a_time(database):
        return MlflowClient(tracking_uri)  # which makes the tables of a new file


def quieten() -> None:
    """Before the first import of mlflow: no usage statistics over the network, no progress chatter, brief retries.

    A variable that the user has set keeps its value.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    import mlflow  # noqa: F401  (its import configures the loggers)

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def save_run(folder: Path, run_id: str | None, context: Context, model_uri: str | None = None) -> None:
    """Write ``tracking.json``: the run that a folder's model belongs to and, once uploaded, the model's URI there."""
    uri = context.tracking_uri and masked(context.tracking_uri)
    tracking = {"tracking_uri": uri, "run_id": run_id, "model_uri": model_uri}
    write_atomically(folder / TRACKING_FILE, to_json(tracking, indent=1))


def run_id_of(folder: Path, context: Context) -> str | None:
    """The run that made a folder's model; None where it was not tracked, or on another server than the context's."""
    return _saved(folder, context).get("run_id")


def model_uri_of(folder: Path, context: Context) -> str | None:
    """The URI under which a folder's model was uploaded to its run, as far as it was."""
    return _saved(folder, context).get("model_uri")


def _saved(folder: Path, context: Context) -> dict[str, t.Any]:
    """``tracking.json``; empty where there is none or it is another server's.

    Under another address it may be the same server, moved or written otherwise: whoever knows the run, has it.
    """
    try:
        tracking = read_json(folder / TRACKING_FILE)
    except (OSError, ValueError):
        return {}
    if not isinstance(tracking, dict) or not (uri := tracking.get("tracking_uri")) or context.tracking_uri is None:
        return {}
    same = uri == masked(context.tracking_uri)
    return tracking if same or _has_run(context.tracking_uri, tracking.get("run_id")) else {}


def _has_run(tracking_uri: str, run_id: str | None) -> bool:
    """Whether a server has a run, and did not delete it; an SQLite file that is not there is not made."""
    database = _sqlite_file(tracking_uri)
    if run_id is None or (database and not database.is_file()):
        return False
    try:
        return str(connect(tracking_uri).get_run(run_id).info.lifecycle_stage) == "active"
    except Exception:  # it knows none, or is not there
        return False


def lost_model(folder: Path, context: Context) -> str:
    """Why the upload of a folder's model does not stand any more, in words; empty where it does, or nobody can say."""
    uri = model_uri_of(folder, context)
    if uri is None or context.tracking_uri is None or has_files(context.tracking_uri, uri):
        return ""
    return "its upload is gone from the MLflow server"


def lost_artifacts(folder: Path, context: Context, artifact_path: str) -> str:
    """The same of what was uploaded to the run of a folder's model; empty, too, where there is no such run any more."""
    run_id = run_id_of(folder, context)
    if run_id is None or context.tracking_uri is None or not _has_run(context.tracking_uri, run_id):
        return ""
    found = has_files(context.tracking_uri, f"runs:/{run_id}/{artifact_path}")
    return "" if found else "its upload is gone from the MLflow server"


def has_files(tracking_uri: str, uri: str) -> bool:
    """Whether a server has files at a URI (``runs:/…``, ``models:/…``, or where a version's files lie); also true where
    it does not answer."""
    try:
        client = connect(tracking_uri)
        from mlflow.artifacts import list_artifacts

        if uri.startswith("models:/"):  # which `list_artifacts` looks for on the server of the environment
            uri = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
        return bool(list_artifacts(artifact_uri=uri, tracking_uri=tracking_uri))
    except Exception as e:  # only a server that answers knows
        return getattr(e, "error_code", None) != "RESOURCE_DOES_NOT_EXIST"


def _open(context: Context, tracking_uri: str, name: str, run_id: str | None) -> MlflowRun:
    client = connect(tracking_uri)
    if run_id is not None:
        return MlflowRun(client, client.get_run(run_id).info.run_id)
    experiment = _experiment(client, tracking_uri, context.experiment or EXPERIMENT)
    tags = {"mlflow.source.name": "tuneport", "mlflow.source.type": "LOCAL", **_commit()}
    return MlflowRun(client, client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def _commit() -> dict[str, str]:
    """The commit of the repository in which the stage runs, where there is one."""
    git = shutil.which("git")
    if git is None:
        return {}
    found = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {} if found.returncode else {"mlflow.source.git.commit": found.stdout.strip()}


def _experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """The id of an experiment, made if it is not there. For SQLite, artifacts lie beside the database file."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    database = _sqlite_file(tracking_uri)
    location = (database.parent / "mlartifacts" / re.sub(r"[^\w.-]+", "_", name)).as_uri() if database else None
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
    except Exception:
        if found := client.get_experiment_by_name(name):  # another process made it just now
            return str(found.experiment_id)
        raise


def _sqlite_file(tracking_uri: str) -> Path | None:
    if not tracking_uri.startswith("sqlite:///"):
        return None
    path = unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(path).resolve() if path not in ("", ":memory:") else None


@contextmanager
def _one_at_a_time(database: Path) -> Iterator[None]:
    """While entered, no other process of ours is: of two that make the tables of one file, MLflow lets one fail."""
    with ExitStack() as stack:
        with suppress(OSError):  # in a folder that is not ours to write to, there are tables already
            lock = stack.enter_context(database.with_name(f".{database.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_sqlite(tracking_uri: str) -> None:
    path = _sqlite_file(tracking_uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA schema_version").fetchone()
        connection.close()
    except (OSError, sqlite3.Error) as e:
        raise UserError(
            f"tracking URI '{tracking_uri}': {path} cannot be used as an SQLite database ({e}). "
            "Set MLFLOW_TRACKING_URI to a file in a folder you may write to."
        ) from None


def _unusable(context: Context, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    run = f" and MLFLOW_RUN_ID '{context.run_id}'" if context.run_id else ""
    return UserError(
        f"tracking URI '{context.tracking_uri}'{run}: cannot be used ({reason(error)}); "
        "expected an MLflow server that answers, such as http://host:5000, or a file, such as "
        "sqlite:////path/mlflow.db. Mend MLFLOW_TRACKING_URI, or start the server."
    )


def _refused(error: Exception) -> bool:
    """Whether the server answered and said no: asking again would not help."""
    passing = (None, "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
    return getattr(error, "error_code", None) not in passing


def reason(error: Exception) -> str:
    """An error as one short line without passwords."""
    text = masked(" ".join((str(error) or type(error).__name__).split()))
    return text if len(text) <= 300 else text[:297] + "..."


def _local_folder(location: str | None) -> Path | None:
    """Where a store keeps a model, if that is a folder of this machine."""
    parts = urlsplit(location or "")
    return Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def _content(folder: Path) -> list[Path]:
    """What a folder holds, apart from the mark of a step that still writes to it."""
    return sorted(path for path in folder.iterdir() if path.name != INCOMPLETE)


def _metrics(values: Mapping[str, float], step: int = 0, model_id: str | None = None) -> list[Metric]:
    """What MLflow takes for metrics of now, of the run and, with an id, of one of its models."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(_key(name), float(value), now, step, model_id=model_id) for name, value in values.items()]


def _key(name: str) -> str:
    """A name in the characters that MLflow allows."""
    return re.sub(r"[^\w.\- :/]", "_", name)
