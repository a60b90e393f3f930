"""Two runs side by side: scores, with the paired interval of their difference, and what differs of what made them."""

from __future__ import annotations

import dataclasses as dc
import json
import typing as t
from collections.abc import Mapping
from pathlib import Path

from tuneport.history.kept_runs import KeptRun
from tuneport.metrics import bootstrap
from tuneport.runner.score_table import TUNED

PREDICTIONS = "predictions.jsonl"
OF_THE_MODELS = ("tuned", "base", "correct", "parts")  # of a line of predictions.jsonl: what is no field of the row
SEED = 0

Pair = tuple[t.Any, t.Any]


@dc.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the second run's headline metric is above the first's, on the same rows, with its 95 % interval."""

    metric: str
    value: float
    interval: tuple[float, float]
    rows: int


@dc.dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What two runs have in common, and what not; each pair is of the first run and the second."""

    first: KeptRun
    second: KeptRun
    metrics: Mapping[str, Pair]  # of the tuned models
    difference: Difference | None
    why_not: str  # why there is no difference
    parameters: Mapping[str, Pair]  # those that differ
    data: Mapping[str, Pair]  # digests, of all that the user supplied
    versions: Mapping[str, Pair]  # those that differ

    def as_json(self) -> dict[str, t.Any]:
        """The comparison as `tuneport runs compare --json` prints it."""
        return {
            "runs": [str(self.first.folder), str(self.second.folder)],
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "difference": None if self.difference is None else dc.asdict(self.difference),
            "why_no_difference": self.why_not or None,
            "parameters": {name: list(pair) for name, pair in self.parameters.items()},
            "data": {name: list(pair) for name, pair in self.data.items()},
            "versions": {name: list(pair) for name, pair in self.versions.items()},
        }


def compare(first: KeptRun, second: KeptRun) -> RunComparison:
    """Compare two runs by what they left."""
    scores = first.scores, second.scores
    values = [{} if found is None else found.values[TUNED] for found in scores]
    shown = [name for found in scores if found for name in found.main]
    headlines = {found.headline for found in scores if found}
    difference: Difference | str
    if None in scores:
        difference = "not both runs have an evaluation"
    elif len(headlines) > 1:
        difference = f"they are compared by different metrics, {' and '.join(sorted(headlines))}"
    else:
        difference = _difference(first, second, headlines.pop())
    return RunComparison(
        first=first,
        second=second,
        metrics={name: (values[0].get(name), values[1].get(name)) for name in dict.fromkeys(shown)},
        difference=difference if isinstance(difference, Difference) else None,
        why_not=difference if isinstance(difference, str) else "",
        parameters=_differing(first.parameters, second.parameters),
        data=_pairs(first.data, second.data),
        versions=_differing(first.versions, second.versions),
    )


def _pairs(first: Mapping[str, t.Any], second: Mapping[str, t.Any]) -> dict[str, Pair]:
    return {name: (first.get(name), second.get(name)) for name in sorted({*first, *second})}


def _differing(first: Mapping[str, t.Any], second: Mapping[str, t.Any]) -> dict[str, Pair]:
    return {name: pair for name, pair in _pairs(first, second).items() if pair[0] != pair[1]}


def _difference(first: KeptRun, second: KeptRun, metric: str) -> Difference | str:
    """The paired difference; as a text, why there is none."""
    found = [_predictions(run) for run in (first, second)]
    if not all(found):
        return f"not both runs have a {PREDICTIONS} with what each row adds to {metric}"
    one, other = found
    if {row: fields for row, (fields, _) in one.items()} != {row: fields for row, (fields, _) in other.items()}:
        return f"their test rows are not the same ({len(one):,} and {len(other):,})"
    parts = [[kept[row][1] for row in one] for kept in (one, other)]
    drawn = bootstrap.difference(parts[0], parts[1], SEED)
    if drawn is None:
        return f"{metric} is not a number in both"
    return Difference(metric=metric, value=drawn[0], interval=drawn[1], rows=len(one))


def _predictions(run: KeptRun) -> dict[str, tuple[str, tuple[float, float]]]:
    """By row id: the row's own fields, as JSON, and its parts of the headline metric; empty where they are not kept."""
    if run.evaluation is None:
        return {}
    found = {}
    try:
        with Path(run.evaluation, PREDICTIONS).open(encoding="utf-8") as f:
            for text in f:
                line = json.loads(text)
                fields = {name: value for name, value in line.items() if name not in OF_THE_MODELS}
                above, below = line["parts"]
                found[str(line["row_id"])] = (json.dumps(fields, sort_keys=True), (float(above), float(below)))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found
