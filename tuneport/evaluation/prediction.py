"""Answers of a model to the rows of a split, and whether the model came with a head for them."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import time
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.modeling.likelihood import likelihoods
from tuneport.modeling.merged_adapters import is_adapter, load_merged
from tuneport.tasks.task import Meta, Row, Split, Task

log = logging.getLogger("tuneport.model_evaluation")
BLOCK_ROWS = 2048  # between two progress lines
PROGRESS_SECONDS = 10.0


def predict(
    task: Task,
    folder: Path,
    tokenizer: Path,
    meta: Meta,
    split: Split,
    *,
    base: Path,
    questions: Mapping[int, Row],
    settings: Row,
    batch_size: int,
    seed: int,
    ignore_mismatched_sizes: bool,
    name: str,
) -> list[Row]:
    """Load the model in ``folder`` with the task's head, on the GPU where there is one, and answer the rows.

    ``base`` is the base model of one that is an adapter.
    ``questions`` are what is asked, by the place of the row; the answer to a row without one is empty.
    A head that the base model lacks gets the weights that ``seed`` gives it, and with ``ignore_mismatched_sizes`` so
    does what it has in another size. Where the task asks for it, the answers
    also hold the `Likelihood` of the encoded labels, under the names of its fields. ``name`` is for the progress lines.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    is_base = folder == base
    if is_adapter(folder):
        model = load_merged(folder, base)
    else:
        model = task.load_model(
            folder, meta, new_head=is_base, ignore_mismatched_sizes=is_base and ignore_mismatched_sizes
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = task.predictor(str(tokenizer), settings, model=model.to(device), batch_size=batch_size)
    rows = list(questions.values())
    started = shown = time.monotonic()
    answers: list[Row] = []
    for start in range(0, len(rows), max(BLOCK_ROWS, batch_size)):
        answers += predictor(rows[start : start + max(BLOCK_ROWS, batch_size)])
        if len(answers) < len(rows) and time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("%s: %d of %d rows", name, len(answers), len(rows))
    seconds = time.monotonic() - started
    rate = len(rows) / max(seconds, 1e-9)
    log.info("%s: %d rows in %.1f s on %s, %.0f rows/s", name, len(rows), seconds, device, rate)
    answered = dict(zip(questions, answers, strict=True))
    answers = [answered.get(i, {}) for i in range(len(split.rows))]
    if task.likelihood:
        found = likelihoods(model, task.collator(model, meta, None), split.encoded, batch_size)
        answers = [{**answer, **dc.asdict(row)} for answer, row in zip(answers, found, strict=True)]
    return answers


def has_head(folder: Path, tuned: Path) -> bool:
    """Whether the model in ``folder`` already has the head of the one in ``tuned``: same class, same labels."""
    head = _head(folder)
    return bool(head[0]) and head == _head(tuned)


def _head(folder: Path) -> tuple[t.Any, t.Any]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return config.get("architectures"), config.get("id2label")
