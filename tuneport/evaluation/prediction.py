"""Answers of a model to the rows of a split, and whether the model came with a head for them."""

from __future__ import annotations

import contextlib
import dataclasses as dc
import gc
import json
import logging
import time
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneport.errors import UserError
from tuneport.evaluation.ranks import Ranks
from tuneport.modeling.likelihood import likelihoods
from tuneport.modeling.merged_adapters import is_adapter, load_merged, merged_type
from tuneport.modeling.weight_types import computed_in, for_inference
from tuneport.serving.placement import Machine, Placement
from tuneport.serving.token_batches import TokenBatches
from tuneport.tasks.task import Meta, Predictor, Row, Split, Task

log = logging.getLogger("tuneport.model_evaluation")
BLOCK_ROWS = 2048  # between two progress lines
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to be asked: its folder, what it is called in the log, and where its weights go."""

    folder: Path
    name: str
    base: Path  # the base model; of an adapter, what it is added to
    tokenizer: Path  # the folder of what it reads texts through
    placement: Placement
    seed: int  # of the weights of a head that the base model lacks
    ignore_mismatched_sizes: bool  # whether weights that the base model has in another size may be random, too

    def load(self, task: Task, meta: Meta) -> t.Any:
        """The model with the task's head, in evaluation mode, on its devices, in the type that `for_inference` says."""
        import torch
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.manual_seed(self.seed)
        is_base, placement = self.folder == self.base, self.placement
        device = "cpu" if placement.kind == "cpu" else "cuda"
        if is_adapter(self.folder):
            own = merged_type(self.folder, self.base)  # so that the weights are those that are exported
            model = load_merged(self.folder, self.base, dtype=own, **placement.loading())
            for weight in model.parameters():
                weight.data = weight.data.to(computed_in(own, device))
        else:
            random_sizes = is_base and self.ignore_mismatched_sizes
            dtype = for_inference(self.folder, device)
            model = task.load_model(
                self.folder,
                meta,
                new_head=is_base,
                ignore_mismatched_sizes=random_sizes,
                dtype=dtype,
                **placement.loading(),
            )
        return (model.to(self.placement.device) if self.placement.one_device else model).eval()


def place(folders: Sequence[Path], gpu: int | None = None) -> Placement:
    """Where the largest of some models goes: onto one GPU, given by its number, or onto what the machine has.

    Raises `UserError` where the machine has no room for it.
    """
    machine = Machine()
    device = "cuda" if machine.has_gpu() else "cpu"
    needed = max(machine.weight_bytes(str(folder), for_inference(folder, device).itemsize) for folder in folders)
    if gpu is not None:
        return Placement(needed, machine.gpus(only=gpu), machine.host())
    found = machine.place(needed)
    if found.kind == "none":
        raise UserError(f"{found.said()}. Run model_evaluation where there are GPUs, or a machine, with more memory.")
    return found


def check_gpus(processes: int) -> None:
    """Raise `UserError` where there are GPUs, but fewer than processes."""
    import torch

    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise UserError(
            f"number_of_gpu_to_use_evaluation={processes}: this machine has {gpus}, and processes cannot share one. "
            "Take as many processes as there are GPUs."
        )


def predict(
    task: Task,
    subject: Subject,
    meta: Meta,
    split: Split,
    *,
    questions: Mapping[int, Row],
    settings: Row,
    batch_size: int | None,
    ranks: Ranks,
) -> list[Row] | None:
    """Load a model and let it answer the rows of a split, or this process's part of them.

    ``questions`` are what is asked, by the place of the row; the answer to a row without one is empty. ``batch_size``
    is the most rows of a batch, None: as many as memory allows. Where the task asks for it, the answers also hold the
    `Likelihood` of the encoded labels, under the names of its fields. Of several processes the first one returns the
    answers of all, the others None. Raises `UserError` where the memory does not suffice.
    """
    with _explained(subject.name):
        model = subject.load(task, meta)
        bound = {} if batch_size is None else {"batch_size": batch_size}
        predictor = task.predictor(str(subject.tokenizer), settings, model=model, **bound)
        asked = ranks.own(list(questions))
        found = _answers(predictor, [questions[i] for i in asked], subject, ranks)
        answers: dict[int, Row] = dict(zip(asked, found, strict=True))
        places = ranks.own(range(len(split.rows)))
        if task.likelihood:
            encoded = split.encoded if ranks.count == 1 else split.encoded.take(places)
            likely = likelihoods(model, task.collator(model, meta, None), encoded, batch_size)
            scores = {i: dc.asdict(row) for i, row in zip(places, likely, strict=True)}
    del model, predictor
    release()
    asked_by_all = ranks.join(f"{subject.name} answers", [answers[i] for i in asked])
    likely_by_all = ranks.join(f"{subject.name} likelihoods", [scores[i] for i in places]) if task.likelihood else None
    if asked_by_all is None:
        return None
    answered = dict(zip(questions, asked_by_all, strict=True))
    return [{**answered.get(i, {}), **(likely_by_all[i] if likely_by_all else {})} for i in range(len(split.rows))]


def _answers(predictor: Predictor, rows: Sequence[Row], subject: Subject, ranks: Ranks) -> list[Row]:
    """The answers to rows, with lines of progress."""
    started = shown = time.monotonic()
    answers: list[Row] = []
    for start in range(0, len(rows), BLOCK_ROWS):
        answers += predictor(rows[start : start + BLOCK_ROWS])
        if len(answers) < len(rows) and time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("%s: %d of %d rows", subject.name, len(answers), len(rows))
    seconds = time.monotonic() - started
    processes = f", one of {ranks.count} processes" if ranks.count > 1 else ""
    device = subject.placement.device if subject.placement.one_device else "several devices"
    rate = len(rows) / max(seconds, 1e-9)
    log.info("%s: %d rows in %.1f s on %s%s, %.0f rows/s", subject.name, len(rows), seconds, device, processes, rate)
    return answers


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise `UserError`, with what may be changed, where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not TokenBatches.is_out_of_memory(e):
            raise
        reason = (str(e).splitlines() or ["out of memory"])[0]
        raise UserError(
            f"{name}: the memory does not suffice, not even for one row at a time ({reason}). Run model_evaluation "
            "where there is more of it, on a larger GPU or on several (number_of_gpu_to_use_evaluation), lower "
            "max_new_tokens or num_beams where texts are written, or prepare the rows with a smaller max_seq_length."
        ) from None


def release() -> None:
    """Give back a model's memory before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def has_head(folder: Path, tuned: Path) -> bool:
    """Whether the model in ``folder`` already has the head of the one in ``tuned``: same class, same labels."""
    head = _head(folder)
    return bool(head[0]) and head == _head(tuned)


def _head(folder: Path) -> tuple[t.Any, t.Any]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return config.get("architectures"), config.get("id2label")
