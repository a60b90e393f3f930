"""Turn a user's rows into tokenised splits, in two passes and in memory that does not grow with the rows.

Pass 1 reads the sources, keeps usable rows in a scratch file and 13 bytes a row in memory: hash of the inputs, code
of the labels, the source; 8 more with a group; about 100 more where near copies are removed, else sought in
a bounded sample. Copies and splits follow from those. Pass 2 streams the scratch file through the tokenizer.
"""

from __future__ import annotations

import json
import logging
import os
import time
import typing as t
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tuneport.data.copies import Copies, find_copies, identity_hash
from tuneport.data.encoders import COMPARED_ROWS, choose_encoder
from tuneport.data.near_copies import NearCopies, NearCopyIndex, sample_rows
from tuneport.data.options import PrepareParams
from tuneport.data.readers import RawRow, Source
from tuneport.data.report import LISTED_ROWS, TokenLengths, copies_report, groups_report, near_copies_report
from tuneport.data.shards import ShardWriter
from tuneport.data.splits import SPLITS, Codes, assign_group_splits, assign_splits
from tuneport.data.tokenizing import chat_template, load_tokenizer, longest_input, read_json, resolve_length
from tuneport.encoding.base_model import BaseModel
from tuneport.errors import UserError
from tuneport.stage import save_json
from tuneport.tasks.task import Drop, Encoder, Meta, Refuse, Row, Task

log = logging.getLogger("tuneport.preprocess")

REMOVED = 255  # the split code of a removed copy
PROGRESS_SECONDS = 2.0
GENERATION_CONFIG = "generation_config.json"
# A copy is removed from the training rows rather than from what they are measured with, so those are read first.
READ_ORDER = ("test", "validation", "train")


