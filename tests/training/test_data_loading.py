"""Training batches come from worker processes where they are expected, and are the same ones."""

from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import TrainerCallback

import steps
from tuneport import tasks
from tuneport.data import shards
from tuneport.data.prepared import Prepared
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.train import train


class CountChildren(TrainerCallback):  # type: ignore[misc]
    """How many processes of its own the training has after a step."""

    most = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.most = max(self.most, len(psutil.Process().children()))


def trained(model: Path, rows: Path, output: Path, callbacks: Any = (), **values: Any) -> bytes:
    """The weights after three steps."""
    values = {"per_device_train_batch_size": 8, "max_steps": 3, **values}
    stage = steps.load("finetune", "text_classification")(model_selector_output=model, preprocess_output=rows, **values)
    train(
        tasks.load("text_classification"),
        model,
        Prepared(rows),
        stage,
        metric_for_best_model="loss",
        output=output,
        run=Run(),
        callbacks=callbacks,
    )
    return (output / "model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_dataloader_num_workers_are_processes_that_change_no_weight(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    weights, children = [], []
    for workers in (0, 2):
        counted = CountChildren()
        output = tmp_path / str(workers)
        weights.append(trained(imported_model, prepared_questions, output, [counted], dataloader_num_workers=workers))
        children.append(counted.most)
    assert children[1] - children[0] == 2
    assert weights[0] == weights[1]


def test_rows_in_several_files_are_the_rows_in_one(
    imported_model: Path,
    questions: list[dict[str, str]],
    write_jsonl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, prepared = [], []
    for name, size in (("one", 512 << 20), ("several", 1)):
        monkeypatch.setattr(shards, "SHARD_BYTES", size)
        stage = steps.load("preprocess", "text_classification")(
            model_selector_output=imported_model,
            train_file_path=write_jsonl(tmp_path / "rows.jsonl", questions),
            sentence1_key="text",
            label_key="label",
            batch_size=10,
            preprocess_output=tmp_path / name,
        )
        execute(stage)
        prepared.append(Prepared(tmp_path / name))
        weights.append(trained(imported_model, tmp_path / name, tmp_path / f"{name} tuned"))
    one, several = prepared
    assert (len(one.encoded_files("train")), len(several.encoded_files("train"))) == (1, 10)
    assert len({*several.encoded_files("test")} - {*several.encoded_files("train")}) == 2
    for split in ("train", "validation", "test"):
        assert several.encoded(split).equals(one.encoded(split))
        assert several.rows(split) == one.rows(split)
    assert weights[0] == weights[1]
