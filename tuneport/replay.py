"""Repeat one stage: its saved values as a pipeline of that stage alone, which a target of this machine runs."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tuneport.artifacts import SELF, Artifact, self_digest
from tuneport.config import from_overrides
from tuneport.errors import UserError
from tuneport.graph import Node, Pipeline, Ref
from tuneport.json_yaml import read_json
from tuneport.runner.saved_inputs import file_of
from tuneport.secrets import MASK
from tuneport.step import Port, Step, parse_values

Values = dict[str, t.Any]


def read(source: Path, stage: str | None) -> tuple[str, Values]:
    """A stage's name and its values: of ``RUN/STAGE``, of a saved file, or of an executor input of Kubeflow Pipelines,
    which does not know its stage.

    Raises `UserError` for what is none of these.
    """
    path = source if source.is_file() else file_of(source.parent / "logs" / f"{source.name}.log")
    try:
        saved = read_json(path)
    except OSError as e:
        raise UserError(
            f"{source}: no inputs of a stage are saved there ({path}: {e.strerror}). Expected RUN/STAGE, as in "
            "runs/text_classification/latest/finetune, a file STAGE.inputs.json, or an executor input of Kubeflow "
            "Pipelines."
        ) from None
    except ValueError as e:
        raise UserError(f"{path}: is not valid JSON ({e}).") from None
    if isinstance(saved, dict) and isinstance(saved.get("outputs"), dict) and "outputFile" in saved["outputs"]:
        if stage is None:
            raise UserError(f"{path}: is an executor input of Kubeflow Pipelines, which names no stage. Add --stage.")
        return stage, _of_executor_input(saved)
    if isinstance(saved, dict) and saved.get(SELF, self_digest(saved)) != self_digest(saved):
        raise UserError(f"{path}: was altered after it was written. Give other values as NAME=VALUE, or run it again.")
    try:
        return str(saved["stage"]), dict(saved["values"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: holds no inputs of a stage. Expected a file that a stage's run has written."
        ) from None


def _of_executor_input(task: Mapping[str, t.Any]) -> Values:
    from tuneport.targets.kfp.executor import LOCATION, local_path

    inputs = task.get("inputs", {})
    values: Values = {
        name.removesuffix(LOCATION): value for name, value in inputs.get("parameterValues", {}).items() if value != ""
    }
    for name, found in inputs.get("artifacts", {}).items():
        if artifacts := found.get("artifacts"):
            values[name] = str(local_path(artifacts[0]))
    return values


def pipeline(
    name: str, saved: Values, overrides: Sequence[str], load: Callable[..., type[Step]], folder: Path
) -> Pipeline:
    """A pipeline of this one stage, with its saved values and those given again.

    Raises one `UserError` that lists what is unknown, not valid, masked, or not on this machine.
    """
    task = dict(text.split("=", 1) for text in overrides if "=" in text).get("task_name", saved.get("task_name"))
    step = load(name, task)
    ports = {p.name: p for p in step.ports().values() if p.kind in ("input", "param")}
    fixed = {"task_name": task} if "task_name" in step.fixed else {}
    empty = Pipeline(name=name, doc=step.description(), nodes=(), params=ports, outputs={})
    given = from_overrides(empty, [text for text in overrides if text.partition("=")[0] not in fixed], folder)
    kept = {key: value for key, value in saved.items() if key not in given and key not in fixed and value is not None}
    if masked := [key for key, value in kept.items() if isinstance(value, str) and MASK in value]:
        raise UserError(
            f"{masked[0]}={kept[masked[0]]}: its secret was not saved. Give the whole value: {masked[0]}=…."
        )
    values = parse_values(ports, {key: _whole(ports, key, value) for key, value in kept.items()}, name) | given
    for key, value in values.items():
        if isinstance(value, Artifact) and value.path.is_absolute() and not _exists(value.path):
            raise UserError(f"{key}={value.path}: is not on this machine. Fetch it, and name it: {key}=PATH.")
    outputs = {p.name: Ref(name, p.name) for p in step.ports().values() if p.kind == "output"}
    return Pipeline(
        name=name,
        doc=step.description(),
        nodes=(Node(name=name, step=step, values={**values, **fixed}),),
        params={},
        outputs=outputs,
    )


def _whole(ports: Mapping[str, Port], key: str, value: t.Any) -> t.Any:
    """A whole number, which JSON's writers may have made 3.0."""
    whole = key in ports and ports[key].type is int and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _exists(path: Path) -> bool:
    return path.exists() or any(character in str(path) for character in "*?[")


def fresh(folder: Path) -> Path:
    """The first of a folder's numbered names that is free: ``finetune-1``, ``finetune-2``, …"""
    number = 1
    while folder.with_name(f"{folder.name}-{number}").exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")
