"""A traced pipeline as Azure ML's YAML, in plain dicts: components, the pipeline component and the job."""

from __future__ import annotations

import dataclasses as dc
import shlex
import typing as t
from collections.abc import Mapping
from pathlib import Path

import tuneport
from tuneport.address import EXTRAS
from tuneport.artifacts import Artifact, CustomMLflowModel, CustomModel, File, MLflowModel, MLTable
from tuneport.graph import Node, Pipeline, Ref
from tuneport.runner import saved_inputs
from tuneport.runner.request import Submission
from tuneport.step import REQUIRED, Port, Resource, Step, show
from tuneport.targets.azureml.settings import AzureMLSettings, StageSettings

MOUNTED = {"http", "https", "abfss"}  # of the schemes that stages read themselves, those that Azure ML reads, too
SCHEMAS = "https://azuremlschemas.azureedge.net/latest"
PARAMETERS: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
ARTIFACTS: dict[type, str] = {
    File: "uri_file",
    MLTable: "mltable",
    CustomModel: "custom_model",
    CustomMLflowModel: "mlflow_model",
    MLflowModel: "mlflow_model",
}
CONTEXT = "context"  # the folder that Azure ML builds the images from
DOCKERFILES = {"base": "images/base/Dockerfile", "trainer": "Dockerfile.trainer"}
Spec = dict[str, t.Any]


class Folded(str):
    """A text that is written over several lines."""

    __slots__ = ()


@dc.dataclass(frozen=True, kw_only=True)
class Document:
    """The files of a compiled pipeline, by name; a local path in them is a `Path`, written relative to its file.

    ``source``: the folder whose images Azure ML builds; None where built ones are named.
    """

    pipeline: str
    files: Mapping[str, Spec]
    source: Path | None
    settings: AzureMLSettings
    submission: Submission


def is_uri(artifact: Artifact) -> bool:
    """Whether an input lies elsewhere: a URI, or an asset as in ``azureml:name:1``."""
    return not artifact.is_local


def artifact_type(port: Port) -> str:
    """Azure ML's type of an input or output artifact."""
    return ARTIFACTS.get(port.type, "uri_folder")


def stages(pipeline: Pipeline, values: Mapping[str, t.Any]) -> tuple[Node, ...]:
    """The nodes that run as stages: not the one that registers a model, which Azure ML does itself."""
    return tuple(node for node in pipeline.active(values) if node.step.registers is None)


def files(
    pipeline: Pipeline, values: Mapping[str, t.Any], steps: Mapping[str, Step], settings: AzureMLSettings
) -> dict[str, Spec]:
    """Every file of a compiled pipeline by its path; ``steps``: by stage, with its values."""
    nodes = stages(pipeline, values)
    components = {
        f"components/{node.name}.yaml": _component(pipeline, node, steps[node.name], settings) for node in nodes
    }
    return {
        "job.yaml": _job(pipeline, nodes, values, settings),
        "pipeline.yaml": _pipeline(pipeline, nodes, values, settings),
        **components,
    }


# -- a stage -----------------------------------------------------------------------------------------------------------


def _component(pipeline: Pipeline, node: Node, values: Step, settings: AzureMLSettings) -> Spec:
    step = node.step
    ports = [p for p in step.ports().values() if p.kind != "resource"]
    given = _resources(step, lambda port: port.default)
    return {
        "$schema": f"{SCHEMAS}/commandComponent.schema.json",
        "type": "command",
        "name": f"{pipeline.name}_{node.name}",
        "version": tuneport.__version__,
        "display_name": node.name,
        "description": step.description(),
        "is_deterministic": values.repeatable(),
        "inputs": {
            p.name: _input(p, getattr(values, p.name))
            for p in ports
            if p.kind != "output" and not _is_constant(node, p)
        },
        "outputs": {p.name: _output(p, settings) for p in ports if p.kind == "output"},
        "environment": _environment(step, settings),
        **{key: given[key] for key in ("resources", "distribution") if key in given},
        "command": Folded(_command(node, ports)),
    }


def _is_constant(node: Node, port: Port) -> bool:
    """Whether the pipeline itself settles a port's value."""
    return port.name in node.values and not isinstance(node.values[port.name], Ref)


def _command(node: Node, ports: list[Port]) -> str:
    package = node.step.__module__.partition(".")[0]
    words = [f"python -m {package} {node.name}"]
    for port in ports:
        if port.kind == "output":
            words.append(f"--{port.name} '${{{{outputs.{port.name}}}}}'")
        elif _is_constant(node, port):
            if node.values[port.name] is None:
                continue
            words.append(f"--{port.name} {shlex.quote(_text(node.values[port.name]))}")
        else:
            flag = f"--{port.name} '${{{{inputs.{port.name}}}}}'"
            words.append(flag if port.required else f"$[[{flag}]]")
    return " ".join(words)


