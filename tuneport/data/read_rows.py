"""Pass 1: keep the usable rows in a scratch file, and in memory what the split needs to know of each."""

from __future__ import annotations

import logging
import os
import typing as t
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tuneport.data.mixtures import Parts, check_labels, report
from tuneport.data.near_duplicates import NearDuplicateIndex
from tuneport.data.options import PrepareParams
from tuneport.data.read_blocks import BlockRead, BlockReader, read_blocks
from tuneport.data.readers import Source
from tuneport.data.row_notes import LISTED_ROWS
from tuneport.data.row_progress import RowProgress
from tuneport.data.shards import with_row_id
from tuneport.data.source_count import SourceCount, summed
from tuneport.data.splits import SPLITS, Codes
from tuneport.errors import UserError
from tuneport.labels import Spellings
from tuneport.tasks.task import Row, Task

log = logging.getLogger("tuneport.preprocess")
# A duplicate is removed from the training rows rather than from what they are measured with, so those are read first.
READ_ORDER = ("test", "validation", "train")


@dataclass(kw_only=True)
class Collected:
    """Pass 1's result: one entry a row in each array, in the order of the scratch file."""

    identities: array[int] = field(default_factory=lambda: array("Q"))  # hashes of the inputs
    contents: array[int] = field(default_factory=lambda: array("Q"))  # and of what is written; empty for other tasks
    classes: array[int] = field(default_factory=lambda: array("i"))
    groups: array[int] = field(default_factory=lambda: array("Q"))  # hashes; empty without a group_key
    class_labels: list[tuple[str, ...]] = field(default_factory=list)  # by class code: the labels of its rows
    sources: dict[str, list[SourceCount]] = field(default_factory=dict)  # by split, in `READ_ORDER`
    spellings: Spellings = field(default_factory=lambda: Spellings("exact"))

    @property
    def counts(self) -> list[SourceCount]:
        """Of every source, in the order of the rows."""
        return [count for counts in self.sources.values() for count in counts]

    def source_codes(self) -> Codes:
        """For which split each row was given, as an index into `SPLITS`."""
        counts = [sum(count.usable for count in counts) for counts in self.sources.values()]
        return np.repeat(np.array([SPLITS.index(split) for split in self.sources], np.uint8), counts)

    def parts(self) -> Parts:
        """The source of each row, as an index into `counts`."""
        rows = [count.usable for count in self.counts]
        return np.repeat(np.arange(len(rows), dtype=np.uint16), rows)

    def mixture(self, split: str) -> list[SourceCount]:
        """The sources that a split's rows come from, where they are several."""
        found = self.sources.get(split) or self.sources["train"]
        return found if len(found) > 1 else []

    def total(self, split: str) -> SourceCount:
        """What became of all rows that were given for a split."""
        first, *others = self.sources[split]
        return first if not others else summed([first, *others])

    def labels(self, count: SourceCount) -> Counter[str]:
        """How many rows of a source have each label."""
        counts = self.counts
        place = next(i for i, other in enumerate(counts) if other is count)
        begin = sum(before.usable for before in counts[:place])
        found: Counter[str] = Counter()
        for code, rows in Counter(self.classes[begin : begin + count.usable]).items():
            for label in self.class_labels[code]:
                found[label] += rows
        return found


def collect(
    task: Task,
    options: PrepareParams,
    *,
    sources: Mapping[str, Sequence[Source]],
    wanted: Mapping[str, str],
    scratch: Path,
    dropped: Path,
    near: NearDuplicateIndex,
    processes: int | None = None,
) -> Collected:
    """Write the usable rows of every source to the scratch file and return what the split needs to know of them.

    What is found does not depend on how many ``processes`` read; None: one a CPU, where there are rows enough.

    Raises `UserError` where a source cannot be read, the task refuses rows of it, more of them are unusable than
    ``max_dropped_fraction``, or two sources of a split have no label in common.
    """
    collected = Collected(spellings=Spellings(getattr(options, "equal_labels", "normal")))
    codes: dict[tuple[str, ...], int] = {}
    schema = with_row_id(task.row_schema(options))
    with _stream_writer(scratch, schema) as writer, dropped.open("w", encoding="utf-8") as dropped_file:
        for split, source in ((s, source) for s in READ_ORDER for source in sources.get(s, ())):
            count = SourceCount(file=source.name, weight=source.weight, files=tuple(s.name for s in source.shards))
            collected.sources.setdefault(split, []).append(count)
            reader = BlockReader(task, options, source, wanted)
            progress = RowProgress(f"reading {source.name}")
            for found in read_blocks(reader, collected.spellings, processes):
                for number, inputs in enumerate(found.inputs, len(collected.identities)):
                    near.add(number, inputs)
                _take(found, collected, codes)
                _count(found, count)
                dropped_file.writelines(line for _, _, line in found.dropped)
                if len(found.batch):
                    writer.write_batch(found.batch)
                progress.advance(found.read)
                if found.cut:
                    count.max_rows = source.max_rows
                count.read_as = found.read_as
            _check_refused(count)
            _check_dropped(count, options.max_dropped_fraction)
            _say(count, source, split)
    _check_labels(collected)
    return collected


def _take(found: BlockRead, collected: Collected, codes: dict[tuple[str, ...], int]) -> None:
    """Remember of a block's rows what takes part in the split."""
    for labels in found.labels:
        if labels not in codes:
            codes[labels] = len(codes)
            collected.class_labels.append(labels)
    collected.identities.frombytes(found.identities.tobytes())
    collected.contents.frombytes(found.contents.tobytes())
    collected.groups.frombytes(found.groups.tobytes())
    known = np.array([codes[labels] for labels in found.labels], np.int32)
    collected.classes.frombytes(known[found.classes].tobytes())
    collected.spellings.add(found.spelt)


