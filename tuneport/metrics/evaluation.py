"""What a predictor's answers score."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one predictor on one split.

    Predictors are compared by one metric, the ``headline``: the sum of a numerator over all rows, divided by that of a
    denominator. So accuracy is made of (1 or 0, 1) a row, F1 of (2 x hits, predicted + true), a mean of (value, 1).
    """

    main: tuple[str, ...]  # the metrics to lead with, the most telling first
    metrics: Mapping[str, float | None]  # None: cannot be computed on these rows, ``details["notes"]`` says why
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # bootstrap 95 %
    headline: str = "accuracy"  # has an interval
    percent: bool = True  # whether the headline metric is shown as a percentage
    claim: tuple[str, str] = ("is right in", "in")  # how a sentence goes on, before the headline's value
    row_parts: Sequence[tuple[float, float]]
    titles: Mapping[str, str] = field(default_factory=dict)  # of metrics whose names say too little
    lower_is_better: frozenset[str] = frozenset()
    # JSON-able: notes, labels, per_class, counted (what per_class counts), confusion_matrix
    details: Mapping[str, t.Any] = field(default_factory=dict)
    row_losses: Sequence[float]  # per row, how wrong its answer is: ranks the answers to show
    row_correct: Sequence[bool] | None  # None: answers are better or worse, not right or wrong
