"""`tuneport init`: a short configuration to start from; its task and columns are read from the first rows of a file."""

from __future__ import annotations

import dataclasses as dc
import math
import os
import re
import typing as t
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from tuneport.address import Address
from tuneport.config import yaml_value
from tuneport.data import readers
from tuneport.errors import UserError
from tuneport.graph import Pipeline
from tuneport.json_yaml import parse_json

LOOKED_AT = 500  # rows
COUNTED = 100_000  # rows
OPTION = "--data"
WRITERS = ("summarization", "translation", "text_generation", "chat_completion")  # tasks whose models write text
MODELS = {  # small ones to begin with
    "summarization": "google-t5/t5-small",
    "translation": "google-t5/t5-small",
    "text_generation": "HuggingFaceTB/SmolLM2-135M",
    "chat_completion": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
ENCODER = "distilbert/distilbert-base-uncased"
NAMES = {  # by parameter, what such a column is often called, the likeliest first
    "sentence1_key": "text sentence sentence1 content review message tweet question premise comment body title input",
    "sentence2_key": "sentence2 hypothesis text2 text_pair",
    "label_key": "label labels class category sentiment intent topic target y output",
    "token_key": "tokens words",
    "tag_key": "tags ner_tags pos_tags ner labels",
    "question_key": "question query",
    "context_key": "context passage paragraph document text",
    "answers_key": "answers answer",
    "document_key": "document article dialogue text content body description source input",
    "summary_key": "summary highlights abstract synopsis headline title target output",
    "text_key": "prompt instruction question input text content",
    "ground_truth_key": "completion response answer output target",
    "messages_key": "messages conversation conversations",
}
OPTIONAL = ("sentence2_key", "ground_truth_key")
LANGUAGE = re.compile(r"[a-z]{2}|[a-z]{2}[_-][A-Z]{2}")
WEIGHT = 4  # bytes, where a model's files are all that is known of it


@dc.dataclass(frozen=True, kw_only=True)
class Sample:
    """The first rows of a file; text that is JSON stands for what it says."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, t.Any]]
    count: int  # of all rows; `COUNTED` where there are more

    def values(self, column: str) -> list[t.Any]:
        return [row[column] for row in self.rows if row.get(column) is not None]

    def all(self, column: str, kind: Callable[[t.Any], bool]) -> bool:
        """Whether a column has values, all of a kind."""
        values = self.values(column)
        return bool(values) and all(map(kind, values))

    def texts(self) -> list[str]:
        """The columns of text, the one with the longest texts first."""
        found = [column for column in self.columns if self.all(column, lambda value: isinstance(value, str))]
        return sorted(found, key=lambda column: -sum(map(len, self.values(column))))


def write(
    task: str | None, data: str | None, model: str | None, folder: Path, load: Callable[[str], Pipeline]
) -> tuple[str, str]:
    """The task, and a short configuration for it, whose paths count from ``folder``.

    Raises `UserError` where the file cannot be read, or no task is named and its columns do not tell one.
    """
    sample = look(data) if data else None
    if task is None:
        if sample is None:
            raise UserError("no task is named; name one, or a file with --data, whose columns tell the task.")
        task = guess_task(sample)
        if task is None:
            raise UserError(
                f"{OPTION}={sample.name}: its columns do not tell the task; it has: {', '.join(sample.columns)}. Name "
                f"the task: tuneport init TASK {OPTION} …"
            )
    pipeline = load(task)
    columns = guess_columns(task, sample) if sample else {}
    named = _model(task, model, folder)
    return task, "".join(
        _lines(pipeline, sample, columns, data=_data(data, folder), model=named, weights=_weights(model))
    )


def look(data: str) -> Sample:
    """Read the first rows of a file, and count all of them. Raises `UserError`."""
    address = Address.of(data if "://" in data else Path.cwd() / data)
    source = readers.find(Path(address.text) if address.is_local else address, OPTION)
    header = source.shards[0].columns() or []
    separator = next((c for c in readers.SEPARATORS if len(header) == 1 and c in header[0]), None)
    wanted = {name: name for name in header[0].split(separator)} if separator else {}
    rows = (row.values for row in source.rows(wanted))
    first = [{name: _told(value) for name, value in row.items()} for row in islice(rows, LOOKED_AT)]
    columns = list(dict.fromkeys(name for row in first for name in row))
    more = sum(1 for _ in islice(rows, COUNTED - len(first))) if len(first) == LOOKED_AT else 0
    return Sample(name=source.name, columns=columns, rows=first, count=len(first) + more)


def _told(value: t.Any) -> t.Any:
    """A list or object that a cell of CSV holds as JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def guess_task(sample: Sample) -> str | None:
    """The task that a file's columns tell; None where they tell none."""
    lists = [column for column in sample.columns if sample.all(column, lambda value: isinstance(value, list))]
    of_objects = [c for c in lists if sample.all(c, lambda value: all(isinstance(item, dict) for item in value))]
    if of_objects or {"instruction", "output"} <= {*sample.columns}:
        return "chat_completion"
    if {"question", "context", "answers"} <= {*sample.columns}:
        return "question_answering"
    if len(lists) > 1:
        return "token_classification"
    named = {key: _named(key, sample.columns, sample) for key in NAMES}
    if named["summary_key"] in ("summary", "highlights", "abstract", "synopsis"):
        return "summarization"
    if len([column for column in sample.columns if LANGUAGE.fullmatch(column)]) > 1:
        return "translation"
    if named["ground_truth_key"] in ("completion", "response"):
        return "text_generation"
    if named["label_key"] and sample.texts():
        return "text_classification"
    return "text_generation" if len(sample.texts()) == 1 else None


def guess_columns(task: str, sample: Sample) -> dict[str, str]:
    """What a task is told of a file's columns, as far as they tell it."""
    keys = {
        "text_classification": ("sentence1_key", "sentence2_key", "label_key"),
        "token_classification": ("token_key", "tag_key"),
        "question_answering": ("question_key", "context_key", "answers_key"),
        "summarization": ("document_key", "summary_key"),
        "text_generation": ("text_key", "ground_truth_key"),
    }
    if task == "chat_completion":
        return _conversation(sample)
    if task == "translation":
        found = [c for c in sample.columns if LANGUAGE.fullmatch(c)] or sample.texts()
        return dict(zip(("source_lang", "target_lang"), found, strict=False))
    named = {key: column for key in keys.get(task, ()) if (column := _named(key, sample.columns, sample))}
    found_keys: dict[str, str] = {}
    for key, column in named.items():
        if column not in found_keys.values():
            found_keys[key] = column
    first = keys.get(task, ("",))[0]
    left = [text for text in sample.texts() if text not in found_keys.values()]
    if first and first not in found_keys and left and task != "token_classification":
        found_keys = {first: left[0], **found_keys}
    if task == "text_classification" and (label := found_keys.get("label_key")):
        several = sample.all(label, lambda value: isinstance(value, list))
        found_keys |= {"multi_label": "true"} if several else {}
    return found_keys


def _named(key: str, columns: Sequence[str], sample: Sample) -> str | None:
    """The column that goes by a name of a parameter's."""
    folded = {column.casefold(): column for column in columns}
    lists = key in ("token_key", "tag_key")
    for name in NAMES[key].split():
        column = folded.get(name)
        if column and (not lists or sample.all(column, lambda value: isinstance(value, list))):
            return column
    return None


def _conversation(sample: Sample) -> dict[str, str]:
    columns = {*sample.columns}
    if "messages" in columns:
        return {}
    shapes = {"sharegpt": {"conversations"}, "alpaca": {"instruction", "output"}}
    shapes |= {"prompt_completion": {"prompt", "completion"}}
    for shape, needed in shapes.items():
        if needed <= columns and (shape != "sharegpt" or _is_sharegpt(sample)):
            return {"chat_format": shape}
    lists = [column for column in sample.columns if sample.all(column, lambda value: isinstance(value, list))]
    return {"messages_key": lists[0]} if lists else {}


def _is_sharegpt(sample: Sample) -> bool:
    def of_turns(value: t.Any) -> bool:
        return isinstance(value, list) and all(isinstance(turn, dict) and "from" in turn for turn in value)

    return sample.all("conversations", of_turns)


def _data(data: str | None, folder: Path) -> str:
    if data is None or "://" in data:
        return data or ""
    return os.path.relpath(Path.cwd() / data, folder)


def _lines(
    pipeline: Pipeline,
    sample: Sample | None,
    columns: Mapping[str, str],
    *,
    data: str,
    model: tuple[str, str],
    weights: int | None,
) -> Iterator[str]:
    ports = pipeline.params
    yield f"# yaml-language-server: $schema={schema_name(pipeline.name)}\n"
    rows = f" on {_in_a_line(sample.name)}, {_rows(sample)}" if sample else ""
    yield f"# {pipeline.name}{rows}; every other setting: tuneport init {pipeline.name} --all\n"
    name, chosen = model
    note = "  # or pytorch_model_path: a folder" if name == "huggingface_id" else ""
    yield f"{name}:{yaml_value(chosen)}{note}\n"
    yield _entry("train_file_path", data, "jsonl, json, csv, tsv or parquet")
    there = f"a column: {_in_a_line(', '.join(sample.columns[:8]))}" if sample else ""
    for key, port in ports.items():
        if key in columns or (port.required and port.kind == "param"):
            yield _entry(key, columns.get(key, ""), there or port.help.rstrip("."))
    yield "\n"
    for key, value in knobs(pipeline.name, sample, columns, weights).items():
        yield f"{key}:{yaml_value(value)}\n"


def _in_a_line(text: str) -> str:
    """A user's text as a part of a comment, which ends with its line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _entry(key: str, value: str, help: str) -> str:
    return f"{key}:{yaml_value(value)}\n" if value else f"{key}:  # {help}\n"


def schema_name(task: str) -> str:
    """The file that editors read a configuration's schema from, beside it."""
    return f"{task}.schema.json"


def _rows(sample: Sample) -> str:
    return f"{sample.count:,} rows" + (" or more" if sample.count >= COUNTED else "")


def _model(task: str, model: str | None, folder: Path) -> tuple[str, str]:
    """The parameter that names the base model, and its value."""
    if model is None:
        return "huggingface_id", MODELS.get(task, ENCODER)
    path = Path.cwd() / model
    if not path.exists():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise UserError(f"--model={model}: no such folder or file; expected one, or a hub's ORGANISATION/NAME.")
        return "huggingface_id", model
    name = "mlflow_model_path" if (path / "MLmodel").is_file() else "pytorch_model_path"
    return name, os.path.relpath(path, folder)


def _weights(model: str | None) -> int | None:
    """How many weights a folder's model has, by the size of its files; None where that is not known."""
    folder = Path.cwd() / model if model else None
    if folder is None or not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // WEIGHT or None


def knobs(task: str, sample: Sample | None, columns: Mapping[str, str], weights: int | None) -> dict[str, t.Any]:
    """Five settings that decide most of a training, by the task, the number of rows and that of weights.

    Small models bear, and need, larger steps than large ones; few rows need more epochs than many.
    """
    rows = 1000 if sample is None else sample.count
    writes = task in WRITERS
    batch = 8 if writes else 16 if rows < 2000 or task == "question_answering" else 32
    epochs = 1 if rows > 100_000 else 2 if rows > 20_000 else 3 if rows > 1000 else 5
    large = weights is not None and weights > 1_000_000_000
    found: dict[str, t.Any] = {
        "num_train_epochs": max(1, epochs - 2) if writes else epochs,
        "learning_rate": _learning_rate(writes, weights),
        "per_device_train_batch_size": 4 if large else batch,
    }
    steps = math.ceil(0.8 * rows / found["per_device_train_batch_size"]) * found["num_train_epochs"]
    found["warmup_steps"] = min(max(steps * 6 // 100, 1), 500)  # 6 % of the steps
    return found | ({"apply_lora": large} if writes else {"metric_for_best_model": _metric(task, sample, columns)})


def _learning_rate(writes: bool, weights: int | None) -> float:
    if writes:
        return 1e-4 if weights is not None and weights > 1_000_000_000 else 5e-5
    if weights is None:
        return 5e-5
    return 2e-4 if weights < 50_000_000 else 5e-5 if weights < 200_000_000 else 2e-5


def _metric(task: str, sample: Sample | None, columns: Mapping[str, str]) -> str:
    if task == "question_answering":
        return "f1"
    labels = sample.values(columns.get("tag_key") or columns.get("label_key") or "") if sample else []
    flat = Counter(
        str(label) for labels_of in labels for label in (labels_of if isinstance(labels_of, list) else [labels_of])
    )
    if task == "token_classification":
        return "f1" if any(label.startswith(("B-", "I-")) for label in flat) else "accuracy"
    return "f1_macro" if _uneven(flat.values()) else "accuracy"


def _uneven(counts: Iterable[int]) -> bool:
    """Whether one class has so many rows that accuracy says little."""
    known = list(counts)
    return bool(known) and max(known) > 0.6 * sum(known)