@dataclass(kw_only=True)
class SourceCount:
    """What became of one source's rows."""

    file: str
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_where: dict[str, list[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    refused_where: dict[str, list[str]] = field(default_factory=dict)
    copies: int = 0
    near_copies: int = 0

    @property
    def usable(self) -> int:
        return self.read - self.dropped.total()


@dataclass(kw_only=True)
class Collected:
    """Pass 1's result: one entry a row in each array, in the order of the scratch file."""

    identities: array[int] = field(default_factory=lambda: array("Q"))
    classes: array[int] = field(default_factory=lambda: array("i"))
    groups: array[int] = field(default_factory=lambda: array("Q"))  # hashes; empty without a group_key
    class_labels: list[tuple[str, ...]] = field(default_factory=list)  # by class code: the labels of its rows
    sources: dict[str, SourceCount] = field(default_factory=dict)  # by split, in `READ_ORDER`

    def source_codes(self) -> Codes:
        counts = [count.usable for count in self.sources.values()]
        return np.repeat(np.array([SPLITS.index(split) for split in self.sources], np.uint8), counts)


def prepare(
    task: Task,
    options: PrepareParams,
    *,
    sources: Mapping[str, Source],
    wanted: Mapping[str, str],
    model: Path,
    output: Path,
) -> None:
    """Read, clean, split, tokenise and write the prepared dataset; see `tuneport.data.prepared` for its shape.

    ``sources`` are by split; ``wanted`` maps the options that name columns to the columns. Raises `UserError`.
    """
    config, tokenizer_config = read_json(model, "config.json"), read_json(model, "tokenizer_config.json")
    max_length = resolve_length(options.max_seq_length, longest_input(config, tokenizer_config))
    tokenizer = load_tokenizer(model, tokenizer_config, max_length)

    scratch = output / "scratch.arrow"
    near = NearCopyIndex(output / "scratch.shingles", options.near_duplicate_threshold)
    collected = collect(
        task, options, sources=sources, wanted=wanted, scratch=scratch, dropped=output / "dropped.jsonl", near=near
    )
    if options.deduplicate != "near":
        numbers = sample_rows(len(collected.identities), options.split_seed)
        for number, row in zip(numbers.tolist(), read_scratch(scratch, numbers), strict=True):
            near.add(number, task.identity(row))
    splits, leakage = divide(collected, options, near)
    near.close()
    histograms = label_histograms(collected, splits)
    base = BaseModel(
        config=config,
        tokenizer=tokenizer,
        tokenizer_config=tokenizer_config,
        generation_config=read_json(model, GENERATION_CONFIG) if (model / GENERATION_CONFIG).is_file() else {},
        chat_template=chat_template(model, tokenizer_config),
        max_seq_length=max_length,
    )
    meta = task.describe(histograms, base, options)
    numbers = np.unique(np.linspace(0, len(splits) - 1, COMPARED_ROWS).astype(np.int64))
    to_columns = choose_encoder(
        task,
        options,
        tokenizer=tokenizer,
        meta=meta,
        sample=read_scratch(scratch, numbers),
        size=scratch.stat().st_size,
    )
    lengths = encode(
        task,
        options,
        to_columns=to_columns,
        meta=meta,
        splits=splits,
        max_length=max_length,
        scratch=scratch,
        output=output,
    )
    scratch.unlink()

    rows = {split: int((splits == code).sum()) for code, split in enumerate(SPLITS)}
    save_json(
        output / "dataset.json",
        {
            "task_name": task.name,
            "columns": task.columns(options),
            "meta": meta,
            "max_seq_length": max_length,
            "pad_to": max_length if options.pad_to_max_length else None,
            "splits": {split: {"rows": n} for split, n in rows.items()},
        },
    )
    save_json(
        output / "data_report.json",
        {
            "sources": {
                split: _source_report(collected.sources[split]) for split in SPLITS if split in collected.sources
            },
            "splits": {
                split: {"rows": rows[split], "labels": histograms[split], **lengths[split].report()} for split in SPLITS
            },
            **leakage,
        },
    )
    truncated = sum(length.truncated for length in lengths.values())
    log.info(
        "train %s, validation %s, test %s rows of at most %d tokens; %s truncated",
        *(f"{n:,}" for n in rows.values()),
        max_length,
        f"{truncated:,}",
    )


# -- pass 1: read ------------------------------------------------------------------------------------------------------


def collect(
    task: Task,
    options: PrepareParams,
    *,
    sources: Mapping[str, Source],
    wanted: Mapping[str, str],
    scratch: Path,
    dropped: Path,
    near: NearCopyIndex,
) -> Collected:
    """Write the usable rows of every source to the scratch file and return what the split needs to know of them.

    Raises `UserError` where a source cannot be read, the task refuses rows of it, or more of them are unusable than
    ``max_dropped_fraction``.
    """
    collected = Collected()
    codes: dict[tuple[str, ...], int] = {}
    schema = _with_row_id(task.row_schema(options))
    with _stream_writer(scratch, schema) as writer, dropped.open("w", encoding="utf-8") as dropped_file:
        for split in (s for s in READ_ORDER if s in sources):
            source, read = sources[split], task.reader(options)
            count = collected.sources[split] = SourceCount(file=source.name)
            batch: list[Row] = []
            for raw in _with_progress(source.rows(wanted), f"reading {source.name}"):
                count.read += 1
                try:
                    row = read(raw.values, raw.where)
                    group = _group(raw.values, options.group_key)
                    identity = _note(row, task, collected, codes, group=group)
                    if options.deduplicate == "near":
                        near.add(len(collected.identities) - 1, identity)
                except Drop as e:
                    _note_drop(raw, str(e), count, dropped_file)
                    continue
                except Refuse as e:
                    _note_refusal(raw, e, count)
                    continue
                batch.append({"row_id": raw.row_id, **row})
                if len(batch) == options.batch_size:
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                    batch.clear()
            if batch:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
            _check_refused(count)
            _check_dropped(count, options.max_dropped_fraction)
            log.info("read %s rows of %s (%s): %s usable", f"{count.read:,}", source.name, split, f"{count.usable:,}")
    return collected


def _group(values: Mapping[str, t.Any], group_key: str | None) -> str | None:
    """The name of a row's group; None without a ``group_key``."""
    if group_key is None:
        return None
    value = values.get(group_key)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Drop(f"no group in column '{group_key}'")
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def _note(
    row: Row,
    task: Task,
    collected: Collected,
    codes: dict[tuple[str, ...], int],
    *,
    group: str | None,
) -> str:
    """Remember of a row what takes part in the split; returns its inputs."""
    labels, inputs = tuple(task.labels(row)), task.identity(row)
    try:
        identity = identity_hash(inputs)
        group_hash = None if group is None else identity_hash(group)
        if labels not in codes:
            "".join(labels).encode()
            codes[labels] = len(codes)
            collected.class_labels.append(labels)
    except UnicodeEncodeError:  # JSON can spell a lone surrogate, which no text file and no tokenizer can hold
        raise Drop("text that is not valid Unicode") from None
    collected.identities.append(identity)
    collected.classes.append(codes[labels])
    if group_hash is not None:
        collected.groups.append(group_hash)
    return inputs


def _note_drop(raw: RawRow, reason: str, count: SourceCount, file: t.TextIO) -> None:
    count.dropped[reason] += 1
    listed = count.dropped_where.setdefault(reason, [])
    if len(listed) < LISTED_ROWS:
        listed.append(raw.where)
    record = {"where": raw.where, "reason": reason, "row": raw.values}
    file.write(json.dumps(record, default=str) + "\n")


def _note_refusal(raw: RawRow, refusal: Refuse, count: SourceCount) -> None:
    count.refused[refusal.problem] += 1
    listed = count.refused_where.setdefault(refusal.problem, [])
    if len(listed) < LISTED_ROWS:
        listed.append(f"{raw.where} ({refusal.found})" if refusal.found else raw.where)


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


# -- between the passes: copies and splits -----------------------------------------------------------------------------


def divide(
    collected: Collected, options: PrepareParams, near: NearCopyIndex
) -> tuple[Codes, dict[str, dict[str, t.Any]]]:
    """Return the split of each row (or `REMOVED`) and what the data report says of copies, near copies and groups.

    Raises `UserError` where too few rows are left.
    """
    identities = np.frombuffer(collected.identities, np.uint64)
    classes = np.frombuffer(collected.classes, np.int32)
    sources = collected.source_codes()
    copies = find_copies(identities)
    other_label = int((classes[copies.rows] != classes[copies.originals]).sum())
    splits = np.full(len(sources), REMOVED, np.uint8)
    keep = np.ones(len(sources), bool)
    if options.deduplicate != "none":
        keep[copies.rows] = False
        _note_removed(collected, sources, copies, other_label)
    near_copies = near.find(copies.rows, remove=options.deduplicate == "near")
    if options.deduplicate == "near":
        keep[near_copies.rows] = False
        _note_near_removed(collected, sources, near_copies, classes)
    for split, count in collected.sources.items():
        _check_left(split, int((sources[keep] == SPLITS.index(split)).sum()), count)
    strata = _rarest_label(classes, collected.class_labels)
    ratios: dict[str, t.Any] = {
        "validation_ratio": options.validation_split_ratio,
        "test_ratio": options.test_split_ratio,
        "seed": options.split_seed,
    }
    groups = np.frombuffer(collected.groups, np.uint64)
    if options.group_key is None:
        splits[keep] = assign_splits(sources[keep], strata[keep], collected.sources, **ratios)
    else:
        _check_groups(groups[keep & (sources == 0)], options.group_key, collected)
        splits[keep] = assign_group_splits(sources[keep], strata[keep], groups[keep], collected.sources, **ratios)
    _check_sizes(splits, collected.sources["train"], options)
    leakage = {
        "duplicates": copies_report(
            options.deduplicate, copies, splits=splits, sources=sources, identities=identities, other_label=other_label
        ),
        "near_duplicates": near_copies_report(
            near_copies, splits=splits, sources=sources, threshold=near.threshold, removed=options.deduplicate == "near"
        ),
    }
    if options.group_key is not None:
        leakage["groups"] = groups_report(options.group_key, groups, splits)
    _warn(leakage)
    return splits, leakage


def _check_groups(groups: npt.NDArray[np.uint64], group_key: str, collected: Collected) -> None:
    missing = [split for split in SPLITS if split not in collected.sources]
    found = len(np.unique(groups))
    if missing and found <= len(missing):
        held = "all are of one group" if found == 1 else f"are of {found} groups"
        raise UserError(
            f"group_key='{group_key}': the {len(groups)} training rows of {collected.sources['train'].file} {held}; "
            f"wanted at least {len(missing) + 1}, as a group stays in one split and {' and '.join(missing)} rows are "
            f"taken from them. Give {' and '.join(f'{split}_file_path' for split in missing)}, or group by another "
            "column."
        )


def _warn(leakage: Mapping[str, Mapping[str, t.Any]]) -> None:
    """Say what may leak from one split into another and was left."""
    near = leakage["near_duplicates"]
    if found := [f"{n:,} {where}" for where, n in near.get("across", {}).items() if n]:
        log.warning(
            "near copies across splits, %s (looked for in %s of %s rows): deduplicate=near removes them",
            ", ".join(found),
            f"{near['checked_rows']:,}",
            f"{near['rows']:,}",
        )
    for where, shared in leakage.get("groups", {}).get("across", {}).items():
        if shared["groups"]:
            log.warning(
                "%s groups are in both %s, as given, with %s rows",
                f"{shared['groups']:,}",
                where,
                f"{shared['rows']:,}",
            )


def _note_near_removed(collected: Collected, sources: Codes, near: NearCopies, classes: npt.NDArray[np.int32]) -> None:
    removed = np.bincount(sources[near.rows], minlength=len(SPLITS))
    for split, count in collected.sources.items():
        count.near_copies = int(removed[SPLITS.index(split)])
    if len(near.rows):
        other_label = int((classes[near.rows] != classes[near.originals]).sum())
        log.warning("%s near copies removed, of which %s with another label", f"{len(near.rows):,}", f"{other_label:,}")


def _note_removed(collected: Collected, sources: Codes, copies: Copies, other_label: int) -> None:
    removed = np.bincount(sources[copies.rows], minlength=len(SPLITS))
    for split, count in collected.sources.items():
        count.copies = int(removed[SPLITS.index(split)])
    if len(copies.rows):
        log.warning("%s copies removed, of which %s with another label", f"{len(copies.rows):,}", f"{other_label:,}")


def _check_left(split: str, left: int, count: SourceCount) -> None:
    if left == 0:
        raise UserError(
            f"{count.file}: none of its {count.read} rows is left for {split}: {count.dropped.total()} cannot be used "
            f"and {count.copies + count.near_copies} are copies. Wanted at least one."
        )


def _check_sizes(splits: Codes, train: SourceCount, options: PrepareParams) -> None:
    sizes = {split: int((splits == code).sum()) for code, split in enumerate(SPLITS)}
    if sizes["train"] < options.min_rows:
        raise UserError(
            f"{train.file}: leaves {sizes['train']} training rows ({train.read} read, {train.dropped.total()} "
            f"unusable, {train.copies + train.near_copies} copies, the rest went to other splits); wanted at least "
            f"min_rows={options.min_rows}. Add rows or lower min_rows."
        )
    for split, size in sizes.items():
        if size == 0:
            raise UserError(
                f"{train.file}: no {'row' if options.group_key is None else 'group'} can be spared for {split}, as "
                f"every label needs one training {'row' if options.group_key is None else 'group'}. "
                f"Add rows, or give {split}_file_path."
            )


def _rarest_label(classes: npt.NDArray[np.int32], class_labels: list[tuple[str, ...]]) -> npt.NDArray[np.int32]:
    """The stratum of each row: its label or, of several, the rarest, so that rare labels reach every split."""
    rows = np.bincount(classes, minlength=len(class_labels)).tolist()
    total: Counter[str] = Counter()
    for labels, n in zip(class_labels, rows, strict=True):
        total.update(dict.fromkeys(labels, n))
    code = {label: i for i, label in enumerate(sorted(total))}
    rarest = [code[min(labels, key=lambda label: (total[label], label))] if labels else -1 for labels in class_labels]
    return np.array(rarest, np.int32)[classes]


def label_histograms(collected: Collected, splits: Codes) -> dict[str, dict[str, int]]:
    """Rows by label, for each split."""
    classes = np.frombuffer(collected.classes, np.int32)
    histograms: dict[str, dict[str, int]] = {}
    for code, split in enumerate(SPLITS):
        found: Counter[str] = Counter()
        rows = np.bincount(classes[splits == code], minlength=len(collected.class_labels)).tolist()
        for labels, n in zip(collected.class_labels, rows, strict=True):
            if n:
                found.update(dict.fromkeys(labels, n))
        histograms[split] = dict(sorted(found.items()))
    return histograms


# -- pass 2: tokenise --------------------------------------------------------------------------------------------------


def encode(
    task: Task,
    options: PrepareParams,
    *,
    to_columns: Encoder,
    meta: Meta,
    splits: Codes,
    max_length: int,
    scratch: Path,
    output: Path,
) -> dict[str, TokenLengths]:
    """Write ``encoded/`` and ``rows/`` of every split; returns their token lengths."""
    encoded_schema = _with_row_id(task.encoded_schema(meta, options)).append(pa.field("length", pa.int32()))
    row_schema = _with_row_id(task.row_schema(options))
    progress = Progress("rows encoded", int((splits != REMOVED).sum()))
    untrainable = Untrainable()
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
                max_length=max_length,
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
            input_ids = columns["input_ids"]
            if not isinstance(input_ids, pa.Array):
                input_ids = pa.array(input_ids, encoded_schema.field("input_ids").type)
            columns |= {"row_id": row_ids, "input_ids": input_ids, "length": input_ids.value_lengths()}
            encoded = pa.RecordBatch.from_pydict(columns, schema=encoded_schema)
            for code, writer in enumerate(writers):
                chosen, of_chosen = codes == code, codes[made_from] == code
                writer.write(encoded.filter(pa.array(of_chosen)), batch.filter(pa.array(chosen)), truncated[of_chosen])
            progress.advance(len(batch))
        untrainable.refuse(max_length)
        for writer in writers:
            writer.flush()
    return {split: writer.lengths for split, writer in zip(SPLITS, writers, strict=True)}


@dataclass
class Untrainable:
    """Rows of which the tokens hold no label."""

    rows: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row_ids: list[str]) -> None:
        self.rows += len(row_ids)
        self.first += row_ids[: LISTED_ROWS - len(self.first)]

    def refuse(self, max_length: int) -> None:
        """Raise `UserError` if there are any."""
        if self.rows:
            listed = ", ".join(self.first) + (", …" if self.rows > len(self.first) else "")
            raise UserError(
                f"{self.rows} row(s) leave nothing to learn: within max_seq_length={max_length} tokens none has a "
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
        max_length: int,
    ) -> None:
        self.batch_size = batch_size
        self.lengths = TokenLengths(max_length)
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


class Progress:
    """Logs ``[done/total] …`` with rows a second, every two seconds."""

    def __init__(self, doing: str, total: int | None = None) -> None:
        self.doing, self.total, self.done = doing, total, 0
        self.started = self.logged = time.monotonic()

    def advance(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if now - self.logged < PROGRESS_SECONDS:
            return
        self.logged = now
        rate = f"{self.done / (now - self.started):,.0f} rows/s"
        if self.total is None:
            log.info("%s: %s rows, %s", self.doing, f"{self.done:,}", rate)
        else:
            log.info("[%d/%d] %s, %s", self.done, self.total, self.doing, rate)


def _with_progress(rows: Iterator[RawRow], doing: str) -> Iterator[RawRow]:
    progress = Progress(doing)
    for number, row in enumerate(rows, 1):
        yield row
        if number % 1000 == 0:
            progress.advance(1000)


def _with_row_id(schema: pa.Schema) -> pa.Schema:
    return pa.schema([("row_id", pa.string()), *schema])


@contextmanager
def _stream_writer(path: Path, schema: pa.Schema) -> Iterator[t.Any]:
    with pa.OSFile(os.fsencode(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def _source_report(count: SourceCount) -> dict[str, t.Any]:
    return {
        "file": count.file,
        "read": count.read,
        "kept": count.usable - count.copies - count.near_copies,
        "copies_removed": count.copies,
        "near_copies_removed": count.near_copies,
        "dropped": {
            reason: {"rows": n, "first": count.dropped_where[reason]} for reason, n in count.dropped.most_common()
        },
    }
