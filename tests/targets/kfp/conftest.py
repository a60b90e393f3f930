"""Compiled pipelines are run by kfp's own local orchestrator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def run_locally() -> Callable[..., Any]:
    """Runs a compiled pipeline below a folder, with containers as `kfp.local.DockerRunner` is told, and returns it."""

    def run(text: str, root: Path, **container: Any) -> Any:
        from kfp import components, local

        local.init(local.DockerRunner(**container), pipeline_root=str(root))
        component = components.load_component_from_text(text)
        parameters = yaml.safe_load(text.split("\n---\n", maxsplit=1)[0])["root"]["inputDefinitions"]["parameters"]
        return component(**{n: p["defaultValue"] for n, p in parameters.items() if p["parameterType"] == "STRING"})

    return run
