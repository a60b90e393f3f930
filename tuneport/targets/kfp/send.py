"""Send a compiled pipeline to the Kubeflow Pipelines API, and follow its run."""

from __future__ import annotations

import contextlib
import dataclasses as dc
import io
import json
import logging
import tempfile
import time
import typing as t
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuneport.errors import UserError
from tuneport.runner.request import Submission, cron_fields
from tuneport.secrets import masked
from tuneport.targets.kfp.settings import Settings

log = logging.getLogger("tuneport.kfp")

ENDPOINT, TOKEN, COOKIE = "KF_PIPELINES_ENDPOINT", "TUNEPORT_KFP_TOKEN", "TUNEPORT_KFP_COOKIE"  # the first is kfp's
ENDED = {"SUCCEEDED": 0, "FAILED": 1, "SKIPPED": 1, "CANCELED": 1}  # a run's last states, and our exit code for each
POLL_SECONDS = 5.0
PATIENCE = 20  # answers in a row that may fail while a run is followed


@dc.dataclass(frozen=True)
class _Sent:
    """What is sent: a run or a recurring run of a document, and the same as a version of a pipeline if asked."""

    pipeline: str
    text: str
    settings: Settings
    submission: Submission
    when: str  # now, in words

    @property
    def name(self) -> str:
        return self.submission.name or f"{self.pipeline} {self.when}"

    @property
    def experiment(self) -> str:
        return self.submission.experiment or self.settings.experiment or self.pipeline

    @property
    def version(self) -> str:
        return f"{self.pipeline} {self.when}"

    @property
    def cron(self) -> str | None:
        return None if self.submission.schedule is None else cron(self.submission.schedule)


def submit(pipeline: str, text: str, settings: Settings, environment: Mapping[str, str], submission: Submission) -> int:
    """Start a run or a schedule, and with ``wait`` end with the run's result."""
    sent = _Sent(pipeline, text, settings, submission, time.strftime("%Y-%m-%d %H:%M:%S"))
    endpoint = (settings.endpoint or environment.get(ENDPOINT) or "").rstrip("/")
    if submission.dry_run:
        print(masked(json.dumps(request(sent, endpoint), indent=1)))  # noqa: T201
        return 0
    _ = sent.cron  # refused before anything is asked
    _check_reachable(endpoint, settings)
    with _refusals(endpoint):
        client = _client(endpoint, settings, environment)
        kind, id_ = _create(client, sent)
    shown = masked(endpoint) or "the UI"
    url = f"{shown}/#/{kind}/details/{id_}"
    print(f"{'scheduled' if sent.cron else 'started'}: {url}", flush=True)  # noqa: T201
    if not submission.wait:
        return 0
    try:
        return _follow(client, id_, endpoint)
    except KeyboardInterrupt:
        log.warning("no longer followed; the run goes on: %s", url)
        raise


def cron(text: str) -> str:
    """A cron expression as Kubeflow Pipelines reads it, with seconds first: five fields get a 0.

    Raises `UserError` for other than five or six fields.
    """
    fields = cron_fields(text, (5, 6))
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def request(sent: _Sent, endpoint: str) -> dict[str, t.Any]:
    """What starts a run: the experiment that is created where there is none, and the body that is sent."""
    import yaml

    settings = sent.settings
    spec, platform = yaml.safe_load_all(sent.text)
    run: dict[str, t.Any] = {
        "display_name": sent.name,
        "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform},
        "runtime_config": {"parameters": {}},
    }
    if settings.service_account:
        run["service_account"] = settings.service_account
    if sent.cron:
        trigger = {"cron_schedule": {"cron": sent.cron}}
        run |= {"trigger": trigger, "max_concurrency": 1, "mode": "ENABLE", "no_catchup": True}
    found = {"display_name": sent.experiment} | ({"namespace": settings.namespace} if settings.namespace else {})
    return {
        "endpoint": endpoint or None,
        "experiment": found,
        **({"upload": {"pipeline": sent.pipeline, "version": sent.version}} if sent.submission.upload else {}),
        "method": "POST",
        "path": "/apis/v2beta1/recurringruns" if sent.cron else "/apis/v2beta1/runs",
        "body": run,
    }


def _check_reachable(endpoint: str, settings: Settings) -> None:
    """Refuse an address where nobody answers; kfp's own client would try for half a minute."""
    import urllib3

    if not endpoint:
        return
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"platform.kfp.endpoint={endpoint}: not valid; expected a URL, as in https://kubeflow.example/pipeline."
        )
    pool = urllib3.PoolManager(ca_certs=settings.ca_certificate, timeout=10, retries=1)
    try:
        pool.request("GET", f"{endpoint}/apis/v2beta1/healthz", preload_content=False).close()
    except urllib3.exceptions.HTTPError as e:
        raise _unreachable(endpoint, e) from None


