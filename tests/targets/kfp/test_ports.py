"""Every port of every stage of every task stands in KFP's document as it was declared: read from `ports()`."""

from collections.abc import Iterator
from typing import Any

import pytest

import pipelines
from tests.targets.kfp.documents import VALUES, compiled, parsed
from tuneport.graph import Node, Ref
from tuneport.step import Port

TYPES = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN"}
SCHEMAS = {"Model": "Model", "Dataset": "Dataset", "File": "Dataset", "Folder": "Dataset", "MLTable": "Dataset"}
VIEWS = {"metrics": "Metrics", "confusion_matrix": "ClassificationMetrics", "markdown": "Markdown", "html": "HTML"}


def schema(port: Port) -> str:
    name = port.type.__name__.removeprefix("Custom").removeprefix("MLflow")
    return f"system.{SCHEMAS.get(name, 'Artifact')}"


def stages(task: str) -> Iterator[tuple[Node, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Each stage with its component, what it is handed and its container."""
    spec, _ = parsed(compiled(task))
    for node in pipelines.load(task).nodes:
        name = node.name.replace("_", "-")
        if name in spec["root"]["dag"]["tasks"]:
            executor = spec["deploymentSpec"]["executors"][f"exec-{name}"]
            yield node, spec["components"][f"comp-{name}"], spec["root"]["dag"]["tasks"][name], executor["container"]


def parameter(port: Port) -> dict[str, Any]:
    """A parameter as KFP writes it; a number's default as a number of any kind."""
    limits = f" ({port.wanted})" if port.bounds or port.choices else ""
    default = {} if port.required else {"defaultValue": "" if port.default is None else port.default}
    optional = {} if port.required else {"isOptional": True}
    return {"parameterType": TYPES[port.type], "description": f"{port.help}{limits}", **default, **optional}


def is_settled(node: Node, port: Port) -> bool:
    """Whether a parameter is part of the stage's command: the pipeline's own choice, or one that settles machines."""
    return not isinstance(node.values[port.name], Ref) or port.resource is not None


@pytest.mark.parametrize("task", VALUES)
def test_every_parameter_of_every_stage_has_its_type_default_help_and_bounds(task: str) -> None:
    for node, component, _, _ in stages(task):
        found = component.get("inputDefinitions", {}).get("parameters", {})
        ports = [port for port in node.step.ports().values() if port.kind == "param" and not is_settled(node, port)]
        given = {name: entry for name, entry in found.items() if not name.endswith("_location")}
        assert given == {port.name: parameter(port) for port in ports}, node.name


@pytest.mark.parametrize("task", VALUES)
def test_every_parameter_is_handed_on_under_its_name_or_settled_in_the_command(task: str) -> None:
    for node, _, handed, container in stages(task):
        parameters = handed["inputs"].get("parameters", {})
        flags = container["args"][: container["args"].index("--kfp_executor_input")]
        settled = dict(zip(flags[::2], flags[1::2], strict=True))
        for port in node.step.ports().values():
            if port.kind == "param" and is_settled(node, port):
                assert f"--{port.name}" in settled and port.name not in parameters, port
            elif port.kind == "param":
                assert parameters[port.name] == {"componentInputParameter": port.name}, port
                assert f"--{port.name}" not in settled, port


@pytest.mark.parametrize("task", VALUES)
def test_every_artifact_of_every_stage_has_its_type_and_help_and_comes_from_where_it_is_wired(task: str) -> None:
    for node, component, handed, _ in stages(task):
        ports = [port for port in node.step.ports().values() if node.values.get(port.name, port) is not None]
        inputs = component["inputDefinitions"].get("artifacts", {})
        assert set(inputs) == {port.name for port in ports if port.kind == "input"}
        for port in ports:
            if port.kind == "input":
                entry = {
                    "artifactType": {"schemaTitle": schema(port), "schemaVersion": "0.0.1"},
                    "description": port.help,
                }
                assert inputs[port.name] == entry | ({"isOptional": True} if port.optional else {}), port
            source = node.values.get(port.name)
            if isinstance(source, Ref) and source.node is not None:
                producer = {"outputArtifactKey": source.port, "producerTask": source.node.replace("_", "-")}
                assert handed["inputs"]["artifacts"][port.name] == {"taskOutputArtifact": producer}, port


@pytest.mark.parametrize("task", VALUES)
def test_every_output_of_every_stage_has_its_type_its_help_and_its_views(task: str) -> None:
    for node, component, _, _ in stages(task):
        expected = {}
        for port in node.step.ports().values():
            if port.kind == "output":
                expected[port.name] = (schema(port), port.help)
                for name, view in port.views.items():
                    expected[name] = (f"system.{VIEWS[view.kind]}", f"{view.file} of {port.name}, for the UI.")
        outputs = component["outputDefinitions"]["artifacts"].items()
        found = {name: (entry["artifactType"]["schemaTitle"], entry["description"]) for name, entry in outputs}
        assert found == expected, node.name


@pytest.mark.parametrize("task", VALUES)
def test_every_parameter_of_the_pipeline_has_its_type_help_bounds_and_the_value_of_the_run(task: str) -> None:
    spec, _ = parsed(compiled(task))
    found = spec["root"]["inputDefinitions"]["parameters"]
    pipeline = pipelines.load(task)
    handed = {name for node, *_ in stages(task) for name, port in node.step.ports().items() if port.kind == "param"}
    ports = [p for p in pipeline.params.values() if p.kind == "param" and p.resource is None and p.name in handed]
    for port in ports:
        value = VALUES[task].get(port.name, port.default)
        entry = {**parameter(port), "defaultValue": "" if value is None else value, "isOptional": True}
        assert found[port.name] == entry, port
    locations = {p.name: p.help for p in pipeline.params.values() if p.kind == "input" and p.name in VALUES[task]}
    for name, help in locations.items():
        assert found[name] == {
            "parameterType": "STRING",
            "description": help,
            "defaultValue": VALUES[task][name],
            "isOptional": True,
        }
    assert set(found) == {port.name for port in ports} | set(locations)
