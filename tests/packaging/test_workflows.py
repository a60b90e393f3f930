"""The workflows and forms are what GitHub takes, run commands that exist, and have no more rights than they need."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneport import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "dependabot": [ROOT / ".github" / "dependabot.yml"],
    "github-issue-forms": [
        p for p in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if p.stem != "config"
    ],
    "github-issue-config": [ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}


def read(workflow: Path) -> dict[Any, Any]:
    return yaml.safe_load(workflow.read_text("utf-8"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_file_is_what_its_schema_says(schema: str) -> None:
    files = SCHEMAS[schema]
    assert files
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run(
        [*check, "--default-filetype", "yaml", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_audit_of_the_workflows_finds_nothing() -> None:
    zizmor = Path(sys.executable).with_name("zizmor")
    audit = [zizmor, "--offline", "--no-progress", "--quiet", "--min-severity=medium", ".github"]
    done = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_every_command_that_a_workflow_runs_is_there(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = "\n".join(step["run"] for step in steps(workflow) if "run" in step)
    assert commands
    named = {target for line in commands.splitlines() for target in re.findall(r"^make ([a-z-]+)", line)}
    assert named <= targets
    for script in re.findall(r"(?:^| )(\.ci/[a-z]+)", commands, re.MULTILINE):
        assert (ROOT / script).stat().st_mode & 0o100


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_an_action_is_named_by_a_full_version_and_a_job_has_an_end(workflow: Path) -> None:
    for step in steps(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.2.3"))
    assert all("timeout-minutes" in job or "uses" in job for job in read(workflow)["jobs"].values())


def test_every_supported_python_is_tested() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == classifiers
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == classifiers


def test_only_the_job_that_publishes_can_publish() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert [name for name, job in jobs.items() if job.get("environment")] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert {"ci"} <= {*[jobs["build"]["needs"]]}


def test_a_release_is_refused_under_a_tag_that_is_not_the_version_or_has_no_notes() -> None:
    def dist(tag: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "dist", f"TAG={tag}", f"VENV={sys.prefix}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    other = dist("v0.0.1")
    assert other.returncode == 2
    assert f"error: the tag is v0.0.1; expected v{__version__}, as tuneport/__init__.py has it" in other.stdout
    if f"## {__version__} " not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        assert f"CHANGELOG.md has no section {__version__}" in dist(f"v{__version__}").stdout


def test_the_fragments_of_the_changelog_are_of_known_kinds_and_make_a_section() -> None:
    kinds = ("added", "changed", "fixed", "removed", "security")
    for path in (ROOT / "changelog.d").glob("*.md"):
        assert re.fullmatch(rf"\+[\w-]+\.(?:{'|'.join(kinds)})\.md", path.name), path.name
    towncrier = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9", "--date", "2000-01-01"]
    done = subprocess.run(towncrier, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "## 9.9 (2000-01-01)" in done.stdout


def test_the_versions_that_a_citation_and_the_package_have_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == __version__
