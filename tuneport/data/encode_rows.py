"""Pass 2: stream the scratch file through the tokenizer and write every split."""

from __future__ import annotations

import os
import typing as t
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tuneport.data.data_report import LISTED_ROWS, Notes, TokenLengths
from tuneport.data.options import PrepareParams
from tuneport.data.row_progress import RowProgress
from tuneport.data.shards import ShardWriter, with_row_id
from tuneport.data.splits import REMOVED, SPLITS, Codes
from tuneport.errors import UserError
from tuneport.tasks.task import Encoder, Meta, Task


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
) -> tuple[dict[str, TokenLengths], dict[str, Lost], dict[str, Notes]]:
    """Write ``encoded/`` and ``rows/`` of every split; returns, by split, the token lengths, the rows without a label
    left, and what has to be said of rows.

    Raises `UserError` where a row's tokens hold no label, and where no training row's do.
    """
    encoded_schema = with_row_id(task.encoded_schema(meta, options)).append(pa.field("length", pa.int32()))
    row_schema = with_row_id(task.row_schema(options))
    progress = RowProgress("rows encoded", int((splits != REMOVED).sum()))
    untrainable, lost = Untrainable(), {split: Lost() for split in SPLITS}
    notes = {split: Notes() for split in SPLITS}
    start = 0
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
        source = stack.enter_context(pa.OSFile(os.fsencode(scratch)))
        for stored in pa.ipc.open_stream(source):
            codes = splits[start : start + len(stored)]
            start += len(stored)
            kept = codes != REMOVED
            batch, codes = stored.filter(pa.array(kept)), codes[kept]
            if not len(batch):
                continue
            columns = to_columns(batch.to_pylist())
            made_from = np.array(columns.pop("row", range(len(batch))), np.int64)
            truncated = np.array(columns.pop("truncated"), bool)
            row_ids = batch["row_id"].take(pa.array(made_from))
            if "trainable" in columns:
                untrainable.add(row_ids.filter(pa.array(~np.array(columns.pop("trainable"), bool))).to_pylist())
            _note(columns.pop("notes", ()), [SPLITS[code] for code in codes[made_from]], row_ids, notes)
            input_ids = columns["input_ids"]
            if not isinstance(input_ids, pa.Array):
                input_ids = pa.array(input_ids, encoded_schema.field("input_ids").type)
            columns |= {"row_id": row_ids, "input_ids": input_ids, "length": input_ids.value_lengths()}
            without_label = np.array(columns.pop("lost", np.zeros(len(truncated))), bool)
            encoded = pa.RecordBatch.from_pydict(columns, schema=encoded_schema)
            if without_label.any():
                for code, split in enumerate(SPLITS):
                    lost[split].add(row_ids.filter(pa.array(without_label & (codes[made_from] == code))).to_pylist())
                encoded = encoded.filter(pa.array(~without_label))
                made_from, truncated = made_from[~without_label], truncated[~without_label]
            for code, writer in enumerate(writers):
                chosen, of_chosen = codes == code, codes[made_from] == code
                writer.write(encoded.filter(pa.array(of_chosen)), batch.filter(pa.array(chosen)), truncated[of_chosen])
            progress.advance(len(batch))
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


def _note(
    noted: Sequence[Sequence[str]], splits: Sequence[str], row_ids: pa.StringArray, notes: Mapping[str, Notes]
) -> None:
    for number, of_row in enumerate(noted):
        for note in of_row:
            notes[splits[number]].add(note, row_ids[number].as_py())


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
