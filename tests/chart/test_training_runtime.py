"""The chart's TrainingRuntime is valid by Kubeflow Trainer's own schema, and what is printed leads TrainJobs to it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launchers.test_manifests import errors_by
from tuneport.launchers import trainjob
from tuneport.launchers.job import Job

SETTINGS = ("trainingRuntime.enabled=true", "trainingRuntime.restarts=2", "trainingRuntime.priorityClass=high")


def test_it_is_valid_by_the_schema_and_starts_all_machines_again(render: Any, chart: Path) -> None:
    (runtime,) = (o for o in render(chart / "values.yaml", *SETTINGS) if o["kind"] == "TrainingRuntime")
    # A TrainingRuntime has the schema of a ClusterTrainingRuntime.
    assert errors_by("clustertrainingruntimes-v2.2.0", {**runtime, "kind": "ClusterTrainingRuntime"}) == []
    template = runtime["spec"]["template"]["spec"]
    assert template["failurePolicy"] == {"maxRestarts": 2}
    (replicated,) = template["replicatedJobs"]
    assert replicated["name"] == trainjob.NODE and replicated["template"]["spec"]["backoffLimit"] == 0
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert [c["name"] for c in pod["containers"]] == [trainjob.CONTAINER] and pod["priorityClassName"] == "high"
    job = Job(name="a", run_id="r", image="i", command=("x",), nodes=2, processes=1, runtime_kind="TrainingRuntime")
    named = trainjob.render(job)["spec"]["runtimeRef"]
    assert (named["kind"], named["apiGroup"]) == ("TrainingRuntime", runtime["apiVersion"].partition("/")[0])


def test_a_field_that_the_schema_lacks_is_found(render: Any, chart: Path) -> None:
    (runtime,) = (o for o in render(chart / "values.yaml", *SETTINGS) if o["kind"] == "TrainingRuntime")
    text = yaml.safe_dump(runtime).replace("maxRestarts", "maxRestart")
    assert errors_by("clustertrainingruntimes-v2.2.0", {**yaml.safe_load(text), "kind": "ClusterTrainingRuntime"}) != []


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_what_is_printed_names_it(helm: Any, chart: Path, enabled: str) -> None:
    flags = ("--namespace=team", "--dry-run=client", f"--set=trainingRuntime.enabled={enabled}")
    done = helm("install", "tuneport", str(chart), *flags)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert ("runtime: tuneport\n      runtime_kind: TrainingRuntime" in notes) is (enabled == "true")
