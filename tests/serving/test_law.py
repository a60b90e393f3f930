"""The law of `tuneport/serving`: each class is exported as text, so it stands alone."""

import ast
import builtins
import importlib
import pkgutil
from pathlib import Path

import pytest

from tuneport import serving, tasks
from tuneport.export.mlflow_model import exported_classes

MODULES = sorted(module.name for module in pkgutil.iter_modules(serving.__path__))
CLASSES = {
    node.name
    for name in MODULES
    for node in ast.parse(Path(str(serving.__path__[0]), f"{name}.py").read_text("utf-8")).body
    if isinstance(node, ast.ClassDef)
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_holds_classes_and_imports_only_typing_and_other_exported_classes(name: str) -> None:
    source = Path(str(serving.__path__[0]), f"{name}.py").read_text("utf-8")
    assert broken_by(source) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import json\nclass A:\n    def f(self):\n        return json.dumps(1)\n", "imports json"),
        ("LIMIT = 3\nclass A:\n    def f(self):\n        return LIMIT\n", "Assign at module level"),
        ("class A:\n    def f(self):\n        return len(missing)\n", "A uses missing"),
        ("from tuneport.errors import UserError\nclass A:\n    pass\n", "imports tuneport.errors"),
    ],
)
def test_what_breaks_the_law_is_found(source: str, problem: str) -> None:
    assert problem in broken_by(source)


def broken_by(source: str) -> list[str]:
    """What of a module's source breaks the law."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            found += [f"imports {alias.name}" for alias in node.names if alias.name != "typing"]
        elif isinstance(node, ast.ImportFrom):
            if node.module != "__future__" and not str(node.module).startswith("tuneport.serving."):
                found.append(f"imports {node.module}")
        elif isinstance(node, ast.ClassDef):
            found += [f"{node.name} uses {name}" for name in sorted(free_names(node))]
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            found.append(f"{type(node).__name__} at module level")
    return found


def free_names(node: ast.ClassDef) -> set[str]:
    """The names that a class uses and neither makes nor imports itself; annotations are not evaluated."""
    bare = ast.parse(ast.unparse(node))
    for inner in ast.walk(bare):
        if isinstance(inner, ast.arg):
            inner.annotation = None
        elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner.returns = None
        elif isinstance(inner, ast.AnnAssign):
            inner.annotation = ast.Constant(None)
    names = [inner for inner in ast.walk(bare) if isinstance(inner, ast.Name)]
    made = {inner.id for inner in names if isinstance(inner.ctx, ast.Store)}
    made |= {inner.arg for inner in ast.walk(bare) if isinstance(inner, ast.arg)}
    made |= {inner.name for inner in ast.walk(bare) if isinstance(inner, (ast.FunctionDef, ast.ClassDef))}
    made |= {str(inner.name) for inner in ast.walk(bare) if isinstance(inner, ast.ExceptHandler)}
    for inner in ast.walk(bare):
        if isinstance(inner, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in inner.names}
    used = {inner.id for inner in names if isinstance(inner.ctx, ast.Load)}
    return used - made - set(dir(builtins)) - CLASSES - {"t"}


@pytest.mark.parametrize("task", tasks.names())
def test_what_a_task_exports_is_its_predictor_and_every_class_that_needs(task: str) -> None:
    predictor = tasks.load(task).predictor
    classes = exported_classes(predictor)
    assert classes[-1] is predictor and len(classes) == len(set(classes))
    for number, cls in enumerate(classes):
        module = importlib.import_module(cls.__module__)
        tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        (node,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
        needed = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} & (CLASSES - {cls.__name__})
        assert needed <= {before.__name__ for before in classes[:number]}
