"""`import tuneport`: what it offers, and that a name costs nothing until it is asked for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tuneport

ROOT = Path(__file__).parents[1]
STUB = (ROOT / "tuneport" / "__init__.pyi").read_text("utf-8")
NAMES = re.findall(r"^from (\S+) import (\w+) as \2$", STUB, re.MULTILINE)


def modules_after(statement: str) -> set[str]:
    """What is imported after a statement in a new process."""
    script = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_alone_imports_none_of_its_modules_and_no_library() -> None:
    assert modules_after("import tuneport") - modules_after("import importlib") == {"tuneport"}


def test_a_task_a_target_and_a_step_need_no_large_library() -> None:
    loaded = modules_after("from tuneport import Pipeline, Step, Target, Task, UserError, execute, param")
    heavy = ("datasets", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "sklearn", "torch", "transformers", "yaml")
    assert "tuneport.step" in loaded
    assert loaded.isdisjoint(heavy)


def test_the_names_are_those_that_type_checkers_see() -> None:
    assert NAMES
    assert set(tuneport._HOME.items()) == {(name, module) for module, name in NAMES}
    assert {name for _, name in NAMES} | {"__version__"} <= set(dir(tuneport))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_is_what_its_module_defines(module: str, name: str) -> None:
    assert getattr(tuneport, name) is getattr(__import__(module, fromlist=[name]), name)


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'tuneport' has no attribute 'Stp'"):
        tuneport.Stp  # noqa: B018
