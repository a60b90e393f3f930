"""Read what preprocess wrote: encoded and raw rows of each split, what was learnt from them, and the data report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneport.artifacts import Dataset, read_manifest
from tuneport.errors import UserError
from tuneport.tasks.task import Row, Split

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
    # By split whose rows come from several sources, and by source: its files, as row ids call them.
    mixtures: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


class StoredSplit(Split):
    """A split of any size: rows and encoded columns are read from their files, when they are asked for."""

    def __init__(self, rows: Sequence[Row], files: Sequence[Path]) -> None:
        vars(self).update(rows=rows, files=files)

    @property
    def encoded(self) -> pa.Table:
        """Memory mapped."""
        from tuneport.data import shards

        return shards.read(vars(self)["files"])

    def batches(self) -> Iterator[pa.RecordBatch]:
        from tuneport.data import shards

        return shards.stream(vars(self)["files"])


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

    def stored(self, split: str) -> StoredSplit:
        """A split's rows and tokens, read when they are asked for: for splits of any size."""
        from tuneport.data.shards import StoredRows

        rows = StoredRows(self._files("rows", split), self.info.splits[split])
        return StoredSplit(rows, self.encoded_files(split))

    def sources(self, split: str, rows: Sequence[Row]) -> dict[str, list[int]]:
        """The places of a split's rows by their source; empty where they come from one."""
        mixed = self.info.mixtures.get(split, {})
        source_of = {file: source for source, files in mixed.items() for file in files}
        found: dict[str, list[int]] = {source: [] for source in mixed}
        for place, row in enumerate(rows if mixed else ()):
            found[source_of[row["row_id"].rpartition(":")[0]]].append(place)
        return {source: places for source, places in found.items() if places}

    def report(self) -> dict[str, Any]:
        """``data_report.json``."""
        report: dict[str, Any] = json.loads((self.path / "data_report.json").read_text("utf-8"))
        return report

    def source(self, split: str) -> str:
        """The file that a split's rows are from."""
        sources = self.report()["sources"]
        return str((sources.get(split) or sources["train"])["file"])

    def digest(self, split: str) -> str:
        """One SHA-256 that stands for a split's tokens."""
        listed = read_manifest(Dataset(self.path))["files"]
        found = [listed[file.relative_to(self.path).as_posix()]["sha256"] for file in self.encoded_files(split)]
        return hashlib.sha256("".join(found).encode()).hexdigest()

    def _files(self, kind: str, split: str) -> list[Path]:
        from tuneport.data import shards

        files = shards.shards(self.path / kind, split)
        if not files:
            raise UserError(f"{self.path}: this prepared dataset has no {split} split in {kind}. Run preprocess again.")
        return files
