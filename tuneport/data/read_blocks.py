"""Pass 1's work on a block of rows, in one process or in several.

Several of them go through the same files. Each reads, of the rows, the values of its own blocks: most of what a row
takes is to parse and check it, and little to find where it ends. What is made of the blocks comes in their order.
"""

from __future__ import annotations

import itertools
import json
import typing as t
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tuneport.data.duplicates import identity_hash
from tuneport.data.options import PrepareParams
from tuneport.data.readers import RawRow, Source, Unread
from tuneport.data.shards import with_row_id
from tuneport.data.workers import Buffer, Work, cores, mapped
from tuneport.errors import UserError, excerpt
from tuneport.json_yaml import to_json
from tuneport.labels import Spellings
from tuneport.tasks.task import Drop, Refuse, Row, Task, check_text

WORTHWHILE = 4 << 20  # bytes of rows that take longer to read than processes take to start
BLOCKS_EACH = 4  # at least, that a process works on
HASHES, TEXTS, BESIDE = ("identities", "contents", "groups"), "inputs", b"beside"
BESIDE_THE_ROWS = ("labels", "read", "spelt", "dropped", "refused", "notes", "read_as", "cut", "over")
Hashes: t.TypeAlias = "npt.NDArray[np.uint64]"


@dataclass(kw_only=True)
class BlockRead:
    """What a block of rows becomes; the arrays have an entry for each usable row, or none where a task has no such."""

    batch: pa.RecordBatch  # the usable rows
    identities: Hashes  # hashes of the inputs
    contents: Hashes  # and of what is written
    groups: Hashes
    classes: npt.NDArray[np.int32]  # places in ``labels``
    inputs: list[str] = field(default_factory=list)  # where near duplicates are looked for among all rows
    labels: list[tuple[str, ...]] = field(default_factory=list)
    read: int = 0
    spelt: list[tuple[str, str, int]] = field(default_factory=list)  # spelling, label, rows: see `Spellings`
    dropped: list[tuple[str, str, str]] = field(default_factory=list)  # why, where, and a line that holds the row
    refused: list[tuple[str, str]] = field(default_factory=list)  # the problem, and where
    notes: list[tuple[str, str]] = field(default_factory=list)  # what is to be said, and where
    read_as: dict[str, int] = field(default_factory=dict)  # as `Source.read_as`, so far
    cut: bool = False  # whether the source has more rows than are to be read
    over: bool = False  # whether no row comes after these


class Blocks:
    """The rows of a source, ``size`` at a time; ``most``: so many of them are to be read."""

    def __init__(self, rows: Iterator[RawRow | int], size: int, most: int | None) -> None:
        self.rows, self.size, self.most = rows, size, most
        self.number, self.cut = 0, False
        self._ahead: list[RawRow | int] = []

    def block(self) -> Iterator[RawRow]:
        """The rows of the next block, whose values must be read."""
        for _ in range(self.size):
            if self.over():
                return
            row = self._ahead.pop()
            if isinstance(row, int):
                raise RuntimeError("a block was asked for whose rows are not read")
            self.number += 1
            yield row

    def over(self) -> bool:
        """Whether no row is left to be read."""
        if not self._ahead:
            for row in self.rows:
                self._ahead.append(row)
                break
            else:
                return True
        self.cut = self.number == self.most
        return self.cut

    def skip(self) -> None:
        """Go past the next block."""
        end = self.number + self.size if self.most is None else min(self.number + self.size, self.most)
        while self.number < end and not self.over():
            row = self._ahead.pop()
            rows = row if isinstance(row, int) else 1
            passed = min(rows, end - self.number)
            self.number += passed
            if passed < rows:
                self._ahead.append(rows - passed)


