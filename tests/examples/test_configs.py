"""Every example's configuration is one that its task takes."""

from pathlib import Path

import pytest

import pipelines
from tuneport.config import from_file

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*/*.yaml"))


def test_there_are_configurations_and_a_way_to_fetch_their_data() -> None:
    assert CONFIGS
    assert all((file.parent / "fetch.py").is_file() for file in CONFIGS)


@pytest.mark.parametrize("file", CONFIGS, ids=[f"{f.parent.name}/{f.name}" for f in CONFIGS])
def test_a_configuration_holds_known_keys_and_valid_values(file: Path) -> None:
    pipeline = pipelines.load(file.parent.name)
    given = from_file(pipeline, file)
    assert pipeline.resolve(given)["train_file_path"]
