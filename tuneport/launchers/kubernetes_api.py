"""Talk to the Kubernetes API: requests that outlast its outages, lists, watches and logs, as plain JSON.

The kubernetes package finds the cluster and logs in; objects stay what the API sends. Which answers are final is
decided here, once: an API server that restarts says 403 for some seconds, until it knows its own rules again.
"""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import os
import socket
import threading
import time
import typing as t
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path

from urllib3.exceptions import HTTPError

from tuneport.errors import UserError
from tuneport.launchers.job import Manifest

log = logging.getLogger("tuneport.launch")

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
TRANSIENT = (429, 500, 502, 503, 504)
LONGEST_WAIT = 15.0  # seconds between two attempts
PENDING_SECONDS = 1800.0
CONNECTIONS = 256  # kept at once: two watches, and a log for each machine
Query = Mapping[str, str | int | bool]


@dc.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the launcher waits for what, in seconds."""

    pending: float = PENDING_SECONDS  # until the job's pods run; time in a queue does not count
    explain: float = 60.0  # of waiting, until what hinders the job is looked up and said; and between two such looks
    watch: float = 300.0  # until a watch is asked for again
    poll: float = 30.0  # between two looks where watching is refused
    deletion: float = 120.0  # for a job that is to make room for a new one
    outage: float = 150.0  # of the API
    refusal: float = 60.0  # until a 401 or 403 is taken for final, once the job is there
    farewell: float = 15.0  # for what is still to be asked of the API after SIGTERM; a pod is killed after 30
    backoff: float = 0.5  # before the first repetition of a request; it doubles
    log_retry: float = 2.0
    log_silence: float = 1800.0  # until a log that says nothing is asked for again
    last_lines: float = 10.0  # for logs to come to their end after the job's


class Refused(UserError):
    """An answer that no repetition mends; ``status``: HTTP's."""

    def __init__(self, what: str, status: int, reason: str, detail: str) -> None:
        super().__init__(f"cannot {what}: {status} {reason}: {detail or 'no reason given'}. {_hint(status, detail)}")
        self.status, self.detail = status, detail


class Unreachable(UserError):
    """No answer, for as long as it was waited for."""


def _hint(status: int, detail: str) -> str:
    if status == 401:
        return "Its token is not accepted: it may have expired, or be one of another cluster."
    if status == 403 and (not detail or "is forbidden: User" in detail):
        return "Give the run's service account the right to (docs/kubeflow.md)."
    if status == 404:
        return "The cluster does not know this kind of job: install Kubeflow's operator for it."
    if status in TRANSIENT:
        return "The API server does not recover; try again later: a job that runs goes on."
    return "Mend what it names."


