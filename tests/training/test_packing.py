"""Packs hold every row once within their tokens, in few packs; the rows of a step are dealt out evenly."""

import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training import auto_batch_size, packing, sampler
from tuneport.training.packing import Packs, best_fit_decreasing, token_counts
from tuneport.training.train import train


def log_normal(rows: int, longest: int) -> Any:
    drawn = np.random.default_rng(0).lognormal(4, 1, rows).astype(np.int64)
    return np.clip(drawn, 1, longest)


def dataset(lengths: Any, targets: Any = None) -> Dataset:
    columns: dict[str, Any] = {"input_ids": [[1] * int(length) for length in lengths]}
    columns["labels"] = [0] * len(lengths) if targets is None else [[1] * int(length) for length in targets]
    return Dataset.from_dict(columns)


@pytest.mark.parametrize("capacity", [128, 512, 5000])
def test_packs_hold_every_row_once_and_little_room(capacity: int) -> None:
    lengths = log_normal(3000, 128)
    packs = best_fit_decreasing(lengths, capacity)
    assert sorted(row for pack in packs for row in pack) == list(range(3000))
    assert all(lengths[pack].sum() <= capacity for pack in packs)
    assert len(packs) <= -(-lengths.sum() // capacity) * 1.02 + 1


def one_by_one(lengths: Any, capacity: int) -> list[list[int]]:
    """The packs as their definition has them: row after row, each into the pack with the least room that suffices."""
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        room = min((room for room in by_room if room >= length), default=None)
        if room is None:
            room, pack = max(capacity, length), len(packs)
            packs.append([place])
        else:
            pack = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
            packs[pack].append(place)
        by_room.setdefault(room - length, []).append(pack)
    return packs


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize("seed", range(8))
def test_packs_of_many_rows_at_once_are_those_of_one_row_after_the_other(
    seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", chunk)
    rng = np.random.default_rng(seed)
    capacity, kinds = int(rng.integers(1, 200)), int(rng.integers(1, 40))
    lengths = rng.choice(rng.integers(0 if seed == 3 else 1, capacity + 20, kinds), 700)
    order = rng.permutation(700)
    found = best_fit_decreasing(lengths, capacity, order)
    assert [order[pack].tolist() for pack in one_by_one(lengths[order], capacity)] == [pack.tolist() for pack in found]


def test_rows_of_like_length_are_drawn_in_the_order_of_transformers() -> None:
    for rows, step in ((1000, 8), (37, 8), (5, 8), (4096, 4)):
        lengths = np.random.default_rng(rows).integers(1, 50, rows).astype(np.int32)
        drawn = sampler.similar(lengths, step)(torch.Generator().manual_seed(3))
        expected = get_length_grouped_indices(lengths.tolist(), step, generator=torch.Generator().manual_seed(3))
        assert list(sampler.EpochSampler(rows, 3, lambda _, d=drawn: d)) == expected


def test_the_order_of_many_rows_and_their_packs_take_few_bytes_a_row() -> None:
    rows = 300_000
    packs = Packs.__new__(Packs)
    packs.rows, packs.max_seq_length, packs.tokens = range(rows), 512, log_normal(rows, 512).astype(np.int32)  # type: ignore[assignment]
    tracemalloc.start()
    drawn: Any = sampler.packed(packs)(torch.Generator().manual_seed(0))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (held + packs.tokens.nbytes) / rows < 16
    assert drawn.made.rows.dtype == np.int32
    assert sum(map(len, drawn)) == rows


def test_each_row_goes_where_the_least_room_is_left_that_suffices() -> None:
    packs = best_fit_decreasing(np.array([2, 7, 3, 6, 10, 1]), 10)
    assert sorted(map(sorted, packs)) == [[0, 3, 5], [1, 2], [4]]  # 6+2+1, 7+3, 10


def test_a_row_of_more_tokens_than_a_pack_stands_alone() -> None:
    packs = best_fit_decreasing(np.array([12, 3, 4, 30]), 10)
    assert sorted(map(sorted, packs)) == [[0], [1, 2], [3]]


def test_targets_count_where_they_are_tokens_of_their_own() -> None:
    rows = dataset([3, 5], targets=[2, 9])
    assert token_counts(rows, targets=True).tolist() == [5, 14]
    assert token_counts(rows, targets=False).tolist() == [3, 5]
    assert token_counts(dataset([3, 5]), targets=True).tolist() == [3, 5]


def test_an_epoch_has_other_packs_of_as_large_a_number_and_every_row_once() -> None:
    packs = Packs(dataset(log_normal(500, 64)), 64, targets=False)
    drawn = sampler.EpochSampler(len(packs), 0, sampler.packed(packs))
    first = list(drawn)
    assert first == list(drawn)
    drawn.epoch = 1
    second = list(drawn)
    assert {frozenset(pack) for pack in first} != {frozenset(pack) for pack in second}
    for found in (first, second):
        assert len(found) == len(packs) == len(drawn)
        assert sorted(row for pack in found for row in pack) == list(range(500))
    lengths = [len(row["input_ids"]) for row in packs.__getitems__(first[:3])]
    assert lengths == [packs.tokens[row] for pack in first[:3] for row in pack]


def test_rows_of_a_step_are_dealt_out_to_batches_of_about_as_many_tokens() -> None:
    lengths = log_normal(8 * 4 * 20 + 5, 512)
    drawn = sampler.shuffled(len(lengths))(torch.Generator().manual_seed(0))
    dealt = sampler.balanced(drawn, lengths, batch=8, batches=4)
    most, most_at_random = [], []
    for start in range(0, 8 * 4 * 20, 32):
        assert sorted(dealt[start : start + 32]) == sorted(drawn[start : start + 32])
        for found, into in ((dealt, most), (drawn, most_at_random)):
            tokens = [sum(lengths[row] for row in found[start + 8 * i : start + 8 * (i + 1)]) for i in range(4)]
            into.append(max(tokens) / (sum(tokens) / 4))
    assert dealt[8 * 4 * 20 :].tolist() == drawn[8 * 4 * 20 :].tolist()
    assert np.mean(most) < 1.05
    assert np.mean(most_at_random) > 1.3


def test_the_heaviest_packs_are_tried_for_memory() -> None:
    rng = random.Random(0)
    packs = Packs(dataset([rng.randrange(1, 60) for _ in range(300)]), 64, targets=False)
    tokens = [sum(len(row["input_ids"]) for row in pack) for pack in auto_batch_size.longest_first(packs)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] == 64 and len(tokens) == len(packs)


def finetune(model: Path, rows: Path, output: Path, **values: Any) -> Any:
    stage = steps.load("finetune", "text_classification")(model_selector_output=model, preprocess_output=rows, **values)
    return train(
        tasks.load("text_classification"),
        model,
        Prepared(rows),
        stage,
        metric_for_best_model="loss",
        output=output,
        run=Run(),
    )


def test_a_batch_of_all_packs_is_the_batch_of_all_rows(still: Any, tmp_path: Path) -> None:
    shared = {"learning_rate": 1e-2, "num_train_epochs": 3}
    packed = finetune(still.model, still.rows, tmp_path / "a", packing=True, per_device_train_batch_size=1000, **shared)
    padded = finetune(still.model, still.rows, tmp_path / "b", per_device_train_batch_size=96, **shared)
    assert packed.steps == padded.steps == 3
    assert packed.best_metric == pytest.approx(padded.best_metric, rel=1e-5)


def test_steps_are_as_many_as_the_packs_and_rows_are_counted(
    still: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "tuneport"):
        result = finetune(still.model, still.rows, tmp_path / "out", packing=True, num_train_epochs=2)
    (said,) = (record.message for record in caplog.records if record.message.startswith("packing: "))
    packs, capacity, rows = (int(word) for word in said.split() if word.isdigit())
    assert (result.steps, rows, capacity) == (2 * packs, 96, Prepared(still.rows).info.max_seq_length)
    assert result.samples_per_second * result.runtime_seconds == pytest.approx(2 * 96, rel=0.01)


def test_a_resume_within_an_epoch_goes_on_with_the_packs_that_are_left(still: Any, tmp_path: Path) -> None:
    shared = {"packing": True, "lr_scheduler_type": "constant", "learning_rate": 1e-3}
    shared |= {"evaluation_strategy": "steps", "eval_steps": 2}
    finetune(still.model, still.rows, tmp_path / "whole", max_steps=8, **shared)
    finetune(still.model, still.rows, tmp_path / "begun", max_steps=4, **shared)
    begun = str(tmp_path / "begun")
    result = finetune(
        still.model, still.rows, tmp_path / "resumed", max_steps=8, resume_from_checkpoint=begun, **shared
    )
    assert result.epochs < 1
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed


def test_packs_that_would_be_padded_are_refused(
    imported_model: Path, questions: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    stage = steps.load("preprocess", "text_classification")(
        model_selector_output=imported_model,
        train_file_path=write_jsonl(tmp_path / "rows.jsonl", questions),
        sentence1_key="text",
        label_key="label",
        pad_to_max_length=True,
        preprocess_output=tmp_path / "rows",
    )
    execute(stage)
    with pytest.raises(UserError, match=r"^packing=true: .*pad_to_max_length=true.*Set packing=false"):
        finetune(imported_model, tmp_path / "rows", tmp_path / "out", packing=True)
