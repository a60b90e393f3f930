"""An S3-compatible store for tests: moto's server in a process of its own, and a proxy that cuts connections."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import pytest

from tests.launchers.proxy import Proxy

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEKEY",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-shown-nowhere",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def moto_server() -> Iterator[str]:
    """A server's URL; it ends with the block."""
    command = [sys.executable, "-u", "-m", "moto.server", "--host=127.0.0.1", "--port=0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{_port(server, log)}"
        finally:
            server.kill()
            server.wait()


def _port(server: subprocess.Popen[bytes], log: TextIO, seconds: float = 120) -> int:
    """The port that a server has chosen, once it says so."""
    until = time.monotonic() + seconds
    while True:
        said = os.pread(log.fileno(), 1 << 16, 0).decode()
        if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", said):
            return int(found[1])
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"moto's server does not come up: {said}")
        time.sleep(0.05)


def client(url: str) -> Any:
    """boto3's client of a server, apart from what reads it in tests."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


@contextmanager
def bucket(name: str) -> Iterator[str]:
    """The URL of a server that has a bucket of this name."""
    with moto_server() as url:
        client(url).create_bucket(Bucket=name)
        yield url


@contextmanager
def reached(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While entered, addresses with s3:// lead to a server."""
    import s3fs

    for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


class CuttingProxy:
    """Hands bytes on between a client and a server; ``cut_at``: after so many bytes from the server, in all that went
    before, the connection is reset."""

    def __init__(self, url: str, cuts: int, span: int, seed: int = 1) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.cut_at = sorted(random.Random(seed).sample(range(1, span), cuts))
        self.cut = 0
        self.sent = 0
        self.lock = threading.Lock()
        self.open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def close(self) -> None:
        """Take no more connections, and end those that there are."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in self.open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.server)
                self.open += [near, far]
                threading.Thread(target=self._up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while block := near.recv(65536):
                far.sendall(block)
        with suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while block := far.recv(65536):
                with self.lock:
                    left = self.cut_at[self.cut] - self.sent if self.cut < len(self.cut_at) else len(block) + 1
                    block, cut = (block[: max(0, left)], True) if left <= len(block) else (block, False)
                    self.sent += len(block)
                    self.cut += cut
                near.sendall(block)
                if cut:
                    break
        for end in (near, far):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class CountingProxy(Proxy):
    """Hands bytes on between a client and a server, and counts them; `stop` and `start` take it away for a while."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.up = self.down = 0
        super().__init__(host, int(port))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def passed(self, source: socket.socket, count: int) -> None:
        if source.getpeername()[1] == self.target[1]:
            self.down += count
        else:
            self.up += count
