"""Which encoder makes tokens of a dataset's rows: the fast one where it pays and finds the same."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa

from tuneport.encoding.fast_tokenizer import FastTokenizer, Unfit, is_byte_level_bpe
from tuneport.tasks.task import Encoder, Meta, Row, Task

log = logging.getLogger("tuneport.preprocess")

COMPARED_ROWS = 300  # that both encoders encode
WORTHWHILE = 4 << 20  # bytes of rows that take the tokenizers library longer than the fast core takes to load


@contextmanager
def loading_beside(tokenizer: t.Any, size: int) -> Iterator[Future[FastTokenizer] | None]:
    """While entered, a thread loads the fast tokenizer where ``size`` bytes are to be read; None where that is idle.

    Once this is left, it is loaded, or its result raises `Unfit`.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fast tokenizer") as thread:
        wanted = size >= WORTHWHILE and is_byte_level_bpe(tokenizer)
        yield thread.submit(FastTokenizer, tokenizer) if wanted else None


def choose_encoder(
    task: Task,
    options: t.Any,
    *,
    tokenizer: t.Any,
    meta: Meta,
    sample: Iterable[Row],
    size: int,
    loaded: Future[FastTokenizer] | None = None,
) -> Encoder:
    """The task's fast encoder for rows of ``size`` bytes, if both find the same of a ``sample`` of them.

    The sample is read only where there is a fast encoder to try; it is loaded here if `loading_beside` did not.
    """
    fast, reason = None, None
    if size >= WORTHWHILE and is_byte_level_bpe(tokenizer):
        try:
            found = loaded.result() if loaded else FastTokenizer(tokenizer)
            fast = task.fast_encoder(found, meta, options)
        except Unfit as e:
            reason = str(e)
    encode = task.encoder(tokenizer, meta, options)
    if fast is not None:
        rows = list(sample)
        if (column := _difference(encode, fast, rows)) is None:
            log.info("the fast tokenizer is used: of %d rows it finds what the tokenizers library finds", len(rows))
            return fast
        reason = f"it finds other {column} in the rows"
    if reason is not None:
        log.info("the fast tokenizer is not used: %s", reason)
    return encode


def _difference(encode: Encoder, fast: Encoder, rows: Sequence[Row]) -> str | None:
    """The name of a column in which two encoders differ."""
    wanted, found = encode(rows), fast(rows)
    differing = (name for name in wanted if _listed(wanted[name]) != _listed(found[name]))
    return next(differing, None)


def _listed(column: t.Any) -> list[t.Any]:
    return column.to_pylist() if isinstance(column, pa.Array) else [*column]