class BlockReader:
    """Reads blocks of one source; what a task notes of earlier rows of it is kept."""

    def __init__(
        self,
        task: Task,
        options: PrepareParams,
        source: Source,
        wanted: Mapping[str, str],
    ) -> None:
        self.task, self.options, self.source, self.wanted = task, options, source, wanted
        self.optional = task.optional_columns(options)
        self.first_column = next(iter(wanted.values()), "")
        self.schema = with_row_id(task.row_schema(options))
        self.equal: t.Any = getattr(options, "equal_labels", "normal")
        self._read = task.reader(options)

    def blocks(self, unread: Unread | None = None) -> Blocks:
        """All blocks from the first on; those with rows that are ``unread`` can only be skipped."""
        rows = self.source.rows_apart(self.wanted, self.optional, unread)
        return Blocks(rows, self.options.batch_size, self.source.max_rows)

    def read(self, blocks: Blocks, spellings: Spellings | None = None) -> BlockRead:
        """The next block; ``spellings``: of earlier ones, where those settle how labels are written; they are added to.

        Raises `UserError` where a row makes that no further one can be read.
        """
        found, codes = _Found(), dict[tuple[str, ...], int]()
        own = Spellings(self.equal)
        for raw in blocks.block():
            found.read += 1
            try:
                if raw.values.get(self.first_column) == self.first_column and _is_header(raw.values):
                    raise Drop("a header in the midst of the rows")
                row = self.task.spelt(self._row(raw), spellings or own)
                self._note(row, _group(raw.values, self.options.group_key), found, codes)
            except Drop as e:
                found.dropped.append((str(e), raw.where, _dropped_line(raw, str(e))))
                continue
            except Refuse as e:
                found.refused.append((e.problem, f"{raw.where} ({e.found})" if e.found else raw.where))
                continue
            found.notes += [(note, raw.where) for note in row.pop("notes", ())]
            found.rows.append({"row_id": raw.row_id, **row})
        return BlockRead(
            batch=pa.RecordBatch.from_pylist(found.rows, self.schema),
            identities=np.array(found.identities, np.uint64),
            contents=np.array(found.contents, np.uint64),
            groups=np.array(found.groups, np.uint64),
            classes=np.array(found.classes, np.int32),
            inputs=found.inputs,
            labels=list(codes),
            read=found.read,
            spelt=[(text, label, own.changed[text]) for text, label in own.known.items()],
            dropped=found.dropped,
            refused=found.refused,
            notes=found.notes,
            over=blocks.over(),
            cut=blocks.cut,
            read_as=dict(self.source.read_as),
        )

    def _row(self, raw: RawRow) -> Row:
        try:
            return self._read(raw.values, raw.where)
        except UserError:
            if self.source.doubts:  # the file holds no rows at all
                raise UserError(self.source.doubts[0]) from None
            raise

    def _note(self, row: Row, group: str | None, found: _Found, codes: dict[tuple[str, ...], int]) -> None:
        """Remember of a row what takes part in the split."""
        labels, inputs = tuple(self.task.labels(row)), self.task.identity(row)
        written = self.task.reference(row)
        check_text(inputs, written or "", group or "", *labels)
        found.identities.append(identity_hash(inputs))
        if written is not None:
            found.contents.append(identity_hash(f"{inputs}\0{written}"))
        if group is not None:
            found.groups.append(identity_hash(group))
        found.classes.append(codes.setdefault(labels, len(codes)))
        if self.options.deduplicate == "near":
            found.inputs.append(inputs)


