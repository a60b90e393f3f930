"""The chart as Helm renders it, once for each file of values that it comes with."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "tuneport"
Render = Callable[..., list[dict[str, Any]]]
Helm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Run Helm: that of the PATH, or the one that `make helm` puts beside Python."""
    program = shutil.which("helm") or shutil.which("helm", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("there is no Helm here: `make helm`")

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([program, *words], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def chart() -> Path:
    return CHART


@pytest.fixture(scope="session", params=sorted(CHART.glob("values*.yaml")), ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> Path:
    """Each file of values in turn; `values.yaml` are the defaults."""
    return request.param


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The objects that a file of values and settings such as `mlflow.workers=3` lead to, in the namespace `team`."""

    def render(values: Path, *settings: str, flags: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        given = [word for setting in settings for word in ("--set", setting)]
        done = helm("template", "tuneport", str(CHART), "--namespace=team", f"--values={values}", *given, *flags)
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]

    return render


@pytest.fixture
def objects(render: Render, values: Path) -> list[dict[str, Any]]:
    """What is rendered of each file of values."""
    return render(values)
