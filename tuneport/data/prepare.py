"""Turn a user's rows into tokenised splits, in two passes and in memory that does not grow with the rows.

Pass 1 reads the sources, in blocks that processes share, keeps usable rows in a scratch file and 13 bytes a row in
memory: hash of the inputs, code of the labels, the source; 8 more where text is written, and with a group; about 100
more where near duplicates are removed, else sought in a bounded sample. Duplicates and splits follow from those. Pass 2
streams the scratch file through the tokenizer, in several processes, too.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tuneport.data.choose_encoder import COMPARED_ROWS, choose_encoder, loading_beside
from tuneport.data.divide import divide, label_histograms
from tuneport.data.duplicates import find_duplicates
from tuneport.data.encode_rows import WORTHWHILE, encode
from tuneport.data.label_spellings import check_spellings
from tuneport.data.load_tokenizer import chat_template, load_tokenizer, longest_input, read_json, resolve_length
from tuneport.data.near_duplicates import NearDuplicateIndex, NearDuplicates, sample_rows
from tuneport.data.options import PrepareParams
from tuneport.data.read_rows import (
    Collected,
    collect,
    files_by_source,
    read_column,
    read_scratch,
    rows_by_source,
    source_report,
)
from tuneport.data.readers import Source
from tuneport.data.splits import SPLITS
from tuneport.data.workers import Work, aside, cores
from tuneport.encoding.base_model import BaseModel
from tuneport.stage import save_json
from tuneport.tasks.task import Task, TaskData

log = logging.getLogger("tuneport.preprocess")

GENERATION_CONFIG = "generation_config.json"


def prepare(
    task: Task,
    options: PrepareParams,
    *,
    sources: Mapping[str, Sequence[Source]],
    wanted: Mapping[str, str],
    model: Path,
    output: Path,
) -> None:
    """Read, clean, split, tokenise and write the prepared dataset; see `tuneport.data.prepared` for its shape.

    ``sources`` are by split, several where they are mixed; ``wanted`` maps the options that name columns to the
    columns. Raises `UserError`.
    """
    config, tokenizer_config = read_json(model, "config.json"), read_json(model, "tokenizer_config.json")
    max_seq_length = resolve_length(options.max_seq_length, longest_input(config, tokenizer_config))
    tokenizer = load_tokenizer(model, tokenizer_config, max_seq_length)

    scratch = output / "scratch.arrow"
    near = NearDuplicateIndex(output / "scratch.shingles", options.near_duplicate_threshold)
    size = sum(source.bytes_here for given in sources.values() for source in given)
    with loading_beside(tokenizer, size) as fast:
        collected = collect(
            task, options, sources=sources, wanted=wanted, scratch=scratch, dropped=output / "dropped.jsonl", near=near
        )
    processes = cores() if scratch.stat().st_size >= WORTHWHILE and options.deduplicate != "near" else 1
    work = Work[None, NearDuplicates](
        make=lambda _: _near_duplicates(task, options, collected, near, scratch), pack=pickle.dumps, unpack=pickle.loads
    )
    with aside(work, processes) as near_duplicates:
        splits, find_leakage = divide(collected, options, near_duplicates)
        histograms = label_histograms(collected, splits)
        spellings = check_spellings(collected.spellings, histograms)
        base = BaseModel(
            config=config,
            tokenizer=tokenizer,
            tokenizer_config=tokenizer_config,
            generation_config=read_json(model, GENERATION_CONFIG) if (model / GENERATION_CONFIG).is_file() else {},
            chat_template=chat_template(model, tokenizer_config),
            max_seq_length=max_seq_length,
        )
        data = TaskData(labels=histograms, training=partial(read_column, scratch, splits == SPLITS.index("train")))
        meta = task.describe(data, base, options)
        numbers = np.unique(np.linspace(0, len(splits) - 1, COMPARED_ROWS).astype(np.int64))
        to_columns = choose_encoder(
            task,
            options,
            tokenizer=tokenizer,
            meta=meta,
            sample=read_scratch(scratch, numbers),
            size=scratch.stat().st_size,
            loaded=fast,
        )
        lengths, lost, notes = encode(
            task,
            options,
            to_columns=to_columns,
            meta=meta,
            splits=splits,
            max_seq_length=max_seq_length,
            scratch=scratch,
            output=output,
        )
        leakage = find_leakage()
    near.close()
    scratch.unlink()

    rows = {split: int((splits == code).sum()) for code, split in enumerate(SPLITS)}
    by_source = rows_by_source(collected, splits)
    save_json(
        output / "dataset.json",
        {
            "task_name": task.name,
            "columns": task.columns(options),
            "meta": meta,
            "max_seq_length": max_seq_length,
            "pad_to": max_seq_length if options.pad_to_max_length else None,
            "splits": {split: {"rows": n} for split, n in rows.items()},
            **({"mixtures": files_by_source(collected)} if by_source else {}),
        },
    )
    save_json(
        output / "data_report.json",
        {
            "sources": {
                split: source_report(collected.sources[split]) for split in SPLITS if split in collected.sources
            },
            "splits": {
                split: {
                    "rows": rows[split],
                    **({"sources": by_source[split]} if split in by_source else {}),
                    "labels": histograms[split],
                    **lost[split].report(),
                    **lengths[split].report(),
                    **notes[split].report(),
                }
                for split in SPLITS
            },
            **spellings,
            **leakage,
        },
    )
    if any(found.rows for found in lost.values()):
        log.warning(
            "%s training, %s validation and %s test rows have their label cut off at max_seq_length=%d: they are left "
            "out of training, and of the validation loss; data_report.json lists them",
            *(f"{lost[split].rows:,}" for split in SPLITS),
            max_seq_length,
        )
    for note, n in sum((found.rows for found in notes.values()), Counter[str]()).most_common():
        log.warning("%s of %s rows: %s", f"{n:,}", f"{sum(rows.values()):,}", note)
    truncated = sum(length.truncated for length in lengths.values())
    log.info(
        "train %s, validation %s, test %s rows of at most %d tokens; %s truncated",
        *(f"{n:,}" for n in rows.values()),
        max_seq_length,
        f"{truncated:,}",
    )


def _near_duplicates(
    task: Task, options: PrepareParams, collected: Collected, near: NearDuplicateIndex, scratch: Path
) -> NearDuplicates:
    """Those among all rows where they are removed, else those among a sample, which is read here."""
    if options.deduplicate != "near":
        numbers = sample_rows(len(collected.identities), options.split_seed)
        for number, row in zip(numbers.tolist(), read_scratch(scratch, numbers), strict=True):
            near.add(number, task.identity(row))
    same_inputs = find_duplicates(np.frombuffer(collected.identities, np.uint64))
    return near.find(same_inputs.rows, remove=options.deduplicate == "near")
