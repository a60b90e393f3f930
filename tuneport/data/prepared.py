"""Read what preprocess wrote: encoded and raw rows of each split, what was learnt from them, and the data report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Info:
    """``dataset.json``."""

    task_name: str
    columns: Mapping[str, str]  # field -> the user's column
    meta: dict[str, Any]  # what the task learnt from the data
    max_seq_length: int  # tokens
    pad_to: int | None  # tokens to pad every sequence to; None: to the longest of its batch
    splits: Mapping[str, int]  # rows by split


@dataclass(frozen=True)
class Prepared:
    """A `tuneport.artifacts.Dataset` folder."""

    path: Path

    @cached_property
    def info(self) -> Info:
        value = json.loads((self.path / "dataset.json").read_text("utf-8"))
        splits = {split: entry["rows"] for split, entry in value.pop("splits").items()}
        return Info(**value, splits=splits)

    def check_task(self, task_name: str) -> None:
        """Raise `UserError` where the rows were prepared for another task."""
        if self.info.task_name != task_name:
            raise UserError(
                f"{self.path}: was prepared for {self.info.task_name}; expected {task_name}. "
                "Run preprocess for this task."
            )

    def encoded_files(self, split: str) -> list[Path]:
        """The Arrow IPC streams of a split's tokens, in order: row_id, the task's encoded columns, length."""
        return self._files("encoded", split)

    def encoded(self, split: str) -> pa.Table:
        """A split's tokens, memory mapped."""
        from tuneport.data import shards

        return shards.read(self.encoded_files(split))

    def rows(self, split: str) -> list[dict[str, Any]]:
        """A split's raw rows: row_id and the task's fields."""
        from tuneport.data import shards

        rows: list[dict[str, Any]] = shards.read(self._files("rows", split)).to_pylist()
        return rows

    def report(self) -> dict[str, Any]:
        """``data_report.json``."""
        report: dict[str, Any] = json.loads((self.path / "data_report.json").read_text("utf-8"))
        return report

    def _files(self, kind: str, split: str) -> list[Path]:
        from tuneport.data import shards

        files = shards.shards(self.path / kind, split)
        if not files:
            raise UserError(f"{self.path}: this prepared dataset has no {split} split in {kind}. Run preprocess again.")
        return files
