"""What is wrong with the first rows of a user's data, found before anything runs: no tokenizer, no model."""

from __future__ import annotations

import dataclasses as dc
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tuneport.data.near_duplicates import NearDuplicateIndex
from tuneport.data.options import PrepareParams
from tuneport.data.read_rows import Collected, collect
from tuneport.data.readers import Source
from tuneport.data.row_progress import quiet
from tuneport.errors import UserError
from tuneport.labels import alike
from tuneport.tasks.task import Task

FIRST_ROWS = 1000  # of each source that are looked at


def check_rows(
    task: Task, options: PrepareParams, sources: Mapping[str, Sequence[Source]], wanted: Mapping[str, str]
) -> list[str]:
    """Read the first rows as preprocess would; returns what is worth a look, in words.

    Raises `UserError` for what makes preprocess fail: rows that are wrong, too many that cannot be used, and, where
    there are no more rows than these, too few of them or one class alone.
    """
    limited = {split: [of_first(source, FIRST_ROWS) for source in given] for split, given in sources.items()}
    with tempfile.TemporaryDirectory(prefix="tuneport-rows-") as folder, quiet(logging.ERROR):
        near = NearDuplicateIndex(Path(folder, "shingles"), options.near_duplicate_threshold)
        try:
            found = collect(
                task,
                options,
                sources=limited,
                wanted=wanted,
                scratch=Path(folder, "scratch"),
                dropped=Path(folder, "dropped"),
                near=near,
            )
        finally:
            near.close()
    return [*_of_sources(found), *_of_labels(options, found)]


def of_first(source: Source, rows: int) -> Source:
    """A source of which no more than so many rows are read."""
    return dc.replace(source, max_rows=min(rows, source.max_rows or rows))


def _of_sources(found: Collected) -> Iterator[str]:
    for split, count in ((split, count) for split, counts in found.sources.items() for count in counts):
        for how in count.read_as:
            yield f"{count.file} ({split}): {how}"
        for reason, rows in count.dropped.most_common():
            share = rows / count.read
            yield f"{count.file} ({split}): {rows:,} of the first {count.read:,} rows ({share:.1%}) left out: {reason}"


def _of_labels(options: PrepareParams, found: Collected) -> Iterator[str]:
    train, rows = found.total("train"), _labels(found, "train")
    whole = train.max_rows is None
    if whole and train.usable < options.min_rows:
        raise UserError(
            f"{train.file}: has {train.usable} usable rows; expected at least min_rows={options.min_rows} to train on."
        )
    if len(rows) == 1 and found.spellings.known:  # labels in the user's words
        told = f"{train.file}: all {sum(rows.values()):,} rows looked at have one label, {next(iter(rows))!r}"
        if whole:
            raise UserError(f"{told}; expected at least two. Is it the right column?")
        yield f"{told}; more may follow"
    for group in alike(rows) if found.spellings.known else []:
        listed = " and ".join(f"{label!a} ({rows[label]:,} rows)" for label in group)
        yield f"labels that may be one: {listed}: equal_labels=alike makes them one"
    unknown = sorted(
        {label for split in ("validation", "test") if split in found.sources for label in _labels(found, split)}
        - set(rows)
    )
    if rows and unknown:
        yield f"labels of the validation or test rows that the training rows looked at lack: {', '.join(unknown[:20])}"


def _labels(found: Collected, split: str) -> Counter[str]:
    """How many rows given for a split have each label."""
    return sum((found.labels(count) for count in found.sources[split]), Counter())
