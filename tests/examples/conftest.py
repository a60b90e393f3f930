"""The examples' scripts as modules: they are no package, and each folder has a `fetch.py` of its own."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a script by its path under `examples/`, seeing what it would see if it were run."""

    def load(name: str) -> ModuleType:
        path = EXAMPLES / name
        monkeypatch.setattr(sys, "path", [str(path.parent), str(EXAMPLES), *sys.path])
        spec = importlib.util.spec_from_file_location(f"example_{path.parent.name}_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load
