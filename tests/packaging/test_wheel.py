"""What is in the wheel and in the source distribution. `.ci/wheel` installs and uses the wheel, for one Python."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tuneport import __version__, tasks

ROOT = Path(__file__).parents[2]
PACKAGES = ("tuneport", "steps", "pipelines")
EXAMPLE_FILES = (".ipynb", ".md", ".py", ".yaml")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, the wheel built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"tuneport-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"tuneport-{__version__}.dist-info/METADATA"))


def test_the_wheel_holds_the_packages_and_their_types(names: set[str]) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= sources <= names


def test_the_wheel_holds_every_example_and_none_of_its_data(names: set[str]) -> None:
    examples = {name.removeprefix("tuneport/_examples/") for name in names if name.startswith("tuneport/_examples/")}
    tracked = subprocess.run(
        ["git", "ls-files", "."], cwd=ROOT / "examples", capture_output=True, text=True, check=True
    )
    assert examples == set(tracked.stdout.split())
    assert all(name.endswith(EXAMPLE_FILES) for name in examples)
    assert {name.partition("/")[0] for name in examples if name.endswith("/config.yaml")} == set(tasks.names())


def test_the_wheel_holds_nothing_else_but_its_metadata_and_the_licence(names: set[str]) -> None:
    info = f"tuneport-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_the_metadata_says_what_it_needs_and_whom_it_is_for(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("tuneport", __version__, ">=3.11")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = set(metadata.get_all("Classifier", []))
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} | {
        "Typing :: Typed"
    } <= classifiers
    assert set(metadata.get_all("Provides-Extra", [])) >= {"train", "deepspeed", "quantization", "kfp", "azureml"}
    assert metadata.get_all("Project-URL")


def test_the_wheel_alone_has_the_command_and_the_examples(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        (commands,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert archive.read(commands).decode().split() == [
            "[console_scripts]",
            "tuneport",
            "=",
            "pipelines.__main__:run",
        ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def tuneport(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipelines", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert tuneport("--version") == f"tuneport {__version__}\n"
    assert len(tuneport("examples", "list").splitlines()) == len(tasks.names())
    assert "copied/fetch.py" in tuneport("examples", "copy", "question_answering", "copied")
    assert (tmp_path / "copied" / "questions.py").is_file()


def test_the_source_distribution_can_be_built_and_tested(dist: Path) -> None:
    with tarfile.open(dist / f"tuneport-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "CHANGELOG.md", "tests/conftest.py"):
        assert name in names
    assert not [name for name in names if "/data/" in name and name.startswith("examples/")]


def test_an_editable_install_reads_the_checkout(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = "import pipelines, steps, tuneport; print(*(p.__path__[0] for p in (tuneport, steps, pipelines)))"
    done = subprocess.run(
        [python, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(ROOT / package) for package in PACKAGES]
