"""Answers of an MLflow model to any number of rows, written in files of bounded size; what is whole is not made again.

A file holds the rows of one block of the source, whole or not at all. Which block it is follows from its number, so
processes need not talk to each other, and a run that was killed goes on with the blocks that are missing.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import typing as t
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tuneport.artifacts import write_atomically
from tuneport.errors import UserError, excerpt
from tuneport.evaluation.ranks import Ranks
from tuneport.json_yaml import json_line, read_json, to_json
from tuneport.tracking import quieten

log = logging.getLogger("tuneport.predict")
Row = dict[str, t.Any]
Predict = Callable[[list[Row]], list[t.Any]]  # raises `RowRefused`

FOLDER, KEY = "rows", "follows_from.json"
PROGRESS_SECONDS = 10.0
LISTED = 5  # rows in a message


class RowRefused(Exception):
    """The model takes one of the rows for no question."""


class SavedModel:
    """An MLflow model in a folder, of ours or another one."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.folder, self.batch_size = folder, batch_size
        self.model: t.Any = None

    def columns(self) -> tuple[list[str], list[str]]:
        """The columns that a row must have, and those that it may have.

        Raises `UserError` where the folder holds no model, or one that does not say.
        """
        quieten()
        from mlflow.models import Model

        try:
            signature = Model.load(str(self.folder)).signature
        except Exception as e:  # MLflow raises whatever reading a file does
            raise UserError(
                f"{self.folder}: holds no MLflow model that can be read ({excerpt(e)}); expected a folder with an "
                "MLmodel file, such as a run's mlflow_model_folder."
            ) from None
        inputs = signature.inputs.inputs if signature is not None and signature.inputs is not None else []
        if not inputs or any(getattr(column, "name", None) is None for column in inputs):
            raise UserError(f"{self.folder}: the MLflow model has no signature that names its columns. Add one to it.")
        self.takes_size = signature.params is not None and any(p.name == "batch_size" for p in signature.params)
        return [c.name for c in inputs if c.required], [c.name for c in inputs if not c.required]

    def load(self) -> None:
        """Load the model, onto the device that it chooses."""
        import mlflow

        self.needed, self.optional = self.columns()
        self.model = mlflow.pyfunc.load_model(str(self.folder))

    def __call__(self, rows: list[Row]) -> list[t.Any]:
        """The answers to rows; a model without a parameter batch_size gets so many rows at a time.

        Raises `RowRefused`, and `UserError` for a model that does not answer each row once.
        """
        at_once = len(rows) if self.takes_size else self.batch_size
        return [answer for block in blocks(rows, at_once) for answer in self._answers(block)]

    def _answers(self, rows: list[Row]) -> list[t.Any]:
        import mlflow
        import pandas as pd

        named = [*self.needed, *(c for c in self.optional if any(row.get(c) is not None for row in rows))]
        table = pd.DataFrame({column: pd.Series([row.get(column) for row in rows], dtype=object) for column in named})
        params = {"batch_size": self.batch_size} if self.takes_size else None
        try:
            found = self.model.predict(table, params=params)
        except (ValueError, TypeError, mlflow.MlflowException) as e:
            raise RowRefused(str(e)) from e
        try:
            answers = found.to_dict("records") if isinstance(found, pd.DataFrame) else list(found)
        except TypeError:  # None, or one number
            answers = None
        if answers is None or len(answers) != len(rows):
            given = excerpt(found) if answers is None else f"{len(answers):,} answers"
            raise UserError(
                f"{self.folder}: the model gives {given} to {len(rows):,} rows; expected one answer a row. Mend its "
                "predict."
            )
        return answers


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The files of a prediction: ``rows`` of the source in each, in its order."""

    folder: Path
    rows: int

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.jsonl"

    def begin(self, follows_from: Mapping[str, t.Any]) -> int:
        """Keep the files that follow from the same, remove all else; returns how many there are."""
        wanted = json.loads(json.dumps(follows_from, default=str))
        try:
            same = read_json(self.folder / KEY) == wanted
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            write_atomically(self.folder / KEY, to_json(wanted, indent=1))
        for partial in self.folder.glob(".*.partial"):
            partial.unlink()
        return len(self.files())

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.jsonl"))


def blocks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows, so many at a time."""
    left = iter(rows)
    while block := list(islice(left, size)):
        yield block


def predict(load: Callable[[], Predict], rows: Iterable[tuple[str, Row]], parts: Parts, ranks: Ranks, key: str) -> int:
    """Answer this process's blocks that are missing; returns how many rows the source has.

    A line holds a row and under ``key`` its answer; where the model refuses the row, that is null, and
    ``<key>_error`` says why. The model is loaded when the first block is missing.
    """
    answer: Predict | None = None
    total, made, shown, started = 0, 0, time.monotonic(), time.monotonic()
    for number, block in enumerate(blocks(({"row_id": i, "row": row} for i, row in rows), parts.rows)):
        total += len(block)
        if number % ranks.count != ranks.rank or parts.path(number).is_file():
            continue
        answer = answer or load()
        lines = _answered([line["row"] for line in block], answer, key)
        write_atomically(parts.path(number), "".join(json_line(_plain(line)) for line in lines))
        made += len(block)
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            log.info("%d rows, %.0f rows/s", total, made / (shown - started))
    return total


def _answered(rows: list[Row], answer: Predict, key: str) -> list[Row]:
    if taken := next((row for row in rows if key in row or f"{key}_error" in row), None):
        name = key if key in taken else f"{key}_error"
        raise UserError(f"prediction_key={key}: the rows have a column '{name}' already. Set it to another name.")
    try:
        return [{**row, key: found} for row, found in zip(rows, answer(rows), strict=True)]
    except RowRefused as e:
        if len(rows) == 1:
            return [{**rows[0], key: None, f"{key}_error": str(e).removeprefix("row 1: ")}]
    return [line for row in rows for line in _answered([row], answer, key)]


def _plain(value: t.Any) -> t.Any:
    """A value in JSON's types: numpy's and Arrow's are not."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def refused(files: Sequence[Path], key: str) -> tuple[int, int, list[str]]:
    """How many rows the files have, how many of them the model refused, and the first reasons."""
    rows = failed = 0
    reasons: list[str] = []
    sign = json_line(f"{key}_error").rstrip("\n")
    for file in files:
        with file.open(encoding="utf-8") as f:
            for line in f:
                rows += 1
                if sign in line and (reason := json.loads(line).get(f"{key}_error")) is not None:
                    failed += 1
                    shown = f"row {rows}: {reason}".encode("utf-8", "backslashreplace").decode()
                    reasons += [shown] if len(reasons) < LISTED else []
    return rows, failed, reasons


def one_gpu(number: int) -> None:
    """Let this process see one GPU alone, by its number among those that it may use; before torch looks at them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = visible.split(",") if visible is not None else [str(i) for i in range(number + 1)]
    if number < len(known):
        os.environ["CUDA_VISIBLE_DEVICES"] = known[number]
