"""Say which labels are written in several ways, and which may be one."""

from __future__ import annotations

import logging
import typing as t
from collections import Counter
from collections.abc import Mapping

from tuneport.data.row_notes import LISTED_ROWS
from tuneport.labels import Spellings, alike

log = logging.getLogger("tuneport.preprocess")


def check_spellings(spellings: Spellings, histograms: Mapping[str, Mapping[str, int]]) -> dict[str, t.Any]:
    """Warn of labels that rows write otherwise, and of those that may be one; returns the data report's part on them.

    ``histograms``: rows by label, for each split.
    """
    merged = spellings.merged()
    total: Counter[str] = Counter()
    for rows in histograms.values():
        total.update(rows)
    found = [{label: total[label] for label in group} for group in alike(total)] if spellings.known else []
    if merged:
        pairs = [f"{s!a} as {label!a} ({n:,})" for label, of in merged.items() for s, n in of.items()]
        log.warning(
            "%s labels are written otherwise and counted as one, %s: equal_labels=exact keeps them apart",
            f"{spellings.changed.total():,}",
            _listed(pairs),
        )
    if found:
        pairs = [" and ".join(f"{label!a} ({n:,} rows)" for label, n in group.items()) for group in found]
        log.warning("labels that may be one are kept apart, %s: equal_labels=alike makes them one", _listed(pairs))
    report: dict[str, t.Any] = {"merged": dict(list(merged.items())[:LISTED_ROWS])} if merged else {}
    report |= {"alike": found[:LISTED_ROWS]} if found else {}
    return {"label_spellings": report} if report else {}


def _listed(entries: list[str]) -> str:
    return ", ".join(entries[:LISTED_ROWS]) + (f" and {len(entries) - LISTED_ROWS} more" * (len(entries) > LISTED_ROWS))
