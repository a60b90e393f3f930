"""Pass 2: stream the scratch file through the tokenizer and write every split."""

from __future__ import annotations

import json
import os
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tuneport.data.data_report import TokenLengths
from tuneport.data.options import PrepareParams
from tuneport.data.row_notes import LISTED_ROWS, Notes
from tuneport.data.row_progress import RowProgress
from tuneport.data.shards import ShardWriter, with_row_id
from tuneport.data.splits import REMOVED, SPLITS, Codes
from tuneport.data.workers import Buffer, Work, cores, mapped
from tuneport.errors import UserError
from tuneport.tasks.task import Encoder, Meta, Task

WORTHWHILE = 4 << 20  # bytes of rows that take longer to encode than processes take to start
BATCHES_EACH = 4  # at least, that a process encodes
ARRAYS, BESIDE = ("made_from", "truncated", "without_label"), b"beside"  # of what is encoded, beside its columns


def encode(
    task: Task,
    options: PrepareParams,
    *,
    to_columns: Encoder,
    meta: Meta,
    splits: Codes,
    max_seq_length: int,
    scratch: Path,
    output: Path,
    processes: int | None = None,
) -> tuple[dict[str, TokenLengths], dict[str, Lost], dict[str, Notes]]:
    """Write ``encoded/`` and ``rows/`` of every split; returns, by split, the token lengths, the rows without a label
    left, and what has to be said of rows. What is written does not depend on how many ``processes`` make the tokens;
    None: one a CPU, where there are rows enough.

    Raises `UserError` where a row's tokens hold no label, and where no training row's do.
    """
    encoded_schema = with_row_id(task.encoded_schema(meta, options)).append(pa.field("length", pa.int32()))
    row_schema = with_row_id(task.row_schema(options))
    progress = RowProgress("rows encoded", int((splits != REMOVED).sum()))
    untrainable, lost = Untrainable(), {split: Lost() for split in SPLITS}
    notes = {split: Notes() for split in SPLITS}
    with ExitStack() as stack:
        writers = [
            SplitWriter(
                stack,
                output,
                split,
                encoded=encoded_schema,
                rows=row_schema,
                batch_size=options.batch_size,
                max_seq_length=max_seq_length,
            )
            for split in SPLITS
        ]
        made = mapped(
            Work(make=partial(_encoded, to_columns=to_columns, schema=encoded_schema), pack=_packed, unpack=_unpacked),
            partial(_kept, pa.OSFile, scratch, splits),
            _processes(scratch, len(splits) // options.batch_size) if processes is None else processes,
            theirs=lambda *_: _kept(pa.memory_map, scratch, splits),  # most of which each of them skips
        )
        for kept, found in stack.enter_context(closing(made)):
            of_encoded = kept.codes[found.made_from]
            untrainable.add(found.untrainable)
            _note(found.notes, of_encoded, found.batch["row_id"], notes)
            for split, row_ids in found.lost(of_encoded).items():
                lost[split].add(row_ids)
            encoded, of_encoded, truncated = found.with_label(of_encoded)
            parts = zip(writers, _by_split(encoded, of_encoded), _by_split(kept.rows, kept.codes), strict=True)
            for code, (writer, of_split, rows) in enumerate(parts):
                writer.write(of_split, rows, truncated[of_encoded == code])
            progress.advance(len(kept.codes))
        untrainable.refuse(max_seq_length)
        for split in ("train", "validation"):
            if lost[split].rows and lost[split].rows == int((splits == SPLITS.index(split)).sum()):
                raise UserError(
                    f"none of the {lost[split].rows} {split} rows has its label within max_seq_length={max_seq_length} "
                    "tokens. Raise max_seq_length; for question answering doc_stride, too."
                )
        for writer in writers:
            writer.flush()
    return {split: writer.lengths for split, writer in zip(SPLITS, writers, strict=True)}, lost, notes


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a batch of rows becomes; the arrays have an entry for each encoded row."""

    batch: pa.RecordBatch
    made_from: npt.NDArray[np.int64]  # the row of the batch
    truncated: npt.NDArray[np.bool_]
    without_label: npt.NDArray[np.bool_]
    untrainable: list[str]  # ids of rows
    notes: Sequence[Sequence[str]]  # none where nothing is to be said of any

    def lost(self, codes: Codes) -> dict[str, list[str]]:
        """By split, the ids of the rows that have no label left; ``codes``: the split of each encoded row."""
        if not self.without_label.any():
            return {}
        row_ids = self.batch["row_id"]
        chosen = {split: self.without_label & (codes == code) for code, split in enumerate(SPLITS)}
        return {split: row_ids.filter(pa.array(rows)).to_pylist() for split, rows in chosen.items()}

    def with_label(self, codes: Codes) -> tuple[pa.RecordBatch, Codes, npt.NDArray[np.bool_]]:
        """The encoded rows that have a label, the split of each, and whether it is cut."""
        kept = ~self.without_label
        if kept.all():
            return self.batch, codes, self.truncated
        return self.batch.filter(pa.array(kept)), codes[kept], self.truncated[kept]


class Kept:
    """A batch of the scratch file: the rows that are not removed, and the split of each."""

    def __init__(self, stored: pa.RecordBatch, splits: Codes) -> None:
        self._stored, self._splits = stored, splits

    @cached_property
    def rows(self) -> pa.RecordBatch:
        kept = self._splits != REMOVED
        return self._stored if kept.all() else self._stored.filter(pa.array(kept))

    @cached_property
    def codes(self) -> Codes:
        found: Codes = self._splits[self._splits != REMOVED]
        return found


def _kept(opened: t.Callable[[bytes], t.Any], scratch: Path, splits: Codes) -> Iterator[Kept]:
    """The batches of the scratch file that have rows which are not removed."""
    start = 0
    with opened(os.fsencode(scratch)) as source:
        for stored in pa.ipc.open_stream(source):
            codes = splits[start : start + len(stored)]
            start += len(stored)
            if (codes != REMOVED).any():
                yield Kept(stored, codes)


def _encoded(kept: Kept, *, to_columns: Encoder, schema: pa.Schema) -> Encoded:
    batch = kept.rows
    columns = to_columns(batch.to_pylist())
    made_from = np.array(columns.pop("row", np.arange(len(batch))), np.int64)
    truncated = np.array(columns.pop("truncated"), bool)
    row_ids = batch["row_id"].take(pa.array(made_from))
    trainable = np.array(columns.pop("trainable", np.ones(len(truncated))), bool)
    notes = columns.pop("notes", ())
    if not any(notes):
        notes = ()
    without_label = np.array(columns.pop("lost", np.zeros(len(truncated))), bool)
    input_ids = columns["input_ids"]
    if not isinstance(input_ids, pa.Array):
        input_ids = pa.array(input_ids, schema.field("input_ids").type)
    columns |= {"row_id": row_ids, "input_ids": input_ids, "length": input_ids.value_lengths()}
    return Encoded(
        batch=pa.RecordBatch.from_pydict(columns, schema=schema),
        made_from=made_from,
        truncated=truncated,
        without_label=without_label,
        untrainable=row_ids.filter(pa.array(~trainable)).to_pylist(),
        notes=notes,
    )


def _packed(found: Encoded) -> Buffer:
    """What `_unpacked` reads; the columns of the batch go as Arrow writes them."""
    batch, beside = found.batch, {"untrainable": found.untrainable, "notes": list(found.notes)}
    for name in ARRAYS:
        batch = batch.append_column(name, pa.array(getattr(found, name)))
    batch = batch.replace_schema_metadata({BESIDE: json.dumps(beside)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _unpacked(data: Buffer) -> Encoded:
    batch = pa.ipc.open_stream(data).read_next_batch()
    beside = json.loads(batch.schema.metadata[BESIDE])
    arrays = {name: batch[name].to_numpy(zero_copy_only=False) for name in ARRAYS}
    names = [name for name in batch.schema.names if name not in ARRAYS]
    return Encoded(batch=batch.select(names).replace_schema_metadata(None), **arrays, **beside)


def _processes(scratch: Path, batches: int) -> int:
    """How many processes encode: one a CPU, but only as many as have enough to do."""
    if scratch.stat().st_size < WORTHWHILE:
        return 1
    return max(1, min(cores(), batches // BATCHES_EACH))


def _by_split(batch: pa.RecordBatch, codes: Codes) -> Iterator[pa.RecordBatch]:
    """The rows of each split, in order; ``codes``: the split of each row."""
    ordered = batch.take(pa.array(np.argsort(codes, kind="stable")))
    ends = np.bincount(codes, minlength=len(SPLITS)).cumsum().tolist()
    return (ordered.slice(start, end - start) for start, end in zip((0, *ends), ends, strict=False))


def _note(noted: Sequence[Sequence[str]], codes: Codes, row_ids: pa.StringArray, notes: Mapping[str, Notes]) -> None:
    """Remember what has to be said of rows; ``codes``: the split of each."""
    for number, of_row in enumerate(noted):
        for note in of_row:
            notes[SPLITS[codes[number]]].add(note, row_ids[number].as_py())


@dataclass
class Lost:
    """Rows of a split whose label is cut off in all that is made of them: no other label may stand for it."""

    rows: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row_ids: list[str]) -> None:
        """``row_ids``: one for each encoded row, those of one row side by side."""
        distinct = list(dict.fromkeys(row_ids))
        self.rows += len(distinct)
        self.first += distinct[: LISTED_ROWS - len(self.first)]

    def report(self) -> dict[str, t.Any]:
        """What the data report says of them; nothing where there are none."""
        return {"label_cut_off": {"rows": self.rows, "first": self.first}} if self.rows else {}


@dataclass
class Untrainable:
    """Rows of which the tokens hold no label."""

    rows: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row_ids: list[str]) -> None:
        self.rows += len(row_ids)
        self.first += row_ids[: LISTED_ROWS - len(self.first)]

    def refuse(self, max_seq_length: int) -> None:
        """Raise `UserError` if there are any."""
        if self.rows:
            listed = ", ".join(self.first) + (", …" if self.rows > len(self.first) else "")
            raise UserError(
                f"{self.rows} row(s) leave nothing to learn: within max_seq_length={max_seq_length} tokens none has a "
                f"label: {listed}. Remove or mend them, or raise max_seq_length."
            )


class SplitWriter:
    """The encoded and the raw rows of one split, in batches of ``batch_size`` rows whatever comes in."""

    def __init__(
        self,
        stack: ExitStack,
        output: Path,
        split: str,
        *,
        encoded: pa.Schema,
        rows: pa.Schema,
        batch_size: int,
        max_seq_length: int,
    ) -> None:
        self.batch_size = batch_size
        self.lengths = TokenLengths(max_seq_length)
        self.pending: tuple[list[pa.RecordBatch], list[pa.RecordBatch]] = ([], [])
        self.writers = []
        for kind, schema in (("encoded", encoded), ("rows", rows)):
            self.writers.append(stack.enter_context(ShardWriter(output / kind, split, schema)))

    def write(self, encoded: pa.RecordBatch, rows: pa.RecordBatch, truncated: npt.NDArray[np.bool_]) -> None:
        if not len(rows):
            return
        self.lengths.add(encoded["length"].to_numpy(), int(truncated.sum()))
        for pending, writer, batch in zip(self.pending, self.writers, (encoded, rows), strict=True):
            pending.append(batch)
            waiting = sum(map(len, pending))
            if waiting >= self.batch_size:
                self._write(pending, writer, waiting // self.batch_size * self.batch_size)

    def flush(self) -> None:
        for pending, writer in zip(self.pending, self.writers, strict=True):
            if pending:
                self._write(pending, writer, sum(map(len, pending)))

    def _write(self, pending: list[pa.RecordBatch], writer: ShardWriter, rows: int) -> None:
        table = pa.Table.from_batches(pending).combine_chunks()
        writer.write(table.slice(0, rows), self.batch_size)
        pending[:] = table.slice(rows).to_batches()