def _text(value: t.Any) -> str:
    return show(value) if isinstance(value, bool) else str(value)


def _environment(step: type[Step], settings: AzureMLSettings) -> t.Any:
    image = settings.image(step.image)
    if image is None:
        return {"build": {"path": f"../{CONTEXT}", "dockerfile_path": DOCKERFILES[step.image]}}
    return image if image.startswith("azureml:") else {"image": image}


def is_read_by_stage(port: Port, value: t.Any) -> bool:
    """Whether an input is data at an address that Azure ML does not know: its stage gets it as text and reads it."""
    if port.type not in (File, MLTable) or not isinstance(value, Artifact):
        return False
    if value.is_mixture:
        return True  # an input of Azure ML is one
    return is_uri(value) and value.address.scheme in set(EXTRAS) - MOUNTED


def _input(port: Port, value: t.Any = None) -> Spec:
    optional = {} if port.required else {"optional": True}
    if is_read_by_stage(port, value):
        return {"type": "string", **optional, "description": port.help}
    if port.is_artifact:
        return {"type": artifact_type(port), **optional, "description": port.help}
    spec: Spec = {"type": PARAMETERS[port.type], **optional, **_bounds(port)}
    if (choices := [c for c in port.choices if c != ""]) and not port.besides:  # Azure ML has no empty value
        spec["enum"] = choices
    if port.default not in (REQUIRED, None, ""):
        spec["default"] = port.default
    return spec | {"description": _help(port)}


def _bounds(port: Port) -> Spec:
    """Azure ML's own bounds, which are inclusive: of a number that must be above 0 it checks that it is not below."""
    whole = int(port.type is int)
    found = {}
    for bound, limit in port.bounds.items():
        if bound in ("gt", "ge"):
            found["min"] = limit + whole * (bound == "gt")
        else:
            found["max"] = limit - whole * (bound == "lt")
    return found


def _help(port: Port) -> str:
    exclusive = port.type is float and set(port.bounds) & {"gt", "lt"}
    return f"{port.help} Expected: {port.wanted}." if exclusive else port.help


def _output(port: Port, settings: AzureMLSettings) -> Spec:
    return {"type": artifact_type(port), "mode": settings.output_mode, "description": port.help}


# -- the pipeline ------------------------------------------------------------------------------------------------------


def _pipeline(
    pipeline: Pipeline, nodes: tuple[Node, ...], values: Mapping[str, t.Any], settings: AzureMLSettings
) -> Spec:
    read = inputs_of(nodes)
    return {
        "$schema": f"{SCHEMAS}/pipelineComponent.schema.json",
        "type": "pipeline",
        "name": f"{pipeline.name}_pipeline",
        "version": tuneport.__version__,
        "display_name": pipeline.name,
        "description": pipeline.doc,
        "inputs": {name: _input(port, values[name]) for name, port in pipeline.params.items() if name in read},
        "outputs": {name: _output(_port(nodes, ref), settings) for name, ref in pipeline.outputs.items()},
        "jobs": {node.name: _node(pipeline, node, settings) for node in nodes},
    }


def inputs_of(nodes: tuple[Node, ...]) -> set[str]:
    """The pipeline inputs that these stages, or the machines they run on, are given."""
    return {v.port for node in nodes for v in node.values.values() if isinstance(v, Ref) and v.node is None}


def _port(nodes: tuple[Node, ...], ref: Ref) -> Port:
    (port,) = (node.step.ports()[ref.port] for node in nodes if node.name == ref.node)
    return port


def _node(pipeline: Pipeline, node: Node, settings: AzureMLSettings) -> Spec:
    ports = node.step.ports()
    own = settings.stages.get(node.name) or StageSettings.model_validate({})
    handed_on = {port: name for name, (stage, port) in _targets(pipeline).items() if stage == node.name}
    spec = {
        "type": "command",
        "component": f"./components/{node.name}.yaml",
        **_resources(node.step, lambda port: _binding(node.values[port.name])),
        "environment_variables": _variables(node) | settings.environment_variables | own.environment_variables,
        "inputs": {
            name: _binding(node.values[name])
            for name, port in ports.items()
            if port.kind in ("input", "param") and isinstance(node.values[name], Ref)
        },
        "outputs": {port: f"${{{{parent.outputs.{name}}}}}" for port, name in handed_on.items()},
    }
    if settings.identity:
        spec["identity"] = {"type": settings.identity}
    if own.timeout:
        spec["limits"] = {"timeout": own.timeout}
    if own.job_tier:
        spec["queue_settings"] = {"job_tier": own.job_tier}
    return {key: value for key, value in spec.items() if value != {}}