def _unreachable(endpoint: str, error: BaseException) -> UserError:
    reason = getattr(error, "reason", None) or error
    return UserError(
        f"Kubeflow Pipelines at {endpoint or 'the default address'} does not answer ({reason}). Set "
        f"platform.kfp.endpoint or {ENDPOINT}, or forward its port: "
        "kubectl port-forward -n kubeflow svc/ml-pipeline 8888 and endpoint http://localhost:8888."
    )


@contextlib.contextmanager
def _refusals(endpoint: str) -> Iterator[None]:
    """Turn what the API or the way to it refuses into one message."""
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as e:
        hint = f" Set {TOKEN}, or {COOKIE}, to what your session has." if e.status in (401, 403) else ""
        raise UserError(f"Kubeflow Pipelines answered {e.status} {e.reason}: {_detail(e.body)}.{hint}") from None
    except (urllib3.exceptions.HTTPError, TimeoutError) as e:
        raise _unreachable(endpoint, e) from None


def _detail(body: t.Any) -> str:
    try:
        return str(json.loads(body).get("error") or json.loads(body).get("message") or body)[:500]
    except (TypeError, ValueError, AttributeError):
        return str(body or "no reason given")[:500].strip()


def _client(endpoint: str, settings: Settings, environment: Mapping[str, str]) -> t.Any:
    import kfp

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _silent():
        warnings.simplefilter("ignore")
        return kfp.Client(
            host=endpoint or None,
            existing_token=environment.get(TOKEN) or None,
            cookies=environment.get(COOKIE) or None,
            ssl_ca_cert=settings.ca_certificate,
            **({"namespace": settings.namespace} if settings.namespace and endpoint else {}),
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the tracebacks that kfp logs of whatever it tries; what is final is raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _create(client: t.Any, sent: _Sent) -> tuple[str, str]:
    """Send it. Returns the part of the UI where it is to be seen, and its id."""
    settings = sent.settings
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        _silent(),
    ):  # it prints links
        path = Path(folder, "pipeline.yaml")
        path.write_text(sent.text, "utf-8")
        if sent.submission.upload:
            _upload(client, path, sent)
        found = client.create_experiment(sent.experiment, namespace=settings.namespace).experiment_id
        how: dict[str, t.Any] = {"params": {}, "service_account": settings.service_account}
        if sent.cron:
            schedule = {"cron_expression": sent.cron, "max_concurrency": 1, "no_catchup": True}
            made = client.create_recurring_run(found, sent.name, pipeline_package_path=str(path), **schedule, **how)
            return "recurringrun", t.cast(str, made.recurring_run_id)
        return "runs", t.cast(str, client.run_pipeline(found, sent.name, str(path), **how).run_id)


def _upload(client: t.Any, path: Path, sent: _Sent) -> None:
    """Keep the document as a version of the pipeline of its name, which is made if it is not there."""
    known = client.get_pipeline_id(sent.pipeline)
    if known is None:
        client.upload_pipeline(str(path), sent.pipeline, namespace=sent.settings.namespace)
    else:
        client.upload_pipeline_version(str(path), sent.version, pipeline_id=known)
    log.info("uploaded: version '%s' of the pipeline %s", sent.version, sent.pipeline)


def _follow(client: t.Any, run_id: str, endpoint: str) -> int:
    """Wait for the end of a run; says each task's state as it changes."""
    import kfp_server_api
    import urllib3

    states: dict[str, str] = {}
    failures = 0
    while True:
        try:
            run = client.get_run(run_id)
            failures = 0
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as e:
            failures += 1
            if failures > PATIENCE or 400 <= getattr(e, "status", 500) < 500:
                raise UserError(
                    f"the run goes on, but can no longer be followed: {_detail(getattr(e, 'body', e))}."
                ) from None
            time.sleep(POLL_SECONDS)
            continue
        for task in _tasks(run):
            if task.state and states.get(task.display_name) != task.state:
                states[task.display_name] = task.state
                log.info("%s: %s", task.display_name, task.state.lower())
        if run.state in ENDED:
            code = ENDED[run.state]
            if code:
                log.error("%s", _why(run))
            else:
                log.info("the run has succeeded")
            return code
        time.sleep(POLL_SECONDS)


def _tasks(run: t.Any) -> list[t.Any]:
    details = run.run_details.task_details if run.run_details else None
    return [task for task in details or [] if task.display_name]


def _why(run: t.Any) -> str:
    lines = [f"the run has ended: {run.state.lower()}"]
    if run.error and run.error.message:
        lines.append(run.error.message)
    for task in _tasks(run):
        if task.state == "FAILED":
            reason = task.error.message if task.error and task.error.message else "see its log"
            lines.append(f"{task.display_name} failed: {reason}")
    return "\n  ".join(lines)