def _count(found: BlockRead, count: SourceCount) -> None:
    """Add what became of a block's rows."""
    count.read += found.read
    for reason, where, _ in found.dropped:
        _list(count.dropped, count.dropped_where, reason, where)
    for problem, where in found.refused:
        _list(count.refused, count.refused_where, problem, where)
    for note, where in found.notes:
        count.notes.add(note, where)


def _list(counts: Counter[str], first: dict[str, list[str]], why: str, where: str) -> None:
    counts[why] += 1
    listed = first.setdefault(why, [])
    if len(listed) < LISTED_ROWS:
        listed.append(where)


def _check_labels(collected: Collected) -> None:
    for split, counts in collected.sources.items():
        if len(counts) > 1:
            check_labels(split, {count.file: collected.labels(count) for count in counts})


def _say(count: SourceCount, source: Source, split: str) -> None:
    """Log what became of a source's rows."""
    for reason, n in count.dropped.most_common():
        first = ", ".join(count.dropped_where[reason][:3]) + ", …" * (n > 3)
        log.warning("%s: %s rows left out: %s (%s)", source.name, f"{n:,}", reason, first)
    for how, files in count.read_as.items():
        log.info("%s: %s%s", source.name, how, f" ({files:,} files)" if len(source.shards) > 1 else "")
    if count.max_rows is not None:
        limit = f"max_{split}_rows" if not source.title else f"max_rows or max_{split}_rows"
        log.warning("%s: only its first %s rows are read (%s)", source.name, f"{count.max_rows:,}", limit)
    log.info("read %s rows of %s (%s): %s usable", f"{count.read:,}", source.name, split, f"{count.usable:,}")
    for note, n in count.notes.rows.most_common():
        log.warning("%s of %s rows of %s: %s", f"{n:,}", f"{count.read:,}", source.name, note)


def _check_refused(count: SourceCount) -> None:
    if not count.refused:
        return
    problems = "; ".join(
        f"{problem} ({n} {'row' if n == 1 else 'rows'}: {', '.join(count.refused_where[problem])}"
        f"{f' and {n - LISTED_ROWS} more' if n > LISTED_ROWS else ''})"
        for problem, n in count.refused.most_common()
    )
    raise UserError(
        f"{count.file}: {count.refused.total()} of {count.read} rows are wrong: {problems}. Mend or remove them."
    )


def _check_dropped(count: SourceCount, allowed: float) -> None:
    if count.dropped.total() <= allowed * count.read:
        return
    reasons = "; ".join(
        f"{reason} ({n} rows: {', '.join(count.dropped_where[reason][:5])}{', …' if n > 5 else ''})"
        for reason, n in count.dropped.most_common()
    )
    raise UserError(
        f"{count.file}: {count.dropped.total()} of {count.read} rows cannot be used: {reasons}. "
        f"Mend them, or allow more than max_dropped_fraction={allowed:g}."
    )


def read_scratch(scratch: Path, numbers: npt.NDArray[np.int64]) -> Iterator[Row]:
    """Rows of the scratch file by their numbers, which must grow."""
    start = 0
    with pa.OSFile(os.fsencode(scratch)) as source:
        for batch in pa.ipc.open_stream(source):
            first, last = np.searchsorted(numbers, (start, start + len(batch)))
            yield from batch.take(pa.array(numbers[first:last] - start)).to_pylist()
            start += len(batch)


def read_column(scratch: Path, chosen: npt.NDArray[np.bool_], name: str) -> Iterator[pa.Array]:
    """One column of the scratch file, of the rows that ``chosen`` (one a row) says, a batch at a time."""
    start = 0
    with pa.OSFile(os.fsencode(scratch)) as source:
        for batch in pa.ipc.open_stream(source):
            yield batch.column(name).filter(pa.array(chosen[start : start + len(batch)]))
            start += len(batch)


@contextmanager
def _stream_writer(path: Path, schema: pa.Schema) -> Iterator[t.Any]:
    with pa.OSFile(os.fsencode(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def rows_by_source(collected: Collected, splits: Codes) -> dict[str, dict[str, int]]:
    """By each split whose rows come from several sources: how many rows of each it has."""
    parts, counts = collected.parts(), collected.counts
    found = {}
    for code, split in enumerate(SPLITS):
        if mixed := {id(count) for count in collected.mixture(split)}:
            rows = np.bincount(parts[splits == code], minlength=len(counts)).tolist()
            found[split] = {count.file: n for count, n in zip(counts, rows, strict=True) if id(count) in mixed}
    return found


def files_by_source(collected: Collected) -> dict[str, dict[str, list[str]]]:
    """By each split whose rows come from several sources: the files of each, as row ids call them."""
    mixed = {split: collected.mixture(split) for split in SPLITS}
    return {split: {count.file: list(count.files) for count in counts} for split, counts in mixed.items() if counts}


def source_report(counts: Sequence[SourceCount]) -> dict[str, t.Any]:
    """What the data report says of the rows given for one split, and of each source where they are several."""
    count = counts[0] if len(counts) == 1 else summed(counts)
    return {
        "file": count.file,
        **({"read_as": count.read_as} if count.read_as else {}),
        **({"first_rows_only": count.max_rows} if count.max_rows is not None else {}),
        "read": count.read,
        "kept": count.kept,
        **({"left_out": count.left_out} if count.left_out else {}),
        "duplicates_removed": count.duplicates,
        "near_duplicates_removed": count.near_duplicates,
        "dropped": {
            reason: {"rows": n, "first": count.dropped_where[reason]} for reason, n in count.dropped.most_common()
        },
        **count.notes.report(),
        **({"mixture": report(counts)} if len(counts) > 1 else {}),
    }