class Api:
    """The API of one cluster, in one namespace.

    Raises `UserError` where there is none to be found.
    """

    def __init__(self, namespace: str | None = None, patience: Patience | None = None) -> None:
        from kubernetes import client

        self.patience = patience or Patience()
        self.settled = False  # once the job is there: from then on a refusal has to last
        self._settings = client.Configuration()
        self._log_in()
        self._settings.connection_pool_maxsize = CONNECTIONS
        self._client = client.ApiClient(self._settings)
        self._pool = self._client.rest_client.pool_manager
        self._pool.connection_pool_kw["socket_options"] = _kept_alive()
        self.namespace = namespace or _namespace()

    def _log_in(self) -> None:
        from kubernetes import config

        try:
            config.load_incluster_config(client_configuration=self._settings)
        except config.ConfigException:
            try:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=self._settings)
            except (config.ConfigException, OSError) as e:
                raise UserError(
                    f"no Kubernetes API: this is no pod of a cluster, and there is no kubeconfig ({e})."
                ) from None

    # -- requests ------------------------------------------------------------------------------------------------------

    def ask(
        self,
        what: str,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        body: Manifest | None = None,
        seconds: float | None = None,
        once: bool = False,
        ended: threading.Event | None = None,
    ) -> Manifest:
        """The answer to one request, repeated while that may help, for ``seconds`` (default: `Patience.outage`).

        ``what``: the request in a message's words. ``once``: do not repeat. ``ended``: do not repeat once it is set.
        Raises `Refused` and `Unreachable`.
        """
        ended = ended or threading.Event()
        limit = self.patience.outage if seconds is None else seconds
        began, wait = time.monotonic(), self.patience.backoff
        while True:
            try:
                with self._open(what, method, path, query=query or {}, body=body, silence=ANSWER_SECONDS) as answer:
                    return t.cast(Manifest, json.loads(answer.data))
            except Refused as e:
                if once or not self._may_pass(e, time.monotonic() - began):
                    raise
                error: UserError = e
            except HTTPError as e:
                error = Unreachable(
                    f"the Kubernetes API cannot be reached: {_reason(e)}. Try again later: a job that runs goes on."
                )
                if once:
                    raise error from None
            if time.monotonic() - began + wait > limit:
                raise error from None
            log.debug("%s; again in %.1f s", error, wait)
            if ended.wait(wait):
                raise error from None
            wait = min(wait * 2, LONGEST_WAIT)

    def _may_pass(self, refusal: Refused, seconds: float) -> bool:
        if refusal.status in TRANSIENT:
            return True
        return refusal.status in (401, 403) and self.settled and seconds < self.patience.refusal

    def _open(self, what: str, method: str, path: str, *, query: Query, body: Manifest | None, silence: float) -> t.Any:
        """The answer to one request, whose body is still to be read; a token that is not accepted is read again once.

        Raises `Refused`, and urllib3's `HTTPError`.
        """
        try:
            return self._open_once(what, method, path, query=query, body=body, silence=silence)
        except Refused as e:
            if e.status != 401:
                raise
            try:
                self._log_in()
            except UserError:  # its file is just being written
                raise e from None
        return self._open_once(what, method, path, query=query, body=body, silence=silence)

    def _open_once(
        self, what: str, method: str, path: str, *, query: Query, body: Manifest | None, silence: float
    ) -> t.Any:
        from urllib3.util import Timeout

        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        if method in ("POST", "PATCH"):
            query = {**query, "fieldValidation": "Strict"}  # else what this version does not know is dropped silently
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        text = "&".join(f"{name}={_quoted(value)}" for name, value in query.items())
        answer = self._pool.request(
            method,
            f"{self._settings.host}{path}{'?' if text else ''}{text}",
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=Timeout(connect=CONNECT_SECONDS, read=silence),
            retries=False,
            preload_content=False,
        )
        if 200 <= answer.status < 300:
            return answer
        with answer:
            reason = answer.reason or (HTTPStatus(answer.status).phrase if answer.status in list(HTTPStatus) else "")
            raise Refused(what, answer.status, reason, _detail(answer.data))

    def lines(self, what: str, path: str, query: Query, silence: float) -> Lines:
        """The lines of an answer as they come; ``silence``: seconds without a byte after which it breaks off.

        Raises `Refused`, and urllib3's `HTTPError` here and while it is read.
        """
        return Lines(self._open(what, "GET", path, query=query, body=None, silence=silence))

    # -- objects -------------------------------------------------------------------------------------------------------

    def path(self, group: str, version: str, plural: str, name: str = "", part: str = "") -> str:
        """The path of the objects of a kind, of one of them, or of a part of it; the core's group is empty."""
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        return "/".join(filter(None, (f"{root}/namespaces/{self.namespace}/{plural}", name, part)))

    def found(self, what: str, path: str, query: Query | None = None) -> Manifest | None:
        """What is there, asked for once; None where it is missing, unknown to the cluster, or not to be seen."""
        try:
            return self.ask(what, "GET", path, query, once=True)
        except (Refused, Unreachable) as e:
            log.debug("%s", e)
            return None

    def owner(self, pod: str | None) -> Manifest | None:
        """What owns a pod, the workflow of its run, as an owner reference: the job goes when that goes."""
        if not pod:
            return None
        try:
            own = self.ask(f"read pod {pod}", "GET", self.path("", "v1", "pods", pod))
        except Refused as e:
            log.warning("the job has no owner, as pod %s cannot be read (%s)", pod, e.detail or e.status)
            return None
        references = own["metadata"].get("ownerReferences") or []
        return {key: references[0][key] for key in ("apiVersion", "kind", "name", "uid")} if references else None


class Lines:
    """The lines of an answer that is still being sent; another thread may cut it off."""

    def __init__(self, answer: t.Any) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with self._answer as answer:
            rest = b""
            for block in answer.stream(amt=1 << 16, decode_content=False):
                *whole, rest = (rest + block).split(b"\n")
                yield from whole
            if rest:
                yield rest

    def cut(self) -> None:
        """End it for the thread that reads it."""
        try:
            self._answer.shutdown()
        except (AttributeError, OSError, ValueError) as e:  # it has ended
            log.debug("cut: %s", e)


def _kept_alive() -> list[tuple[int, int, int | bytes]]:
    """Socket options by which a peer that is gone without a word is noticed after two minutes, however quiet it was."""
    from urllib3.connection import HTTPConnection

    found = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            found.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return found


def _quoted(value: str | int | bool) -> str:
    from urllib.parse import quote

    return str(value).lower() if isinstance(value, bool) else quote(str(value), safe=",=:")


def _detail(body: bytes) -> str:
    """What a refusal says: the `message` of a Status, or what else was sent."""
    try:
        return str(json.loads(body)["message"]).strip().rstrip(".")
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()[:500]


def _reason(error: HTTPError) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).rpartition(">: ")[2] or type(cause).__name__


def _namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text("utf-8").strip()
    except OSError:
        from kubernetes import config

        context = config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))[1]
        return t.cast(str, context["context"].get("namespace", "default"))
