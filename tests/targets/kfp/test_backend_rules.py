"""Compiled documents keep the rules that Kubeflow's backend, Argo and Kubernetes have for them; no backend is run.

The document becomes one Workflow, an object of etcd; each task of it is an Argo template, whose inputs are parameters.
"""

import json
import re
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from steps.finetune import Finetune
from tests.targets.kfp import documents
from tuneport.launchers import trainjob
from tuneport.targets.kfp import executor, multi_node

OBJECT_BYTES = 1_500_000  # etcd's limit of a request, and so of an object
ARGUMENT_BYTES = 128 * 1024  # Linux' limit of one argument: KFP's driver gets a component's spec as one
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")  # of DNS
TRAINJOB_COMMAND = 128  # items


@pytest.fixture(params=documents.FILES, scope="module")
def file(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_document_is_one_by_kfps_protobufs_with_nothing_left_over(file: str) -> None:
    pipeline, platform = documents.parsed(documents.compiled(file))
    read = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert json_format.MessageToDict(read) == json.loads(json.dumps(pipeline))
    read = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    assert json_format.MessageToDict(read) == json.loads(json.dumps(platform))
    with pytest.raises(json_format.ParseError, match="componentz"):
        json_format.ParseDict({**pipeline, "componentz": {}}, pipeline_spec_pb2.PipelineSpec())


def test_a_document_fits_into_an_object_and_each_part_into_an_argument(file: str) -> None:
    text = documents.compiled(file)
    pipeline, platform = documents.parsed(text)
    assert len(text.encode()) < OBJECT_BYTES
    # The Workflow holds every component, executor and platform config as JSON in an annotation or a parameter.
    parts = [*pipeline["components"].values(), *pipeline["deploymentSpec"]["executors"].values(), platform]
    sizes = [len(json.dumps(part).encode()) for part in parts]
    assert max(sizes) < ARGUMENT_BYTES and sum(sizes) < OBJECT_BYTES / 2


def test_names_are_labels_of_dns_and_short_enough_for_what_argo_adds(file: str) -> None:
    pipeline, platform = documents.parsed(documents.compiled(file))
    name = pipeline["pipelineInfo"]["name"]
    # Argo names pods after the workflow, its random ending and the template, and cuts them at 63.
    assert LABEL.fullmatch(name) and len(name) <= 63 - len("-abcde")
    tasks = pipeline["root"]["dag"]["tasks"]
    names = [*tasks, *pipeline["components"], *pipeline["deploymentSpec"]["executors"]]
    assert all(LABEL.fullmatch(name) and len(name) <= 63 for name in names)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) <= set(pipeline["deploymentSpec"]["executors"])


def test_what_a_task_reads_is_a_parameter_or_an_artifact_that_is_there(file: str) -> None:
    pipeline, _ = documents.parsed(documents.compiled(file))
    inputs, tasks = pipeline["root"]["inputDefinitions"], pipeline["root"]["dag"]["tasks"]
    for task in tasks.values():
        component = pipeline["components"][task["componentRef"]["name"]]
        wanted = component.get("inputDefinitions", {})
        for kind in ("parameters", "artifacts"):
            given = task.get("inputs", {}).get(kind, {})
            required = {
                n for n, d in wanted.get(kind, {}).items() if not d.get("isOptional") and "defaultValue" not in d
            }
            assert required <= set(given) <= set(wanted.get(kind, {}))
            for value in given.values():
                if upper := value.get("componentInputParameter"):
                    assert upper in inputs["parameters"]
                if made := value.get("taskOutputArtifact"):
                    of = pipeline["components"][tasks[made["producerTask"]]["componentRef"]["name"]]
                    assert made["outputArtifactKey"] in of["outputDefinitions"]["artifacts"]
                    assert made["producerTask"] in task["dependentTasks"]


def test_placeholders_are_kfps(file: str) -> None:
    pipeline, _ = documents.parsed(documents.compiled(file))
    for stage in pipeline["deploymentSpec"]["executors"].values():
        words = stage.get("container", {}).get("args", [])
        found = {p for word in words for p in re.findall(r"\{\{\$[^}]*\}\}", word)}
        assert found <= {"{{$}}", "{{$.pipeline_job_uuid}}"}
        assert not any("{{" in word.replace("{{$}}", "").replace("{{$.pipeline_job_uuid}}", "") for word in words)


# -- what the stage's own launcher makes of it -------------------------------------------------------------------------


def everything() -> dict[str, Any]:
    """A value for every port of finetune, none of them its default."""
    other = {int: 7, float: 0.125, str: "x"}
    return {
        name: f"/mnt/training/{name}" if port.is_artifact else other.get(port.type, not port.default)
        for name, port in Finetune.ports().items()
    }


def test_a_job_takes_every_parameter_there_is_in_few_words_of_command() -> None:
    values = everything()
    assert 2 * len(values) > TRAINJOB_COMMAND / 2
    command = multi_node._command(Finetune, values)
    assert len(command) == 7 and max(len(word) for word in command) < 65536  # characters, by Trainer 2.2
    given = executor.values(command[-1])
    assert set(given) == set(values) and given["learning_rate"] == "0.125"
    job = multi_node.manifest({"kind": "trainjob", "job": {"image": "i", "nodes": 2, "processes": 1}}, "r", command)
    trainjob.check(job)


def test_what_is_the_default_is_not_passed_on() -> None:
    learning_rate = Finetune.ports()["learning_rate"].default
    values = {"learning_rate": str(learning_rate), "apply_lora": False, "max_steps": 4}
    assert json.loads(multi_node._command(Finetune, values)[-1]) == {"max_steps": "4"}


def test_a_run_with_all_parameters_of_the_pipeline_stays_below_the_limit(file: str) -> None:
    pipeline, _ = documents.parsed(documents.compiled(file))
    component = pipeline["components"]["comp-finetune"]["inputDefinitions"]
    given = {**component["parameters"], **component["artifacts"]}
    words = multi_node._command(Finetune, {name: "7" for name in given if name in Finetune.ports()})
    assert len(words) < TRAINJOB_COMMAND


def test_a_document_is_read_back_as_yaml_by_any_parser() -> None:
    text = documents.compiled(documents.FILES[0])
    assert list(yaml.safe_load_all(text)) == documents.parsed(text)
