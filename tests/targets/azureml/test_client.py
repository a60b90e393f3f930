"""Submitting to Azure ML, as far as that goes without a workspace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORKSPACE = {
    "subscription": "00000000-0000-0000-0000-000000000000",
    "resource_group": "group",
    "workspace": "workspace",
}
IMAGES = {"image_base": "registry/base:1", "image_trainer": "registry/trainer:1"}
BLOCK = (
    "import sys; sys.modules['azure.ai'] = None; sys.argv[0] = 'tuneport'; from pipelines.__main__ import run; run()"
)


def submit(folder: Path, settings: dict[str, str], *flags: str, code: str = "") -> subprocess.CompletedProcess[str]:
    values = {
        "huggingface_id": "organisation/model",
        "train_file_path": "azureml:rows:1",
        "sentence1_key": "text",
        "label_key": "label",
        "platform": {"azureml": settings},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    program = [sys.executable, "-c", code] if code else [str(Path(sys.executable).with_name("tuneport"))]
    return subprocess.run(
        [*program, "submit", "text_classification", "--config", "run.yaml", "--target", "azureml", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_workspace_must_be_named(tmp_path: Path) -> None:
    done = submit(tmp_path, IMAGES)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the workspace is not named: expected subscription, resource_group, workspace")


def test_without_azures_libraries_the_message_says_what_to_install(tmp_path: Path) -> None:
    done = submit(tmp_path, IMAGES | WORKSPACE, code=BLOCK)
    assert done.returncode == 2
    assert "pip install 'tuneport[azureml]'" in done.stderr


def test_a_dry_run_prints_the_request_alone(tmp_path: Path) -> None:
    done = submit(tmp_path, IMAGES, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    request = json.loads(done.stdout)["properties"]
    assert request["jobType"] == "Pipeline"
    assert request["inputs"]["train_file_path"] == {"jobInputType": "uri_file", "uri": "rows:1"}
    assert request["inputs"]["sentence1_key"] == {"jobInputType": "literal", "value": "text"}


def test_a_schedule_of_a_named_job_is_shown(tmp_path: Path) -> None:
    flags = ("--schedule", "0 3 * * 1", "--name", "weekly", "--experiment", "trials")
    done = submit(tmp_path, IMAGES, "--dry_run", *flags)
    assert done.returncode == 0, done.stderr
    request = json.loads(done.stdout)["properties"]
    assert request["trigger"]["expression"] == "0 3 * * 1"
    job = request["action"]["jobDefinition"]
    assert (job["displayName"], job["experimentName"], job["jobType"]) == ("weekly", "trials", "Pipeline")
    refused = submit(tmp_path, IMAGES, "--dry_run", "--schedule", "each day")
    assert refused.returncode == 2 and "--schedule 'each day': not valid; expected minute, hour" in refused.stderr


@pytest.mark.slow  # asks each kind of credential there is
def test_without_a_login_the_message_says_how_to_get_one(tmp_path: Path) -> None:
    done = submit(tmp_path, IMAGES | WORKSPACE)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no login to Azure: ")
    assert done.stderr.rstrip().endswith("Log in with: az login")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]
