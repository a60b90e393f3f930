"""The private names of libraries that our code overrides or calls, collected from the code.

`python -m tests.private_names` writes private_names.json again, with each name's parameters and the places that rely on
it: look at what git says has changed.
"""

import ast
import importlib
import inspect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).with_suffix(".json")
PACKAGES = ("tuneport", "steps", "pipelines")
# Where a private name that our code calls may come from, the likeliest first.
OWNERS = (
    "transformers.Trainer",
    "transformers.PreTrainedModel",
    "transformers.PreTrainedConfig",
    "transformers.AutoModelForCausalLM",
    "accelerate.Accelerator",
    "peft.PeftModel",
    "sacrebleu.metrics.BLEU",
    "torch",
    "torch.optim.lr_scheduler.LRScheduler",
    "azure.ai.ml.entities.PipelineJob",
    "mlflow.MlflowClient",
    "kfp.Client",
    "os",
)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def sources() -> dict[str, ast.Module]:
    """Every module of ours, by its name."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.name != "__main__.py")
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text())
        for file in sorted(files)
    }


def collected() -> dict[str, list[str]]:
    """The private names, as owner.name, with the places that rely on each."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, place in (*overridden(), *called()):
        found[name].append(place)
    return {name: sorted(set(places)) for name, places in sorted(found.items())}


def overridden() -> Iterator[tuple[str, str]]:
    """Private names of a library's class that a class of ours defines again."""
    for module in map(importlib.import_module, sources()):
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            foreign = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in PACKAGES]
            for name in (n for n, value in vars(cls).items() if is_private(n) and inspect.isfunction(value)):
                owner = next((base for base in foreign if name in vars(base)), None)
                if owner is not None:
                    yield f"{owner.__module__}.{owner.__qualname__}.{name}", f"{module.__name__}.{cls.__name__}"


def called() -> Iterator[tuple[str, str]]:
    """Private attributes that nothing of ours defines, so that they are a library's."""
    trees = sources()
    own = {name for tree in trees.values() for name in defined(tree)}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
                yield f"{owner_of(node.attr)}.{node.attr}", module
            elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] not in (
                *PACKAGES,
                "__future__",
            ):
                yield from ((f"{node.module}.{alias.name}", module) for alias in node.names if is_private(alias.name))


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines: functions, classes, variables and attributes of self."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def owner_of(name: str) -> str:
    """The library's class or module that has the name; "unknown" where none of `OWNERS` does."""
    return next((owner for owner in OWNERS if parameters_of(f"{owner}.{name}") is not None), "unknown")


def parameters_of(dotted: str) -> str | None:
    """The parameters of a private name; "attribute" for what is not called, None where there is no such name.

    An attribute may be one that the class's methods set.
    """
    owner_name, _, name = dotted.rpartition(".")
    try:
        owner = resolved(owner_name)
    except (ImportError, AttributeError):
        return None
    if hasattr(owner, name):
        value = inspect.getattr_static(owner, name)
        value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if not callable(value) or inspect.isclass(value):
            return "attribute"
        try:
            return ", ".join(
                f"{'*' * max(0, p.kind - 1) if p.kind in (2, 4) else ''}{p.name}" for p in parameters(value)
            )
        except ValueError:  # a built-in function
            return "function"
    classes = inspect.getmro(owner) if inspect.isclass(owner) else ()
    bodies = (inspect.getsource(cls) for cls in classes if cls.__module__ != "builtins")
    return "attribute" if any(f"self.{name} = " in body or f"self.{name}: " in body for body in bodies) else None


def parameters(value: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(value).parameters.values())


def resolved(dotted: str) -> Any:
    """A module, or what a module holds, by its dotted name."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise ImportError(dotted)


def problems(recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What of the recorded names is gone or has other parameters, with the places that rely on it."""
    found = []
    for name, entry in recorded.items():
        now = parameters_of(name)
        if now is None:
            found.append(f"{name} is gone; {', '.join(entry['places'])} rely on it")
        elif now != entry["parameters"]:
            places = ", ".join(entry["places"])
            found.append(f"{name} takes ({now}), recorded is ({entry['parameters']}); {places} rely on it")
    return found


def main() -> None:
    entries = {name: {"parameters": parameters_of(name), "places": places} for name, places in collected().items()}
    RECORDED.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    print(f"wrote {RECORDED}: {len(entries)} names")


if __name__ == "__main__":
    main()
