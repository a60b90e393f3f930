"""Prepare the first rows of a pipeline's data, and tell what they become: tokens, labels, what is cut or left out."""

from __future__ import annotations

import dataclasses as dc
import logging
import tempfile
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from tuneport import tasks
from tuneport.data.load_tokenizer import load_tokenizer, read_json
from tuneport.data.prepare import prepare
from tuneport.data.prepared import Prepared
from tuneport.data.row_checks import of_first
from tuneport.data.row_progress import quiet
from tuneport.data.splits import SPLITS
from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.model_source.settings_only import copy_settings
from tuneport.runner import bind
from tuneport.tasks.task import Row, Task

LOOKED_AT = 1000  # rows of each source
EXAMPLES = 3  # of each label
MOST_LABELS = 30  # that are listed
NO_LABEL = -100  # the label of a token that nothing is learnt from


@dc.dataclass(frozen=True, kw_only=True)
class Token:
    """One token as a person reads it; ``label``: the name of its class, where tokens have one."""

    text: str
    trained: bool = False
    special: bool = False
    label: str = ""


@dc.dataclass(frozen=True, kw_only=True)
class Window:
    """One encoding of a row; ``target``: the tokens that another text than the input has, ``answer`` what is learnt."""

    tokens: Sequence[Token]
    target: Sequence[Token] = ()
    answer: str = ""


@dc.dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A row that is kept."""

    row_id: str
    windows: Sequence[Window]


@dc.dataclass(frozen=True, kw_only=True)
class Preview:
    """What became of the first rows; ``whole``: they are all that there are of the training data."""

    task: str
    rows: Sequence[ShownRow]
    report: Mapping[str, t.Any]  # the data report of these rows
    max_seq_length: int  # tokens
    whole: bool
    labels: Mapping[str, tuple[int, Sequence[str]]]  # how many rows have each, and some of them
    steps: int | None  # optimizer steps of the training; None where not all rows were looked at

    @property
    def encoded(self) -> int:
        """How many sequences the rows become."""
        lengths = [self.report["splits"][split]["tokens"] for split in SPLITS]
        return sum(sum(found["histogram"]["rows"]) for found in lengths if found)

    @property
    def truncated(self) -> int:
        """How many of them are cut at `max_seq_length`."""
        return sum(int(self.report["splits"][split]["truncated"]) for split in SPLITS)


def preview(pipeline: Pipeline, values: Mapping[str, t.Any], rows: int = 3) -> Preview:
    """Look at the first rows of a pipeline's data, of which ``rows`` are shown token by token; no torch, no weights.

    Raises `UserError` where the values do not go together, or where the rows or the model's settings cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="tuneport-preview-") as scratch, quiet(logging.ERROR):
        steps: Mapping[str, t.Any] = bind.instantiate(pipeline, values, Path(scratch, "run"))
        if missing := [name for name in ("model_import", "preprocess") if name not in steps]:
            raise UserError(f"{pipeline.name}: has no stage {', '.join(missing)}, so there are no rows to look at.")
        bind.check({name: steps[name] for name in ("model_import", "preprocess")}, files=False)
        base, output = Path(scratch, "base"), Path(scratch, "prepared")
        step = steps["preprocess"]
        step.check_files()
        copy_settings(steps["model_import"], base)
        _prepare_first(step, base, output)
        return _look(step, steps.get("finetune"), base, Prepared(output), rows)


def _prepare_first(step: t.Any, base: Path, output: Path) -> None:
    sources = {split: [of_first(source, LOOKED_AT) for source in given] for split, given in step.sources().items()}
    step.min_rows, step.max_dropped_fraction = 1, 1.0
    output.mkdir()
    prepare(tasks.load(step.task_name), step, sources=sources, wanted=step.wanted_columns(), model=base, output=output)


