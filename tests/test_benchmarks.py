"""Benchmarks run by hand, so that nothing else would notice when what they take from the product is gone."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*.py"), *(ROOT / "examples").rglob("*.py")]
)
OURS = ("tuneport", "steps", "pipelines")


def taken(script: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import of ours, wherever it stands."""
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] in OURS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_what_a_script_imports_of_ours_is_there(script: Path) -> None:
    for module, name in taken(script):
        found = importlib.import_module(module)
        if name and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")  # says which is not there


def test_the_benchmarks_of_training_import_what_they_measure() -> None:
    found = {module for script in SCRIPTS for module, _ in taken(script)}
    assert {"tuneport.training.train", "tuneport.training.sampler", "tuneport.data.encode_rows"} <= found
