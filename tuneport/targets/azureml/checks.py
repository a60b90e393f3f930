"""What Azure ML's own validation misses, or reports only after minutes: names, paths and URIs, resources."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuneport.address import EXTRAS
from tuneport.artifacts import Artifact
from tuneport.errors import UserError, did_you_mean
from tuneport.graph import Node, Pipeline
from tuneport.step import Port, Resource, Step, show
from tuneport.targets.azureml.documents import artifact_type, inputs_of, is_read_by_stage, is_uri, registered, stages
from tuneport.targets.azureml.settings import AzureMLSettings

ASSET = re.compile(r"azureml:[A-Za-z0-9][\w.-]{0,254}(:[\w.-]+|@[\w.-]+)")
LONG = re.compile(r"azureml://[\w./@%~+=&?, -]+")
STORAGE = re.compile(r"(https|wasbs|abfss)://[^/\s]+/\S+")
COLLECTIONS = {
    **dict.fromkeys(("custom_model", "mlflow_model"), "models"),
    **dict.fromkeys(("uri_file", "uri_folder", "mltable"), "data"),
}
RESOURCES: dict[Resource, tuple[str, str]] = {
    "compute": (
        r"(?=.{2,32}$)[A-Za-z](-?[A-Za-z0-9])*",
        "serverless, or the name of a compute: 2 to 32 letters, digits and hyphens, a letter first, as in gpu-cluster",
    ),
    "instance_type": (r"[A-Za-z][\w.-]{0,79}", "the name of an instance type, as in Standard_NC24rs_v3"),
    "shm_size": (r"[1-9]\d*[bkmgBKMG]", "a whole number with b, k, m or g after it, as in 5g"),
}


def check(
    pipeline: Pipeline, values: Mapping[str, t.Any], steps: Mapping[str, Step], settings: AzureMLSettings
) -> None:
    """Raise one `UserError` that lists what Azure ML or a stage would refuse; ``steps``: by stage, with its values."""
    nodes = stages(pipeline, values)
    read = inputs_of(nodes)
    problems = [
        *_names(pipeline, nodes, settings),
        *_registration(pipeline, nodes, values),
        *_conditions(pipeline, values),
        *(p for n in pipeline.params if n in read for p in _value(pipeline.params[n], values[n])),
        *(p for step in steps.values() for p in _step(step)),
    ]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))  # two steps may refuse the same value


def _step(step: Step) -> Iterator[str]:
    """What a step refuses; it looks at files only where all of them lie here, to be uploaded."""
    inputs = [getattr(step, port.name) for port in step.ports().values() if port.kind == "input"]
    try:
        step.check()
        if not any(isinstance(artifact, Artifact) and is_uri(artifact) for artifact in inputs):
            step.check_files()
    except UserError as e:
        yield from str(e).splitlines()


def _names(pipeline: Pipeline, nodes: tuple[Node, ...], settings: AzureMLSettings) -> Iterator[str]:
    for name in (pipeline.name, *(node.name for node in nodes)):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield (
                f"'{name}': is not a name for a component of Azure ML; expected lower-case letters, digits and "
                "underscores, a letter first."
            )
    stages = [node.name for node in nodes]
    for name in settings.stages:
        if name not in stages:
            yield (
                f"platform.azureml.stages.{name}: no such stage runs on Azure ML; there are: {', '.join(stages)}."
                f"{did_you_mean(name, stages)}"
            )


def _registration(pipeline: Pipeline, nodes: tuple[Node, ...], values: Mapping[str, t.Any]) -> Iterator[str]:
    for spec in registered(pipeline, values).values():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,254}", spec["name"]):
            yield (
                f"registered_model_name={spec['name']!r}: is not a name for a model of Azure ML; expected letters, "
                "digits, '-', '_' and '.', a letter or digit first, at most 255 of them."
            )
    read = inputs_of(nodes)
    for name, port in pipeline.params.items():
        if port.kind == "resource" and name not in read and values[name] != port.default:
            yield (
                f"{name}={show(values[name])}: this stage has no machine on Azure ML, which registers models itself. "
                "Leave it out."
            )


def _conditions(pipeline: Pipeline, values: Mapping[str, t.Any]) -> Iterator[str]:
    """What the step that does not run there would do beside registering under a name."""
    for node in pipeline.active(values):
        if node.step.registers is None:
            continue
        for name, port in node.step.ports().items():
            if port.kind == "param" and name != node.step.registers[1] and values[name] != port.default:
                yield (
                    f"{name}={show(values[name])}: not taken on Azure ML, which registers the model itself when it is "
                    f"there, whatever its scores. Leave {name} out, or leave out {node.step.registers[1]} and register "
                    "the model by hand."
                )


def _value(port: Port, value: t.Any) -> Iterator[str]:
    if value is None:
        return
    if is_read_by_stage(port, value):
        if "'" in value.location or "${{" in value.location:
            yield f"{port.name}={value.location!r}: no quote and no ${{{{ can stand in an address on Azure ML."
        if strange := [one.location for one in value.each() if one.address.scheme not in EXTRAS]:
            yield (
                f"{port.name}={strange[0]}: of several sources each is read by the stage itself; expected an address "
                f"with {', '.join(EXTRAS)}. Name one data asset, or upload the file."
            )
    elif isinstance(value, Artifact):
        yield from _uri(port, value.location) if is_uri(value) else _path(port, value.path)
    elif value == "" and port.default != "":
        yield f"{port.name}='': Azure ML has no empty values; leave it out, or give what you mean by it."
    elif port.type is str and port.default in ("true", "false") and value.lower() not in ("true", "false"):
        yield f"{port.name}={value!r}: no stage on Azure ML can read a path of this machine; expected true or false."
    elif port.resource in RESOURCES:
        pattern, wanted = RESOURCES[port.resource]
        if not re.fullmatch(pattern, value) or (port.resource == "compute" and value == "local"):
            yield f"{port.name}={value!r}: not valid on Azure ML; expected {wanted}."
    elif isinstance(value, str) and "${{" in value:
        yield f"{port.name}={value!r}: holds ${{{{, which Azure ML takes for an expression of its own. Leave it out."


def _uri(port: Port, value: str) -> Iterator[str]:
    """A wrong form, or a model where data is expected and the other way round."""
    collection = COLLECTIONS[artifact_type(port)]
    if not any(form.fullmatch(value) for form in (ASSET, LONG, STORAGE)):
        wanted = "azureml:NAME:VERSION, azureml://…, https://…, wasbs://… or abfss://…, or a path"
        yield f"{port.name}={value!r}: is no address that Azure ML knows; expected {wanted}."
    other = {"models": "data", "data": "models"}[collection]
    if value.startswith("azureml://") and re.search(rf"/{other}/[^/]+/(versions|labels)/", value):
        yield (
            f"{port.name}={value!r}: names {_asset(other)}; expected {_asset(collection)} ({artifact_type(port)}) of "
            "Azure ML."
        )


def _asset(collection: str) -> str:
    return {"models": "a model", "data": "a data asset"}[collection]


def _path(port: Port, path: Path) -> Iterator[str]:
    kind = artifact_type(port)
    if not path.exists():
        yield f"{port.name}={path}: there is no such file or folder."
    elif kind == "uri_file" and not path.is_file():
        yield (
            f"{port.name}={path}: is a folder; Azure ML takes one file here. Name a file, or describe the folder by an "
            "MLTable."
        )
    elif kind == "uri_folder" and not path.is_dir():
        yield f"{port.name}={path}: is a file; Azure ML takes a folder here."
    elif kind in ("mltable", "mlflow_model") and not path.is_dir():
        yield f"{port.name}={path}: is a file; Azure ML takes the folder of {kind} here."