def _targets(pipeline: Pipeline) -> dict[str, tuple[str | None, str]]:
    return {name: (ref.node, ref.port) for name, ref in pipeline.outputs.items()}


def _binding(value: t.Any) -> t.Any:
    if not isinstance(value, Ref):
        return value
    if value.node is None:
        return f"${{{{parent.inputs.{value.port}}}}}"
    return f"${{{{parent.jobs.{value.node}.outputs.{value.port}}}}}"


def _resources(step: type[Step], value: t.Callable[[Port], t.Any]) -> Spec:
    """What a stage asks of its machines, in Azure ML's words; ``value`` gives a port's."""
    asked: dict[Resource, t.Any] = {p.resource: value(p) for p in step.ports().values() if p.resource}
    found: Spec = {}
    if "compute" in asked:
        found["compute"] = asked["compute"]
    words: dict[Resource, str] = {"instance_type": "instance_type", "nodes": "instance_count", "shm_size": "shm_size"}
    resources = {word: asked[kind] for kind, word in words.items() if kind in asked}
    if resources:
        found["resources"] = resources
    if "processes" in asked:  # Azure ML starts each of them and sets RANK, LOCAL_RANK, WORLD_SIZE and MASTER_*
        found["distribution"] = {"type": "pytorch", "process_count_per_instance": asked["processes"]}
    return found


def _variables(node: Node) -> dict[str, str]:
    """Azure ML keeps what a stage writes to ``logs`` in its folder."""
    saved = {saved_inputs.VARIABLE: f"logs/{node.name}.inputs.json"}
    return saved if node.step.network else {"HF_HUB_OFFLINE": "1", **saved}


# -- the job -----------------------------------------------------------------------------------------------------------


def _job(pipeline: Pipeline, nodes: tuple[Node, ...], values: Mapping[str, t.Any], settings: AzureMLSettings) -> Spec:
    """The pipeline component as the job's one node, which gets only what differs from its defaults.

    A component may have inputs without a value, a job may not.
    """
    named = registered(pipeline, values)
    given = {
        name: _given(port, values[name])
        for name, port in pipeline.params.items()
        if name in inputs_of(nodes) and values[name] is not None and values[name] != port.default
    }
    return {
        "$schema": f"{SCHEMAS}/pipelineJob.schema.json",
        "type": "pipeline",
        "display_name": pipeline.name,
        "description": pipeline.doc,
        "experiment_name": settings.experiment_name or pipeline.name,
        "tags": {"tuneport": tuneport.__version__} | settings.tags,
        "settings": {
            "default_compute": "serverless",
            "continue_on_step_failure": False,
            "force_rerun": settings.force_rerun,
        },
        "inputs": given,
        "outputs": {
            name: {"type": artifact_type(_port(nodes, ref)), "mode": settings.output_mode, **named.get(name, {})}
            for name, ref in pipeline.outputs.items()
        },
        "jobs": {
            pipeline.name: {
                "type": "pipeline",
                "component": "./pipeline.yaml",
                "inputs": {name: f"${{{{parent.inputs.{name}}}}}" for name in given},
                "outputs": {name: f"${{{{parent.outputs.{name}}}}}" for name in pipeline.outputs},
            }
        },
    }


def _given(port: Port, value: t.Any) -> t.Any:
    if is_read_by_stage(port, value):
        return value.location
    if isinstance(value, Artifact):
        return {"type": artifact_type(port), "path": value.location if is_uri(value) else value.path}
    return value.replace("'", "'\\''") if isinstance(value, str) else value  # it stands in '…' of a stage's command


def registered(pipeline: Pipeline, values: Mapping[str, t.Any]) -> dict[str, Spec]:
    """The names under which Azure ML is to register outputs of the pipeline, by output.

    It does so itself when they are there; the step that registers a model elsewhere does not run.
    """
    found = {}
    for node in pipeline.active(values):
        if node.step.registers is None:
            continue
        artifact, name = node.step.registers
        model = Ref(node.values[artifact].node, artifact)
        (output,) = (output for output, ref in pipeline.outputs.items() if ref == model)
        found[output] = {"name": values[node.values[name].port]}
    return found
