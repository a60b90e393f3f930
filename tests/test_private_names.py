"""Our code leans on private names of libraries: each is there, with the parameters that it had when we wrote ours."""

import json

import pytest
import transformers

from tests import private_names


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, object]]:
    entries: dict[str, dict[str, object]] = json.loads(private_names.RECORDED.read_text("utf-8"))
    return entries


def test_every_private_name_is_there_with_its_parameters(recorded: dict[str, dict[str, object]]) -> None:
    assert len(recorded) > 20
    assert private_names.problems(recorded) == []


def test_the_names_are_those_of_the_code(recorded: dict[str, dict[str, object]]) -> None:
    found = private_names.collected()
    assert {name: entry["places"] for name, entry in recorded.items()} == found, "python -m tests.private_names"


def test_a_renamed_method_is_found_with_the_place_that_relies_on_it(
    recorded: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(transformers.Trainer, "_get_grad_norm")
    (problem,) = private_names.problems(recorded)
    assert "Trainer._get_grad_norm is gone" in problem
    assert "tuneport.training.monitoring.MonitoredTrainer rely on it" in problem


def test_another_parameter_is_found(recorded: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.Trainer, "_save", lambda self, folder: None)
    (problem,) = private_names.problems(recorded)
    assert "Trainer._save takes (self, folder), recorded is (self, output_dir" in problem