def _look(step: t.Any, training: t.Any, base: Path, prepared: Prepared, rows: int) -> Preview:
    task, info, report = tasks.load(step.task_name), prepared.info, prepared.report()
    tokenizer = load_tokenizer(base, read_json(base, "tokenizer_config.json"), info.max_seq_length)
    train = report["sources"]["train"]
    limits = [source.max_rows for source in step.sources()["train"]]
    read = [found.get("first_rows_only") for found in train.get("mixture", [train])]
    whole = all(found in (None, limit) for found, limit in zip(read, limits, strict=True))
    return Preview(
        task=task.name,
        rows=list(_shown(prepared, tokenizer, rows)),
        report=report,
        max_seq_length=info.max_seq_length,
        whole=whole,
        labels=_labels(task, prepared),
        steps=_steps(training, info.splits["train"]) if whole and training else None,
    )


def _shown(prepared: Prepared, tokenizer: t.Any, rows: int) -> Iterator[ShownRow]:
    """The first rows of the training split, with all that is made of each."""
    ids = [row["row_id"] for row in islice(prepared.rows("train"), rows)]
    windows: dict[str, list[Window]] = {row_id: [] for row_id in ids}
    for batch in prepared.stored("train").batches():
        for encoded in batch.to_pylist():
            if (row_id := encoded["row_id"]) in windows:
                windows[row_id].append(_window(encoded, prepared.info.meta, tokenizer))
        if windows and all(windows.values()):
            break
    return (ShownRow(row_id=row_id, windows=found) for row_id, found in windows.items())


def _window(encoded: Row, meta: Mapping[str, t.Any], tokenizer: t.Any) -> Window:
    """What a model is shown of an encoded row, by the columns that it has."""
    ids, labels, names = encoded["input_ids"], encoded.get("labels"), meta.get("labels")
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def tokens(of: Sequence[int], trained: Sequence[bool], named: Sequence[str] = ()) -> list[Token]:
        return [
            Token(text=_text(tokenizer, i), trained=t, special=i in special, label=named[n] if named else "")
            for n, (i, t) in enumerate(zip(of, trained, strict=True))
        ]

    plain = [False] * len(ids)
    if "start_positions" in encoded:
        start, end = encoded["start_positions"], encoded["end_positions"]
        inside = [0 < start <= n <= end for n in range(len(ids))]
        said = tokenizer.decode(ids[start : end + 1]) if any(inside) else "no answer in this window"
        return Window(tokens=tokens(ids, inside), answer=said)
    if isinstance(labels, list) and meta.get("prompting", {}).get("encoder_decoder"):
        target = [label for label in labels if label != NO_LABEL]
        return Window(tokens=tokens(ids, plain), target=tokens(target, [True] * len(target)))
    if isinstance(labels, list) and len(labels) == len(ids) and not any(isinstance(x, float) for x in labels):
        trained = [label != NO_LABEL for label in labels]
        named = [names[label] if label != NO_LABEL else "" for label in labels] if names else ()
        return Window(tokens=tokens(ids, trained, named), answer=_count(trained))
    if isinstance(labels, list):
        chosen = [str(names[n]) for n, label in enumerate(labels) if label] if names else []
        return Window(tokens=tokens(ids, plain), answer=", ".join(chosen) or "no label")
    return Window(tokens=tokens(ids, plain), answer=str(names[labels]) if names and labels is not None else "")


def _count(trained: Sequence[bool]) -> str:
    return f"{sum(trained)} of {len(trained)} tokens are learnt"


def _text(tokenizer: t.Any, token: int) -> str:
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    whole = text and "\ufffd" not in text  # a character may be several tokens
    return text if whole else str(tokenizer.id_to_token(token))


def _labels(task: Task, prepared: Prepared) -> dict[str, tuple[int, Sequence[str]]]:
    found: dict[str, tuple[int, list[str]]] = {}
    for split in SPLITS:
        for row in prepared.rows(split) if prepared.info.splits[split] else ():
            for label in task.labels(row):
                count, shown = found.setdefault(label, (0, []))
                if len(shown) < EXAMPLES:
                    shown.append(task.identity(row))
                found[label] = (count + 1, shown)
    return {label: found[label] for label in sorted(found, key=lambda name: -found[name][0])}


def _steps(training: t.Any, rows: int) -> int:
    """Optimizer steps of a training on so many rows, without packing."""
    if training.max_steps > 0:
        return int(training.max_steps)
    processes = training.number_of_gpu_to_use_finetuning * training.num_nodes_finetune
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    return int(-(-rows // batch) * training.num_train_epochs)
