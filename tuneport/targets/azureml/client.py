"""Send a compiled pipeline to a workspace, or show what would be sent; Azure's libraries are imported only here."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import typing as t
from collections.abc import Iterator
from pathlib import Path

from tuneport.errors import UserError
from tuneport.runner.request import cron_fields
from tuneport.secrets import masked
from tuneport.targets.azureml.documents import Document
from tuneport.targets.azureml.settings import AzureMLSettings

if t.TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Component, JobSchedule, PipelineJob

EXIT_FAILED = 1


def submit(document: Document, write: t.Callable[[Document, Path], None]) -> int:
    """Create the pipeline job and print its address; with ``wait``, follow it and return 1 unless it completes.

    With ``dry_run``, print the request and send nothing. Raises `UserError` where Azure's libraries, the workspace or
    a login are missing, and with Azure ML's own words where it refuses.
    """
    asked = document.submission
    if not asked.dry_run:
        _check_workspace(document.settings)
    _require_libraries()
    with tempfile.TemporaryDirectory() as folder:
        write(document, Path(folder) / "job")
        job = _load(Path(folder) / "job" / "job.yaml")
        job.display_name = asked.name or job.display_name
        job.experiment_name = asked.experiment or job.experiment_name
        schedule = None if asked.schedule is None else _schedule(document, job)
        if asked.dry_run:
            _print(json.dumps((schedule or job)._to_rest_object().as_dict(), indent=1, default=str))
            return 0
        with _explained():
            client = _connect(document.settings)
            if asked.upload:
                kept = client.components.create_or_update(_component(Path(folder) / "job"))
                _print(f"uploaded: version {kept.version} of the component {kept.name}")
            if schedule is not None:
                made = client.schedules.begin_create_or_update(schedule).result()
                _print(f"scheduled: {made.name}")
                return 0
            created = client.jobs.create_or_update(job)
    _print(f"{created.name}: {created.studio_url}")
    return _follow(client, str(created.name)) if asked.wait else 0


def _schedule(document: Document, job: PipelineJob) -> JobSchedule:
    """The job at the times of a cron expression, under the name that was given or the pipeline's.

    Raises `UserError` for an expression that Azure ML does not read.
    """
    from azure.ai.ml.entities import CronTrigger, JobSchedule

    expression = " ".join(cron_fields(str(document.submission.schedule), (5,)))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", document.submission.name or document.pipeline)
    return JobSchedule(name=name, trigger=CronTrigger(expression=expression), create_job=job)


def _component(folder: Path) -> Component:
    """The pipeline as a component; Azure ML gives it the next version."""
    from azure.ai.ml import load_component

    found = t.cast("Component", load_component(folder / "pipeline.yaml"))
    found.version = None
    return found


def _require_libraries() -> None:
    try:
        import azure.ai.ml
        import azure.identity  # noqa: F401
    except ImportError as e:
        raise UserError(
            f"to submit to Azure ML, {e.name} is needed and not installed: pip install 'tuneport[azureml]'. "
            "Compiling needs nothing of it: tuneport compile … --target azureml -o DIR."
        ) from None


def _load(path: Path) -> PipelineJob:
    from azure.ai.ml import load_job

    for (
        name,
        logger,
    ) in logging.root.manager.loggerDict.items():  # says of much that it is experimental, in many loggers
        if name.startswith("azure") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.ERROR)
    return t.cast("PipelineJob", load_job(path))


def _check_workspace(settings: AzureMLSettings) -> None:
    missing = [name for name in ("subscription", "resource_group", "workspace") if getattr(settings, name) is None]
    if missing:
        raise UserError(
            f"the workspace is not named: expected {', '.join(missing)} in the configuration, under platform: azureml."
        )


def _connect(settings: AzureMLSettings) -> MLClient:
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    return MLClient(DefaultAzureCredential(), settings.subscription, settings.resource_group, settings.workspace)


def _follow(client: MLClient, name: str) -> int:
    from azure.ai.ml.exceptions import JobException

    with _explained():
        try:
            client.jobs.stream(name)
        except JobException as e:
            _print(str(e))
        status = client.jobs.get(name).status
    _print(f"{name}: {status}")
    return 0 if status == "Completed" else EXIT_FAILED


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Azure's refusals as the user's: no login, no such workspace, an invalid request."""
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        yield
    except ClientAuthenticationError as e:
        raise UserError(f"no login to Azure: {_first(e)} Log in with: az login") from e
    except (AzureError, MlException) as e:
        raise UserError(f"Azure ML refuses: {_first(e)} Check platform: azureml: in the configuration.") from e


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


def _print(text: str) -> None:
    print(masked(text), flush=True)  # noqa: T201
