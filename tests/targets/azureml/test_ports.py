"""Every port of every stage of every task stands in Azure ML's YAML as it was declared: read from `ports()`."""

from collections.abc import Mapping
from typing import Any

import pytest

import pipelines
from tests.targets.azureml.documents import GIVEN, PLATFORM, TASKS, compiled
from tuneport.graph import Node, Ref
from tuneport.step import Port

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
ARTIFACTS = {
    "File": "uri_file",
    "MLTable": "mltable",
    "CustomModel": "custom_model",
    "CustomMLflowModel": "mlflow_model",
    "MLflowModel": "mlflow_model",
}


def stages(task: str) -> dict[str, Node]:
    """Those that run with what is given; Azure ML registers models itself."""
    nodes = [node for node in pipelines.load(task).nodes if node.step.only_if in (None, *GIVEN[task])]
    return {node.name: node for node in nodes if node.name != "model_registration"}


def is_constant(node: Node, port: Port) -> bool:
    return port.name in node.values and not isinstance(node.values[port.name], Ref)


def is_input(value: Any) -> bool:
    return isinstance(value, Ref) and value.node is None


def entry(port: Port) -> dict[str, Any]:
    """An input as Azure ML takes it: bounds are inclusive, no value is empty."""
    optional = {} if port.required else {"optional": True}
    if port.kind == "input":
        return {"type": ARTIFACTS.get(port.type.__name__, "uri_folder"), "description": port.help, **optional}
    bounds, limits = port.bounds, {}
    step = 1 if port.type is int else 0
    for kind, lowest in (("ge", bounds.get("ge")), ("gt", bounds.get("gt"))):
        if lowest is not None:
            limits["min"] = lowest + step * (kind == "gt")
    for kind, largest in (("le", bounds.get("le")), ("lt", bounds.get("lt"))):
        if largest is not None:
            limits["max"] = largest - step * (kind == "lt")
    is_exclusive = port.type is float and bool({"gt", "lt"} & set(bounds))
    found = {
        "type": TYPES[port.type],
        "description": f"{port.help} Expected: {port.wanted}." if is_exclusive else port.help,
        **optional,
        **limits,
    }
    if any(port.choices) and not port.besides:
        found["enum"] = [choice for choice in port.choices if choice != ""]
    if not port.required and port.default not in (None, ""):
        found["default"] = port.default
    return found


def inputs(node: Node) -> list[Port]:
    kinds = ("input", "param")
    return [port for port in node.step.ports().values() if port.kind in kinds and not is_constant(node, port)]


@pytest.mark.parametrize("task", TASKS)
def test_every_input_of_every_stage_has_its_type_default_help_and_bounds_in_the_order_of_its_ports(task: str) -> None:
    files = compiled(task).files
    for name, node in stages(task).items():
        found = files[f"components/{name}.yaml"]["inputs"]
        assert list(found.items()) == [(port.name, entry(port)) for port in inputs(node)], name


@pytest.mark.parametrize("task", TASKS)
def test_every_output_of_every_stage_has_its_type_mode_and_help(task: str) -> None:
    files = compiled(task).files
    mode = PLATFORM.get(task, {}).get("output_mode", "rw_mount")
    for name, node in stages(task).items():
        outputs = [port for port in node.step.ports().values() if port.kind == "output"]
        assert files[f"components/{name}.yaml"]["outputs"] == {
            port.name: {
                "type": ARTIFACTS.get(port.type.__name__, "uri_folder"),
                "mode": mode,
                "description": port.help,
            }
            for port in outputs
        }, name


@pytest.mark.parametrize("task", TASKS)
def test_the_command_of_every_stage_hands_on_every_port_and_leaves_out_optional_ones_without_a_value(task: str) -> None:
    files = compiled(task).files
    for name, node in stages(task).items():
        words = [f"python -m steps {name}"]
        for port in node.step.ports().values():
            if port.kind == "output":
                words.append(f"--{port.name} '${{{{outputs.{port.name}}}}}'")
            elif port.kind != "resource" and is_constant(node, port):
                if node.values[port.name] is not None:
                    words.append(f"--{port.name} {node.values[port.name]}")
            elif port.kind != "resource":
                flag = f"--{port.name} '${{{{inputs.{port.name}}}}}'"
                words.append(flag if port.required else f"$[[{flag}]]")
        assert files[f"components/{name}.yaml"]["command"] == " ".join(words)


@pytest.mark.parametrize("task", TASKS)
def test_every_stage_is_handed_each_input_from_the_pipelines_or_from_the_stage_that_makes_it(task: str) -> None:
    jobs: Mapping[str, Any] = compiled(task).files["pipeline.yaml"]["jobs"]
    assert list(jobs) == list(stages(task))
    for name, node in stages(task).items():
        expected = {}
        for port in inputs(node):
            ref = node.values[port.name]
            where = f"inputs.{ref.port}" if ref.node is None else f"jobs.{ref.node}.outputs.{ref.port}"
            expected[port.name] = f"${{{{parent.{where}}}}}"
        assert list(jobs[name]["inputs"].items()) == list(expected.items()), name


@pytest.mark.parametrize("task", TASKS)
def test_every_input_of_the_pipeline_has_its_type_default_help_and_bounds_in_the_order_of_the_stages(task: str) -> None:
    found = compiled(task).files["pipeline.yaml"]["inputs"]
    read = {v.port for node in stages(task).values() for v in node.values.values() if is_input(v)}
    ports = [port for name, port in pipelines.load(task).params.items() if name in read]
    assert list(found.items()) == [(port.name, entry(port)) for port in ports]
    machines = {port.name for node in stages(task).values() for port in node.step.ports().values() if port.resource}
    assert machines <= set(found)
