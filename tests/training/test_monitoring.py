"""What training takes in is counted by the row and the token; what is no number stops it, with the rows named."""

import faulthandler
import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import multiprocessing
from transformers import TrainerCallback

import steps
from tuneport import tasks
from tuneport.artifacts import CustomModel, Model
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.batch_counts import CONTENTS, Counts, summed, with_contents
from tuneport.training.callbacks import peak_memory
from tuneport.training.checkpoint.checkpoint_folder import CheckpointFolder
from tuneport.training.monitoring import ObservedStep, _of_any_rank, first_problem
from tuneport.training.sampler import EpochSampler, shuffled
from tuneport.training.train import train

TASK = "text_classification"
PLANTED = "q"  # a token of the tiny model that no other row has
AT_STEP = 6  # where the planted row's turn is
SEED = 42
PATIENCE = 300  # seconds that a process of two may take


class Recorded(Run):
    """A run that keeps its metrics by step."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.metrics[step or 0] = {name.removeprefix("train/"): value for name, value in metrics.items()}


def train_on(model: Path, prepared: Path, output: Path, *callbacks: TrainerCallback, **values: Any) -> Recorded:
    stage: Any = steps.load("finetune", TASK)(
        model_selector_output=model,
        preprocess_output=prepared,
        **{"per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": SEED} | values,
    )
    run = Recorded()
    train(
        tasks.load(TASK),
        model,
        Prepared(prepared),
        stage,
        metric_for_best_model="loss",
        output=output,
        run=run,
        callbacks=callbacks,
    )
    return run


def batches(prepared: Path, size: int) -> list[list[int]]:
    """The lengths of the training rows, in the batches of the first epoch."""
    lengths = Prepared(prepared).encoded("train").column("length").to_pylist()
    order = list(EpochSampler(len(lengths), SEED, shuffled(len(lengths))))
    return [[lengths[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def assert_counted(numbers: Mapping[str, float], taken: list[list[int]], *, padded: bool = True) -> None:
    tokens, rows = sum(map(sum, taken)), sum(map(len, taken))
    computed_tokens = sum(len(batch) * max(batch) for batch in taken) if padded else tokens
    assert numbers["tokens_per_second"] / numbers["samples_per_second"] == pytest.approx(tokens / rows)
    assert numbers["padding_share"] == pytest.approx(1 - tokens / computed_tokens)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_tokens_rows_and_padding_are_those_of_the_steps_since_the_last_line(
    imported_model: Path, prepared_questions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With gradient accumulation, in other processes' batches, after a resume, and where an epoch is logged."""
    caplog.set_level(logging.INFO, logger="tuneport.finetune")
    taken = batches(prepared_questions, 4)
    shared = {"gradient_accumulation_steps": 2, "evaluation_strategy": "steps", "eval_steps": 3, "logging_steps": 2}
    shared |= {"dataloader_num_workers": 2, "padding_free": False}
    recorded = train_on(imported_model, prepared_questions, tmp_path / "out", max_steps=5, **shared)
    assert [*recorded.metrics] == [2, 4]
    for step, numbers in recorded.metrics.items():
        assert_counted(numbers, taken[(step - 2) * 2 : step * 2])
        assert {"loss", "learning_rate", "grad_norm", "seconds_left", "cpu_memory_peak_gb"} <= numbers.keys()
        assert ("gpu_memory_peak_gb" in numbers) == torch.cuda.is_available()
    if not torch.cuda.is_available():
        assert "mfu" not in recorded.metrics[4], "a CPU's peak is not known"
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("[4/5] loss")]
    for part in ("learning rate", "gradient norm", "tokens/s", "samples/s", "% padding", "memory", "GB", "left"):
        assert part in line

    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-5")
    resumed = train_on(
        imported_model,
        prepared_questions,
        tmp_path / "out",
        resume_from_checkpoint="true",
        num_train_epochs=1,
        **shared | {"logging_strategy": "epoch"},
    )
    assert [*resumed.metrics] == [len(taken) // 2]
    assert_counted(resumed.metrics[len(taken) // 2], taken[3 * 2 :])
    assert resumed.metrics[len(taken) // 2]["seconds_left"] == 0


def test_without_padding_none_is_counted_and_tokens_are_the_same(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    values = {"max_steps": 3, "logging_steps": 3, "padding_free": True}
    recorded = train_on(imported_model, prepared_questions, tmp_path, **values)
    assert_counted(recorded.metrics[3], batches(prepared_questions, 4)[:3], padded=False)


def test_an_encoder_decoder_s_targets_count_as_tokens_and_a_row_s_label_does_not() -> None:
    rows = [
        {"row_id": "a:1", "input_ids": [1, 2, 3], "labels": [5]},
        {"row_id": "a:2", "input_ids": [1], "labels": [5, 6]},
    ]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": torch.zeros(2, 2, dtype=torch.long)}

    own = with_contents(collate, own_targets=True)(rows)[CONTENTS]
    assert (own.row_ids, own.tokens, own.computed_tokens, own.squared_lengths) == (("a:1", "a:2"), 4 + 3, 6 + 4, 9 + 1)
    shared = with_contents(collate, own_targets=False)(rows)[CONTENTS]
    assert (shared.tokens, shared.computed_tokens) == (4, 6)
    assert pickle.loads(pickle.dumps(own)) == own, "it comes from another process"


def _rank(rank: int, port: int, results: Any) -> None:
    faulthandler.dump_traceback_later(PATIENCE - 60)  # says where it waits
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = torch.distributed.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=PATIENCE))
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    device = torch.device("cpu")
    counts = summed(Counts(rows=1 + rank, tokens=10, computed_tokens=20, squared_lengths=5), 2, device)
    found = _of_any_rank("step 3" if rank == 1 else None, 2, device)
    arguments: Any = type("Arguments", (), {"device": device, "world_size": 2})
    results.put((counts, found, _of_any_rank(None, 2, device), peak_memory(arguments)["cpu_memory_peak_gb"]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_add_up_their_counts_and_stop_together() -> None:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    results = context.Queue()
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [context.Process(target=_rank, args=(rank, server.port, results), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    first, second = (results.get(timeout=PATIENCE) for _ in ranks)
    for rank in ranks:
        rank.join()
    assert first == second
    assert first[:3] == (Counts(rows=3, tokens=20, computed_tokens=40, squared_lengths=10), "step 3", None)


@pytest.fixture(scope="module")
def planted(
    tiny_model: Path, questions: Any, write_jsonl: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A model that overflows at one token, and rows of which one has it: its turn is at step `AT_STEP`."""
    folder = tmp_path_factory.mktemp("planted")
    source = Path(shutil.copytree(tiny_model, folder / "source"))
    weights = load_file(source / "model.safetensors")
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    row = weights["embeddings.word_embeddings.weight"][vocabulary[PLANTED]]
    row[::2], row[1::2] = 3e38, -3e38  # numbers, but their differences are none
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    model = folder / "model"
    execute(steps.load("model_import")(pytorch_model_path=CustomModel(source), model_selector_output=Model(model)))
    rows = [dict(row) for row in questions[:60]]
    rows[[*EpochSampler(len(rows), SEED, shuffled(len(rows)))][4 * (AT_STEP - 1) + 1]]["text"] += f" {PLANTED}"
    prepared = folder / "prepared"
    stage = steps.load("preprocess", TASK)(
        model_selector_output=model,
        train_file_path=write_jsonl(folder / "rows.jsonl", rows),
        validation_file_path=write_jsonl(folder / "validation.jsonl", questions[60:72]),
        test_file_path=write_jsonl(folder / "test.jsonl", questions[72:84]),
        sentence1_key="text",
        label_key="label",
        preprocess_output=prepared,
    )
    execute(stage)
    return model, prepared


def test_a_loss_that_is_no_number_stops_with_its_rows_and_keeps_the_last_good_checkpoint(
    planted: tuple[Path, Path], tmp_path: Path
) -> None:
    """The check comes steps after the row, and after steps whose losses are no numbers either."""
    model, prepared = planted
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "evaluation_strategy": "steps",
        "eval_steps": 5,
        "logging_steps": 9,
        "seed": SEED,
    }
    kept = tmp_path / ".out.partial" / "checkpoints"
    row_ids = Prepared(prepared).encoded("train").column("row_id").to_pylist()
    order = [*EpochSampler(60, SEED, shuffled(60))]
    bad = [row_ids[i] for i in order[4 * (AT_STEP - 1) :][:2]]  # the second of them is the planted one
    for resume in ("false", "true"):
        stage = steps.load("finetune", TASK)(
            model_selector_output=model,
            preprocess_output=prepared,
            pytorch_model_folder=tmp_path / "out",
            resume_from_checkpoint=resume,
            **values,
        )
        with pytest.raises(UserError) as refused:
            execute(stage)
        message = str(refused.value)
        assert message.startswith(f"step {AT_STEP}: the loss is nan on these training rows: {', '.join(bad)}. ")
        assert "learning_rate (now 2e-05)" in message and "resume_from_checkpoint=true" in message
        assert not (tmp_path / "out").exists()
        found = CheckpointFolder(path=kept).last_whole()
        assert found is not None and found.step == 5


class SpoilGradient(TrainerCallback):  # type: ignore[misc]
    """From a step on, one weight's gradient is infinite; the losses before and at that step are in order."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            next(kwargs["model"].parameters()).register_hook(lambda gradient: gradient * math.inf)


class SpoilWeight(TrainerCallback):  # type: ignore[misc]
    """After the last step, before it is evaluated, one weight is infinite."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            with torch.no_grad():
                next(kwargs["model"].parameters())[0, 0] = math.inf


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (SpoilGradient(), "step 3: the gradient's norm is (nan|inf) on these training rows: "),
        (SpoilWeight(), "step 4: the weights are not finite after these training rows: "),
    ],
)
def test_a_gradient_or_a_weight_that_is_no_number_stops_before_a_checkpoint_is_written(
    spoil: TrainerCallback, what: str, imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{what}questions.jsonl:[0-9]+, "):
        train_on(imported_model, prepared_questions, tmp_path, spoil, max_steps=4, logging_steps=2)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_batch_of_many_rows_is_named_by_its_first_ones() -> None:
    step = ObservedStep(number=7, batches=[(tuple(f"a.csv:{i}" for i in range(50)), torch.tensor(math.nan))])
    problem = first_problem([ObservedStep(number=6, batches=[(("a.csv:9",), torch.tensor(1.0))]), step])
    assert problem is not None and problem.startswith("step 7: the loss is nan on these training rows: a.csv:0, ")
    assert problem.endswith("a.csv:19 and 30 more")
