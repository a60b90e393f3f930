"""What a predictor's answers score, by every metric that applies to them."""

from __future__ import annotations

import math
import typing as t
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuneport.metrics import bootstrap
from tuneport.metrics.metric import AnyMetric, Metric, R, Undefined, in_order

if t.TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one predictor on one split."""

    records: tuple[AnyMetric, ...]  # what is scored, in the order of the report
    metrics: Mapping[str, float | None]  # None: cannot be computed on these rows, ``details["notes"]`` says why
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # bootstrap 95 %, of every metric with a value
    row_parts: Sequence[tuple[float, float]]  # the headline metric's numerator and denominator per row
    # The same of each metric that has such parts, by its name.
    parts: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    # JSON-able: notes, labels, per_class, counted (what per_class counts), confusion_matrix
    details: Mapping[str, t.Any] = field(default_factory=dict)
    row_losses: Sequence[float]  # per row, how wrong its answer is: ranks the answers to show
    row_correct: Sequence[bool] | None  # None: answers are better or worse, not right or wrong

    @property
    def main(self) -> tuple[AnyMetric, ...]:
        """The metrics to lead with, the most telling first."""
        return tuple(metric for metric in self.records if metric.main is not None)

    @property
    def headline(self) -> AnyMetric:
        """The metric by which predictors are compared."""
        return next(metric for metric in self.records if metric.headline is not None)

    @property
    def claim(self) -> tuple[str, str]:
        """How a sentence goes on before the headline metric's value: of the first predictor, of another one."""
        return next(metric.headline.claim for metric in self.records if metric.headline is not None)


def evaluated(
    metrics: Sequence[Metric[R]],
    rows: R,
    seed: int,
    *,
    row_losses: Sequence[float],
    row_correct: Sequence[bool] | None,
    notes: Sequence[str] = (),
    **details: t.Any,
) -> Evaluation:
    """Score rows by the metrics that apply to them, with intervals that ``seed`` decides."""
    records = in_order(metrics, rows)
    values, reasons = _values(records, rows)
    known = [metric for metric in records if values[metric.name] is not None and metric.resampled]
    drawn = {name: bootstrap.interval(found) for name, found in bootstrap.resampled(known, rows, seed).items()}
    intervals = {metric.name: found for metric in known if (found := drawn[metric.name]) is not None}
    reasons |= {
        metric.name: ": no interval, as most resamples of the rows leave it undefined"
        for metric in known
        if metric.name not in intervals
    }
    headline = next(metric.headline for metric in records if metric.headline is not None)
    return Evaluation(
        records=records,
        metrics=values,
        intervals=intervals,
        row_parts=_pairs(headline.parts(rows)),
        parts={metric.name: _pairs(metric.parts(rows)) for metric in known if metric.parts is not None},
        details={"notes": [*notes, *_sentences(reasons)], **details},
        row_losses=row_losses,
        row_correct=row_correct,
    )


def _pairs(parts: np.ndarray) -> list[tuple[float, float]]:
    return [(above, below) for above, below in parts.astype(float).tolist()]


def _values(records: Sequence[Metric[R]], rows: R) -> tuple[dict[str, float | None], dict[str, str]]:
    """Each metric's value by name, None where it has none, and how the sentence ends that says why."""
    values: dict[str, float | None] = {}
    reasons = {}
    for metric in records:
        try:
            value = float(metric.compute(rows))
        except Undefined as e:
            value, reason = math.nan, str(e)
        else:
            reason = "its value is not a finite number"
        values[metric.name] = value if math.isfinite(value) else None
        if values[metric.name] is None:
            reasons[metric.name] = f" cannot be computed: {reason}"
    return values, reasons


def _sentences(reasons: Mapping[str, str]) -> list[str]:
    """One sentence per reason, about all metrics that have it."""
    named: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        named[reason].append(name)
    return [f"{_listed(names)}{reason}." for reason, names in named.items()]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
