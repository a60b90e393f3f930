"""A simulated step takes what a real one would, and what of it a process holds follows from how it is spread."""

import dataclasses as dc
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import steps
from tuneport.data.prepared import Prepared
from tuneport.serving.placement import Machine as HostMemory
from tuneport.stage import execute
from tuneport.training import auto_batch_size, forecast, rank_memory, recompute, train
from tuneport.training.distributed.waiting import Peers
from tuneport.training.memory import LiveStorages
from tuneport.training.parameters import TrainingParams
from tuneport.training.rank_memory import StepMemory, per_rank
from tuneport.training.simulate import Batch, Run, simulate

MB = 2**20
STEP = StepMemory(
    trained=100 * MB,
    frozen=0,
    weights=400 * MB,
    gradients=400 * MB,
    optimizer=800 * MB,
    peak=2_000 * MB,
    logits=50 * MB,
    quantizable=0,
    largest_layer=40 * MB,
)

HALF = dc.replace(STEP, weights=200 * MB, gradients=200 * MB, optimizer=400 * MB)  # with weights in 16 bits


def options(**values: Any) -> TrainingParams:
    return TrainingParams(**{"deepspeed": None, **values})


def test_storages_are_counted_while_something_holds_them() -> None:
    with LiveStorages() as counter:
        kept = torch.zeros(1000)
        view = kept[:10]  # no storage of its own
        torch.ones(5000) + 1
        assert (counter.total, counter.peak) == (4_000, 44_000)
    del kept
    assert counter.total == 4_000
    del view
    assert counter.total == 0


def test_room_for_all_weights_is_what_a_process_can_have_beside_what_it_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(HostMemory, "host", lambda self: 400)  # stands for a machine with so few free bytes
    args = SimpleNamespace(world_size=2, metric_for_best_model="rougeL")
    trainer: Any = SimpleNamespace(args=args, peers=Peers())
    layer = torch.nn.Linear(10, 10, bias=False)  # of 400 bytes
    with train._each_alone(layer, trainer, options(fsdp="full_shard")) as alone:
        assert not alone
    assert "not every process has room for all weights" in caplog.text


@pytest.fixture
def run(imported_model: Path, prepared_questions: Path) -> Any:
    def of(**values: Any) -> Run:
        return Run(
            task_name="text_classification",
            base=imported_model,
            prepared=prepared_questions,
            options=TrainingParams(**{"gradient_checkpointing": "false", **values}),
            metric_for_best_model="loss",
        )

    return of


@pytest.mark.slow
def test_a_step_takes_its_weights_gradients_and_states_and_more_with_more_rows(run: Any) -> None:
    few, many = simulate(run(), [Batch(rows=2, tokens=32), Batch(rows=16, tokens=32)])
    assert (
        few.frozen == 0
        and few.gradients == 4 * few.trained
        and few.optimizer == pytest.approx(8 * few.trained, rel=0.01)
    )
    assert few.activations < many.activations and few.weights == many.weights
    (adapted,) = simulate(run(apply_lora=True), [Batch(rows=2, tokens=32)])
    assert 0 < adapted.trained < adapted.frozen and adapted.gradients == 4 * adapted.trained
    assert 0 < adapted.quantizable <= adapted.frozen


def test_zero_and_fsdp_spread_what_they_say() -> None:
    alone, ddp = per_rank(STEP, options(), 1), per_rank(STEP, options(), 4)
    assert alone.total == STEP.peak and ddp.total == STEP.peak + STEP.gradients  # its buckets
    zero = [
        per_rank(HALF, options(apply_deepspeed=True, deepspeed_stage=stage, precision="bf16"), 4)
        for stage in ("1", "2", "3")
    ]
    assert [rank.weights // MB for rank in zero] == [200, 200, 50]
    assert [rank.gradients // MB for rank in zero] == [200, 50, 50]
    assert {rank.optimizer // MB for rank in zero} == {300}  # 32-bit weights and two states
    offloaded = options(apply_deepspeed=True, deepspeed_stage="3", precision="bf16", deepspeed_offload=True)
    assert per_rank(HALF, offloaded, 4).optimizer == 0 and per_rank(HALF, offloaded, 4).host // MB == 400 + 200
    fsdp = per_rank(STEP, options(fsdp="full_shard"), 4)
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (100 * MB, 100 * MB, 200 * MB)
    assert fsdp.host == 400 * MB and alone.host == 800 * MB + 400 * MB


def test_states_of_optimizers_that_only_a_gpu_runs_are_computed() -> None:
    assert per_rank(STEP, options(optim="adamw_8bit"), 1).optimizer == pytest.approx(203 * MB, rel=0.01)
    assert (
        rank_memory.simulated_optimizer("adamw_8bit") == "sgd"
        and rank_memory.simulated_optimizer("adafactor") == "adafactor"
    )


@pytest.mark.slow
@pytest.mark.parametrize("available", [1_000, 10**11])
def test_activations_are_recomputed_only_where_they_do_not_fit(
    imported_model: Path,
    prepared_questions: Path,
    tmp_path: Path,
    available: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    stage = steps.load("finetune", "text_classification")(
        model_selector_output=imported_model,
        preprocess_output=prepared_questions,
        pytorch_model_folder=tmp_path / "out",
        max_steps=2,
    )
    with pytest.MonkeyPatch.context() as machine:
        machine.setattr(forecast, "available_memory", lambda processes: available)  # stands for one of that memory
        execute(stage)
    said = "gradient_checkpointing: on, as a step of 1 × " in caplog.text
    assert said == (available == 1_000)


@pytest.mark.slow
def test_batch_sizes_that_a_simulated_step_says_are_too_large_are_not_tried(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    trained = run(per_device_train_batch_size=64)
    tokens = sorted(Prepared(trained.prepared).encoded("train")["length"].to_pylist())[-64:]
    fits, too_many = simulate(trained, [Batch(rows=16, tokens=max(tokens)), Batch(rows=32, tokens=sum(tokens) // 64)])
    between = (fits.peak + too_many.peak) / 2 / auto_batch_size.TOLERANCE
    monkeypatch.setattr(forecast, "available_memory", lambda processes: int(between))  # stands for one of that memory
    stage = steps.load("finetune", "text_classification")(
        model_selector_output=trained.base,
        preprocess_output=trained.prepared,
        pytorch_model_folder=tmp_path / "out",
        per_device_train_batch_size=64,
        gradient_checkpointing="false",
        auto_find_batch_size=True,
        max_steps=1,
    )
    execute(stage)
    found = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (16, 4)
    assert "auto_find_batch_size: batches of 64, 32 would take " in caplog.text
    assert "do not fit into memory" not in caplog.text  # none was tried in vain


@pytest.mark.slow
def test_a_model_that_cannot_be_simulated_is_trained_all_the_same(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    absent = dc.replace(run(), base=Path("absent"))
    monkeypatch.setattr(forecast, "available_memory", lambda processes: 1_000)
    trainer = SimpleNamespace(
        model=transformers.BertModel(
            transformers.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
        ),
        args=SimpleNamespace(world_size=1, activation_checkpointing=False),
    )
    assert not recompute._needed(trainer, absent)  # type: ignore[arg-type]
    assert "off, as a step of this model cannot be simulated" in caplog.text
