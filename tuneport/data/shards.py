"""The rows of a split as Arrow IPC streams of bounded size, written one after another and read as one table."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path
from types import TracebackType

import pyarrow as pa

SHARD_BYTES = 512 << 20  # a shard that is as large is full


def shards(folder: Path, split: str) -> list[Path]:
    """The files of a split, in the order of their rows; none where there is no such split."""
    return sorted(folder.glob(f"{split}-*.arrow"))


def read(files: t.Sequence[Path]) -> pa.Table:
    """Their rows, memory mapped."""
    tables = []
    for file in files:
        with pa.memory_map(os.fsencode(file)) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    return pa.concat_tables(tables)


def stream(files: t.Sequence[Path]) -> t.Iterator[pa.RecordBatch]:
    """Their rows, batch by batch; unlike a mapped file, what was read leaves the memory again."""
    for file in files:
        with pa.OSFile(os.fsencode(file)) as source:
            yield from pa.ipc.open_stream(source)


class StoredRows(t.Sequence[dict[str, t.Any]]):
    """The rows of a split as dicts, read from their files when they are asked for, each time again."""

    def __init__(self, files: t.Sequence[Path], count: int) -> None:
        self.files, self.rows = files, count

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> t.Iterator[dict[str, t.Any]]:
        for batch in stream(self.files):
            yield from batch.to_pylist()

    @t.overload
    def __getitem__(self, place: int) -> dict[str, t.Any]: ...
    @t.overload
    def __getitem__(self, place: slice) -> list[dict[str, t.Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, t.Any] | list[dict[str, t.Any]]:
        table = read(self.files)
        if isinstance(place, slice):
            return t.cast(
                "list[dict[str, t.Any]]",
                table.take(pa.array(range(*place.indices(self.rows)), pa.int64())).to_pylist(),
            )
        return t.cast("dict[str, t.Any]", table.slice(range(self.rows)[place], 1).to_pylist()[0])


class ShardWriter:
    """Writes ``SPLIT-00000.arrow`` and so on into ``folder``; there is always a first one, be it without rows."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self.folder, self.split, self.schema = folder, split, schema
        self.files = 0
        folder.mkdir(exist_ok=True)
        self._open()

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def write(self, table: pa.Table, rows: int) -> None:
        """Write a table in batches of so many rows."""
        for batch in table.to_batches(max_chunksize=rows):
            if self._sink.tell() >= SHARD_BYTES:
                self._close()
                self._open()
            self._stream.write_batch(batch)

    def _open(self) -> None:
        path = self.folder / f"{self.split}-{self.files:05}.arrow"
        self._sink = pa.OSFile(os.fsencode(path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, self.schema)
        self.files += 1

    def _close(self) -> None:
        self._stream.close()
        self._sink.close()


def with_row_id(schema: pa.Schema) -> pa.Schema:
    """The schema with the column that every stored row has first."""
    return pa.schema([("row_id", pa.string()), *schema])