@dataclass
class _Found:
    """A block as it is read, row by row."""

    rows: list[Row] = field(default_factory=list)
    identities: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    read: int = 0
    dropped: list[tuple[str, str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def read_blocks(reader: BlockReader, spellings: Spellings, processes: int | None = None) -> Iterator[BlockRead]:
    """What is made of each block of a source, in order, which does not depend on how many ``processes`` make it.

    None: one a CPU, where there are rows enough. Blocks up to the first with a usable row are read here, so that all
    processes know what a task notes of that. Raises `UserError` as the source does, and where no more can be read.
    """
    several = _processes(reader) if processes is None else processes
    blocks, alone = reader.blocks(), several < 2
    done = 0
    while True:
        done += 1
        found = reader.read(blocks, spellings if reader.equal == "alike" else None)
        yield found
        if found.over:
            return
        if not alone and len(found.batch):
            break
    work = Work[_Turn, BlockRead](
        make=lambda turn: reader.read(turn.blocks()), pack=_packed, unpack=lambda data: _unpacked(data, reader.schema)
    )
    turns = mapped(work, lambda: _turns_here(reader, done), several, theirs=partial(_turns, reader, done))
    with closing(turns) as made:
        for _, found in made:
            yield found
            if found.over:
                return


class _Turn(t.NamedTuple):
    """A block that waits for its reader."""

    blocks: Callable[[], Blocks]


def _turns(reader: BlockReader, done: int, first: int, step: int) -> Iterator[_Turn]:
    """The blocks after those that are ``done``, of which every ``step``-th, from ``first`` on, is read."""
    size = reader.options.batch_size

    def unread(row: int) -> int:
        block = row // size
        own = block + (first - (block - done)) % step if block >= done else done + first
        return own * size - row if own > block else row + 1 - (block + 1) * size

    blocks = reader.blocks(unread)
    for _ in range(done):
        blocks.skip()
    for number in itertools.count():
        if blocks.over():
            return
        yield _Turn(lambda: blocks)
        if number % step != first:
            blocks.skip()


def _turns_here(reader: BlockReader, done: int) -> Iterator[_Turn]:
    """The same without end, which others say; a block is only read if its process is lost."""
    size, wanted, at = reader.options.batch_size, done - 1, 0
    blocks = reader.blocks(lambda row: max(0, wanted * size - row))

    def here() -> Blocks:
        nonlocal at
        while at < wanted:
            blocks.skip()
            at += 1
        at += 1
        return blocks

    while True:
        wanted += 1
        yield _Turn(here)


def _processes(reader: BlockReader) -> int:
    """How many processes read: one a CPU, but only of files of this machine with rows enough."""
    source = reader.source
    if not reader.task.reads_rows_apart or reader.equal == "alike" or any(s.file.remote for s in source.shards):
        return 1
    if source.max_rows is not None and source.max_rows <= BLOCKS_EACH * reader.options.batch_size:
        return 1
    if source.bytes_here < WORTHWHILE:
        return 1
    return cores()


def _packed(found: BlockRead) -> Buffer:
    """What `_unpacked` reads."""
    columns: dict[str, pa.Array] = {"classes": pa.array(found.classes, pa.int32())}
    for name in HASHES:
        if len(hashes := getattr(found, name)):
            columns[name] = pa.array(hashes, pa.uint64())
    if found.inputs:
        columns[TEXTS] = pa.array(found.inputs, pa.large_string())
    batch = found.batch
    for name, column in columns.items():
        batch = batch.append_column(f"{name} beside", column)
    beside = {name: getattr(found, name) for name in BESIDE_THE_ROWS}
    batch = batch.replace_schema_metadata({BESIDE: json.dumps(beside)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _unpacked(data: Buffer, schema: pa.Schema) -> BlockRead:
    batch = pa.ipc.open_stream(data).read_next_batch()
    beside = json.loads(batch.schema.metadata[BESIDE])
    beside["labels"] = [tuple(labels) for labels in beside["labels"]]

    def column(name: str, kind: t.Any) -> t.Any:
        place = batch.schema.get_field_index(f"{name} beside")
        return np.empty(0, kind) if place < 0 else batch.column(place).to_numpy(zero_copy_only=False)

    texts = batch.schema.get_field_index(f"{TEXTS} beside")
    return BlockRead(
        batch=pa.RecordBatch.from_arrays(batch.columns[: len(schema)], schema=schema),
        **{name: column(name, np.uint64) for name in HASHES},
        classes=column("classes", np.int32),
        inputs=[] if texts < 0 else batch.column(texts).to_pylist(),
        **beside,
    )


def _is_header(values: Mapping[str, t.Any]) -> bool:
    """Whether a row holds the names of its columns, as where files were joined."""
    return len(values) > 1 and all(value == name for name, value in values.items())


def _group(values: Mapping[str, t.Any], group_key: str | None) -> str | None:
    """The name of a row's group; None without a ``group_key``."""
    if group_key is None:
        return None
    value = values.get(group_key)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Drop(f"no group in column '{group_key}'")
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def _dropped_line(raw: RawRow, reason: str) -> str:
    record = {"where": raw.where, "reason": reason, "row": raw.values}
    try:
        text = to_json(record, default=str)
        text.encode()
    except (ValueError, RecursionError):  # half a surrogate pair, or a value that is nested too deep
        text = to_json({**record, "row": ascii(excerpt(raw.values, 1000))})
    return text + "\n"
