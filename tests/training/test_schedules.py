"""Each schedule of the learning rate that transformers offers has rates of its own, or says why it is not offered."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import SchedulerType, TrainerCallback

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.tracking import Run
from tuneport.training.parameters import TrainingParams
from tuneport.training.train import train

SCHEDULE = TrainingParams.ports()["lr_scheduler_type"]
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")


class Rates(TrainerCallback):  # type: ignore[misc]
    """The rate that each step was made with, and the schedule."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self.schedule: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.schedule = kwargs["lr_scheduler"]
        self.found.append(kwargs["optimizer"].param_groups[0]["lr"])


def rates(still: SimpleNamespace, output: Path, metric: str = "loss", **values: Any) -> Rates:
    found, task = Rates(), "text_classification"
    stage = steps.load("finetune", task)(
        model_selector_output=still.model,
        preprocess_output=still.rows,
        **{
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 12,
            "evaluation_strategy": "steps",
            **values,
        },
    )
    stage.check()
    train(
        tasks.load(task),
        still.model,
        Prepared(still.rows),
        stage,
        metric_for_best_model=metric,
        output=output,
        run=Run(),
        callbacks=[found],
    )
    return found


def test_the_choices_and_the_refused_are_transformers_own() -> None:
    assert {*SCHEDULE.choices, *SCHEDULE.refused} - {""} == {schedule.value for schedule in SchedulerType}
    assert not {*SCHEDULE.choices} & {*SCHEDULE.refused}


@pytest.mark.parametrize("name", SCHEDULE.refused)
def test_a_schedule_that_needs_more_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=f"^lr_scheduler_type='{name}': needs .*; expected one of '', linear, "):
        steps.load("finetune", "text_classification")(
            model_selector_output="m", preprocess_output="d", lr_scheduler_type=name
        )


def test_each_schedule_has_rates_of_its_own(still: SimpleNamespace, tmp_path: Path) -> None:
    found = {}
    for name in SCHEDULE.choices:
        values = {"lr_scheduler_type": name, "learning_rate": 1e-3, "max_steps": 6}
        if name == "reduce_lr_on_plateau":
            values |= {"max_steps": 13, "eval_steps": 1, "learning_rate": 1e-7}  # the loss gets no better
        if name not in WITHOUT_WARMUP:
            values["warmup_steps"] = 2
        made = rates(still, tmp_path / f"of {name}", **values)
        found[name] = [rate / values["learning_rate"] for rate in made.found]
    assert found[""] == found["linear"] == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert found["constant"] == [1] * 6 and found["constant_with_warmup"] == [0, 0.5, 1, 1, 1, 1]
    assert found["reduce_lr_on_plateau"] == pytest.approx([1] * 12 + [0.1])
    assert found.pop("cosine_with_restarts") == found["cosine"]  # a single cycle, unless it is told of more
    assert len({tuple(f"{rate:.6f}" for rate in of_one) for of_one in found.values()}) == len(found) - 1


@pytest.mark.parametrize(("metric", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_a_plateau_is_seen_in_the_metric_s_own_direction(
    metric: str, mode: str, still: SimpleNamespace, tmp_path: Path
) -> None:
    values = {"lr_scheduler_type": "reduce_lr_on_plateau", "max_steps": 13, "eval_steps": 1}
    assert rates(still, tmp_path / "output", metric, **values).schedule.mode == mode


def test_a_checkpoint_has_the_rate_that_its_own_evaluation_lowered(still: SimpleNamespace, tmp_path: Path) -> None:
    values = {"lr_scheduler_type": "reduce_lr_on_plateau", "max_steps": 13, "eval_steps": 1}
    rates(still, tmp_path / "output", **values)
    optimizer = torch.load(tmp_path / "output" / "checkpoints" / "checkpoint-12" / "optimizer.pt", weights_only=True)
    default = float(TrainingParams.ports()["learning_rate"].default)
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(default / 10)
