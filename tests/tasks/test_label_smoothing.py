"""In every task the smoothed loss is (1 - ε)·nll + ε·(mean over classes of -log p), and so are its gradients."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.tracking import Run
from tuneport.training.machine import here
from tuneport.training.model import label_smoothing
from tuneport.training.padding_free import choose
from tuneport.training.train import train

FACTOR = 0.3
every_task = pytest.mark.parametrize("name", tasks.names())


def loaded(name: str, ready: Any) -> Any:
    """The task's model, whose new head has the same weights each time, and a batch of rows of several lengths."""
    task, prepared = tasks.load(name), Prepared(ready.prepared)
    torch.manual_seed(0)
    model = task.load_model(ready.model, prepared.info.meta).eval()  # no dropout, gradients all the same
    rows = sorted(prepared.encoded("train").to_pylist(), key=lambda row: len(row["input_ids"]))
    collate = task.collator(model, prepared.info.meta, prepared.info.pad_to)
    return SimpleNamespace(model=model, collate=collate, rows=[rows[0], rows[-1], rows[len(rows) // 2]])


def by_formula(output: Any, batch: dict[str, torch.Tensor], shifted: bool) -> torch.Tensor:
    """Written out: from the logits of each labelled place, and for spans of each token that is no padding."""
    if "start_positions" in batch:
        kept = batch["attention_mask"].bool()
        places = [
            (row[mask], place)
            for kind in ("start", "end")
            for row, mask, place in zip(output[f"{kind}_logits"], kept, batch[f"{kind}_positions"], strict=True)
        ]
    else:
        logits, labels = output["logits"], batch["labels"]
        if labels.dim() == 2:
            logits, labels = (logits[:, :-1], labels[:, 1:]) if shifted else (logits, labels)
            logits, labels = logits.flatten(0, 1), labels.flatten()
        places = [(row, label) for row, label in zip(logits, labels, strict=True) if label >= 0]
    found = []
    for row, label in places:
        log = row.log_softmax(-1)
        found.append(-(1 - FACTOR) * log[label] - FACTOR * log.mean())
    return torch.stack(found).mean()


@pytest.mark.parametrize("padding_free", [True, False])
@every_task
def test_loss_and_gradients_are_those_of_the_formula(
    name: str, padding_free: bool, ready: Callable[[str], Any]
) -> None:
    plain, smoothed = loaded(name, ready(name)), loaded(name, ready(name))
    label_smoothing.smooth(smoothed.model, FACTOR)
    unpadded = choose.choose(smoothed.model, ("sdpa", ""), wanted=padding_free, pad_to=None, label_smoothing=FACTOR)
    assert unpadded.enabled == padding_free
    config = plain.model.config
    shifted = plain.model.can_generate() and not config.is_encoder_decoder
    assert unpadded.gives_losses == (padding_free and plain.model.can_generate())

    batch = plain.collate(plain.rows)
    expected = by_formula(plain.model(**batch), batch, shifted)
    found = smoothed.model(**unpadded.collator(smoothed.collate)(smoothed.rows))["loss"]
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(found.item() - plain.model(**batch)["loss"].item()) > 1e-4
    expected.backward()
    found.backward()
    gradients = [{n: p.grad for n, p in of.model.named_parameters() if p.grad is not None} for of in (plain, smoothed)]
    assert gradients[0].keys() == gradients[1].keys()
    for weight, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][weight], atol=1e-5), weight


@pytest.mark.parametrize("padding_free", [True, False])
@every_task
def test_the_loss_of_an_evaluation_is_not_smoothed(name: str, padding_free: bool, ready: Callable[[str], Any]) -> None:
    plain, smoothed = loaded(name, ready(name)), loaded(name, ready(name))
    label_smoothing.smooth(smoothed.model, FACTOR)
    unpadded = choose.choose(smoothed.model, ("sdpa", ""), wanted=padding_free, pad_to=None, label_smoothing=FACTOR)
    with torch.no_grad():
        losses = [
            plain.model(**plain.collate(plain.rows))["loss"].item(),
            smoothed.model(**unpadded.collator(smoothed.collate)(smoothed.rows))["loss"].item(),
        ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_labels_that_do_not_exclude_one_another_are_refused(
    imported_model: Path, task_rows: list[dict[str, Any]], write_jsonl: Any, tmp_path: Path
) -> None:
    rows = [{"text": row["text"], "labels": [row["label"]]} for row in task_rows[:40]]
    task, inputs = "text_classification", {"model_selector_output": imported_model}
    execute(
        steps.load("preprocess", task)(
            **inputs,
            train_file_path=write_jsonl(tmp_path / "rows.jsonl", rows),
            sentence1_key="text",
            label_key="labels",
            multi_label=True,
            preprocess_output=tmp_path / "prepared",
        )
    )
    stage = steps.load("finetune", task)(**inputs, preprocess_output=tmp_path / "prepared", label_smoothing_factor=0.1)
    with pytest.raises(
        UserError, match=r"label_smoothing_factor=0.1: the labels are numbers, or with multi_label=true .* Leave it 0\."
    ):
        train(
            tasks.load(task),
            imported_model,
            Prepared(tmp_path / "prepared"),
            stage,
            metric_for_best_model="loss",
            output=tmp_path / "output",
            run=Run(),
        )


@pytest.mark.parametrize(
    ("problem", "exclusive"),
    [
        ("single_label_classification", True),
        (None, True),
        ("multi_label_classification", False),
        ("regression", False),
    ],
)
def test_a_task_s_kind_of_labels_is_known_by_its_model(problem: str | None, exclusive: bool) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    size = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    model = BertForSequenceClassification(BertConfig(**size, problem_type=problem))
    assert here(model).exclusive_classes == exclusive
