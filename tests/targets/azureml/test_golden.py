"""The YAML of every task, compared with what stands in tests/targets/golden/azureml and read by azure-ai-ml.

Of one task all of it, of the others what differs from that (`tests/golden.py`).
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.golden import FIRST
from tests.targets.azureml.documents import GOLDEN, TASKS, compiled, golden, parsed, texts, written


def test_every_task_has_its_golden_files() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_compiled_is_what_was_looked_at(task: str, tmp_path: Path) -> None:
    expected = {name: text for name, text in texts(GOLDEN).items() if Path(name).parts[0].partition(".")[0] == task}
    assert golden(task, tmp_path) == expected, "if the change is meant: make golden"


@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_is_what_was_compiled(task: str, tmp_path: Path) -> None:
    document = compiled(task)
    assert parsed(written(document, tmp_path)) == document.files


@pytest.fixture(scope="module")
def azure() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai import ml

        yield ml


@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=[] if t == FIRST else pytest.mark.slow) for t in TASKS],
)
def test_azure_ai_ml_takes_every_file_and_drops_nothing_of_it(task: str, tmp_path: Path, azure: Any) -> None:
    folder = written(compiled(task), tmp_path)
    for path in (*sorted((folder / "components").iterdir()), folder / "pipeline.yaml"):
        component = azure.load_component(path)
        assert component._validate().error_messages == {}
        missing(yaml.safe_load(path.read_text()), component._to_dict(), path.name)
    job = azure.load_job(folder / "job.yaml")
    assert job._validate().error_messages == {}
    request = job._to_rest_object().as_dict()["properties"]
    spec = yaml.safe_load((folder / "job.yaml").read_text())
    assert request["jobType"] == "Pipeline"
    assert set(request["inputs"]) == set(spec["inputs"])
    assert set(request["jobs"][task]["inputs"]) == set(spec["inputs"])
    assert request["experimentName"] == spec["experiment_name"]
    for name, output in spec["outputs"].items():
        assert request["outputs"][name]["jobOutputType"] == output["type"]
        assert request["outputs"][name].get("assetName") == output.get("name")


def missing(ours: Any, theirs: Any, where: str) -> None:
    """Fail for what we wrote and azure-ai-ml did not keep."""
    if isinstance(theirs, dict) and set(theirs) == {"path"} and str(ours).startswith("${{"):
        theirs = theirs["path"]
    if isinstance(ours, dict):
        for key, value in ours.items():
            if key in ("component", "environment", "name", "version", "$schema"):  # read from their files, or resolved
                continue
            assert key in theirs, f"{where}: {key} is not known"
            missing(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert list(map(str, ours)) == list(map(str, theirs)), where
    elif isinstance(ours, (int, float)) and not isinstance(ours, bool):
        assert float(ours) == float(theirs), where
    elif where.endswith(("compute", "type", "job_tier")):
        plain = str(theirs).removeprefix("azureml:").removesuffix("_identity").lower()
        assert str(ours).removesuffix("_identity").lower() == plain, where
    else:
        assert str(ours) == str(theirs), where
