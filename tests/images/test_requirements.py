"""What the images install is what constraints.txt pins, and each file of it is named by its digest."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
STORES = ("s3", "gcs", "azure")
EXTRAS = {
    "base": STORES,
    "trainer": (*STORES, "train", "launch", "mlflow-server"),
    "deepspeed": (*STORES, "train", "launch", "mlflow-server", "deepspeed"),
}
ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)[^\n]*\\\n(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", re.MULTILINE
)


def locked(image: str) -> dict[str, str]:
    """Version by name; every line of the file is a comment or belongs to an entry with digests."""
    text = (ROOT / "images" / f"requirements-{image}.txt").read_text("utf-8")
    rest = re.sub(r"^#.*\n", "", ENTRY.sub("", text), flags=re.MULTILINE)
    assert rest == "", "stale or written by hand: run `make lock`"
    return {canonicalize_name(entry["name"]): entry["version"] for entry in ENTRY.finditer(text)}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines if not line.startswith("#"))}


@pytest.mark.parametrize("image", EXTRAS)
def test_the_versions_are_those_that_are_tested(image: str) -> None:
    pins = pinned()
    assert [(n, v, pins[n]) for n, v in locked(image).items() if pins.get(n, v) != v] == [], "run `make lock`"


@pytest.mark.parametrize(("image", "extras"), EXTRAS.items())
def test_every_requirement_is_met(image: str, extras: tuple[str, ...]) -> None:
    command = [sys.executable, "images/requirements.py", *extras]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    versions = locked(image)
    for requirement in map(Requirement, asked):
        version = versions.get(canonicalize_name(requirement.name), "none")
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is {version}: run `make lock`"


def test_what_deepspeed_is_compiled_with_is_installed_before_it() -> None:
    tools = [line for line in (ROOT / "images" / "compile.txt").read_text("utf-8").splitlines() if line[0] != "#"]
    first, second = locked("trainer"), locked("deepspeed")
    assert set(tools) <= set(first)
    assert "torch" in first
    assert "deepspeed" not in first
    assert first.items() <= second.items()


def test_torch_is_in_no_list_of_the_base_image() -> None:
    assert "torch" not in locked("base")


def test_images_are_built_on_others_by_their_digests_which_are_one_for_both() -> None:
    texts = [(ROOT / name).read_text("utf-8") for name in ("Dockerfile.trainer", "images/base/Dockerfile")]
    bases = [dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE)) for text in texts]
    assert all(re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", image) for of in bases for image in of.values())
    assert [sorted(of) for of in bases] == [["COMPILER_IMAGE", "PYTHON_IMAGE"], ["PYTHON_IMAGE"]]
    assert len({of["PYTHON_IMAGE"] for of in bases}) == 1
    sources = {source for text in texts for source in re.findall(r"^FROM (\S+)", text, re.MULTILINE)}
    assert sources == {"${PYTHON_IMAGE}", "${COMPILER_IMAGE}"}


@pytest.mark.parametrize("file", ["Dockerfile.trainer", "images/base/Dockerfile"])
def test_mlflow_does_not_miss_git_in_an_image(file: str) -> None:
    assert re.search(r"^\s+GIT_PYTHON_REFRESH=quiet\b", (ROOT / file).read_text("utf-8"), re.MULTILINE)
