"""What does not go together is refused with its reason; changed as the remedy says, it is accepted."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

import steps
from tuneport.errors import UserError
from tuneport.training.conflicts import AT_ONCE, CONFLICTS, CPU, GPU, Conflict, check
from tuneport.training.parameters import TrainingParams


def stage(values: Mapping[str, Any]) -> Any:
    inputs = {"model_selector_output": "model", "preprocess_output": "prepared"}
    return steps.load("finetune", "text_classification")(**inputs, **values)


def refuse(conflict: Conflict, values: Mapping[str, Any]) -> None:
    """As finetune does: at once what depends on the values alone, later what depends on the machine."""
    given = stage(values)
    given.check()
    if conflict.on is not None:
        check(given, conflict.on)


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda c: "-".join(c.example))
def test_each_conflict_is_refused_and_its_remedy_is_accepted(conflict: Conflict) -> None:
    assert {*conflict.names, *conflict.example, *conflict.mended} <= TrainingParams.ports().keys()
    with pytest.raises(UserError) as refused:
        refuse(conflict, conflict.example)
    message = str(refused.value)
    assert message == conflict.message(stage(conflict.example), conflict.on or CPU), "one problem, one message"
    assert any(f"{name}=" in message for name in conflict.example)
    assert message.endswith(f"{conflict.remedy}.")
    refuse(conflict, {**conflict.example, **conflict.mended})


def test_every_remedy_names_what_it_changes() -> None:
    for conflict in CONFLICTS:
        for name in conflict.mended:
            related = name in conflict.remedy or "leave" in conflict.remedy.lower() or "GPUs" in conflict.remedy
            assert related or name in conflict.names or name == "merge_lora_weights", conflict


@pytest.mark.parametrize("machine", [None, CPU, GPU])
def test_the_defaults_go_together_everywhere(machine: Any) -> None:
    check(stage({}), machine)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as refused:
        stage({"lora_r": 16, "early_stopping_patience": 3}).check()
    assert len(str(refused.value).splitlines()) == 2


def test_a_message_says_what_was_given() -> None:
    with pytest.raises(UserError) as refused:
        stage({"lora_target_modules": "query", "merge_lora_weights": False}).check()
    assert str(refused.value) == (
        "lora_target_modules=query, merge_lora_weights=false: no effect without apply_lora=true. "
        "Set apply_lora=true, or leave out what is named."
    )


def test_values_of_the_machine_are_not_asked_for_where_a_run_is_described() -> None:
    """A laptop without a GPU describes a run for a machine with eight."""
    stage({"precision": "fp16", "number_of_gpu_to_use_finetuning": 8, "attention": "flash_attention_2"}).check()


def test_the_table_is_walked_without_torch() -> None:
    code = (
        "import sys, steps\n"
        "stage = steps.load('finetune', 'text_classification')\n"
        "stage(model_selector_output='m', preprocess_output='p', apply_deepspeed=True).check()\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_there_are_entries_for_both_moments() -> None:
    assert {conflict.when == AT_ONCE for conflict in CONFLICTS} == {True, False}
