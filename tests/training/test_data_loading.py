"""Training batches come from worker processes where they are wanted, and are the same ones."""

from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import TrainerCallback

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.tracking import Run
from tuneport.training.trainer import train


class CountChildren(TrainerCallback):  # type: ignore[misc]
    """How many processes of its own the training has after a step."""

    most = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.most = max(self.most, len(psutil.Process().children()))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_dataloader_num_workers_are_processes_that_change_no_weight(
    imported_model: Path, prepared_questions: Path, tmp_path: Path
) -> None:
    weights, children = [], []
    for workers in (0, 2):
        stage: Any = steps.load("finetune", "text_classification")(
            model_selector_output=imported_model,
            preprocess_output=prepared_questions,
            per_device_train_batch_size=8,
            max_steps=3,
            dataloader_num_workers=workers,
        )
        counted, output = CountChildren(), tmp_path / str(workers)
        train(
            tasks.load("text_classification"),
            imported_model,
            Prepared(prepared_questions),
            stage,
            metric_for_best_model="loss",
            output=output,
            run=Run(),
            callbacks=[counted],
        )
        children.append(counted.most)
        weights.append((output / "model.safetensors").read_bytes())
    assert children[1] - children[0] == 2
    assert weights[0] == weights[1]
