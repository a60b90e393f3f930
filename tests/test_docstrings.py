"""What a docstring owes its reader."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAYS = ("raise", "refuse")


def functions() -> Iterator[tuple[str, ast.FunctionDef, object]]:
    """Every public function and method of ours: its name, its code, itself."""
    for file in sorted([*(ROOT / "tuneport").rglob("*.py"), *(ROOT / "steps").rglob("*.py")]):
        if file.name == "__main__.py":
            continue
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node, getattr(module, node.name)
            elif isinstance(node, ast.ClassDef):
                cls = getattr(module, node.name)
                methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
                yield from ((f"{name}.{node.name}.{m.name}", m, getattr(cls, m.name)) for m in methods)


def raises_user_error(node: ast.AST) -> bool:
    """Whether the code itself raises one; what it calls is not looked at."""
    raised = [inner.exc for inner in ast.walk(node) if isinstance(inner, ast.Raise) and inner.exc is not None]
    return any("UserError(" in ast.unparse(exception) for exception in raised)


def test_a_public_function_that_raises_user_error_says_so_itself_or_where_it_is_declared() -> None:
    silent, found = [], 0
    for name, node, function in functions():
        if node.name.startswith("_") or not raises_user_error(node):
            continue
        found += 1
        said = inspect.getdoc(function) or ""  # a method without one has its base class's
        overridden = name.endswith((".parse_args", ".resolve_command"))  # click's own, whose errors become ours
        if not overridden and not any(word in said.lower() for word in SAYS):
            silent.append(name)
    assert found > 60
    assert silent == []
