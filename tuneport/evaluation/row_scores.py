"""The headline metric of each test row, as a file: what a later model is compared with, row by row."""

from __future__ import annotations

import hashlib
import json
import typing as t
from collections.abc import Mapping, Sequence

from tuneport.metrics.scores import Evaluation

FILE = "row_scores.json"


def row_scores(rows: Sequence[Mapping[str, t.Any]], found: Evaluation) -> dict[str, t.Any]:
    """What the file holds: the metric, its direction, its parts of each row, and a digest of the rows."""
    return {
        "metric": found.headline.name,
        "greater_is_better": found.headline.greater_is_better,
        "rows": digest_of_rows(rows),
        "parts": [list(pair) for pair in found.row_parts],
    }


def digest_of_rows(rows: Sequence[Mapping[str, t.Any]]) -> str:
    """SHA-256 of rows in their order, wherever they were read from."""
    total = hashlib.sha256()
    for row in rows:
        said = {name: value for name, value in row.items() if name != "row_id"}
        total.update(json.dumps(said, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()
