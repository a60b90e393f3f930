"""What scoring a model's answers gives; one module = one kind of scoring, plus the report."""

from __future__ import annotations

import typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one predictor on one split."""

    main: tuple[str, ...]  # the metrics to lead with, the most telling first
    metrics: Mapping[str, float | None]  # None: cannot be computed on these rows, ``details["notes"]`` says why
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # bootstrap 95 %
    details: Mapping[str, t.Any] = field(default_factory=dict)  # JSON-able: notes, labels, per_class, confusion_matrix
    row_losses: Sequence[float]  # per row, how wrong its answer is: ranks the worst errors
    row_correct: Sequence[bool]
