"""Compiled pipelines are run by kfp's own local orchestrator."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.kfp_local import run_document


@pytest.fixture
def run_locally() -> Callable[..., Any]:
    """Runs a compiled pipeline below a folder, with containers as `kfp.local.DockerRunner` is told, and returns it."""
    return run_document
