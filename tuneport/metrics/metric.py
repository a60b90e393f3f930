"""What a metric is: one record of its name, title, direction and computation, from which all else follows.

A task's metrics are one tuple of records, such as `classification.METRICS`. Importing it needs neither torch nor
sklearn: `--help` lists the choices of ``metric_for_best_model``.
"""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

if t.TYPE_CHECKING:
    import numpy as np

LOSS = "loss"  # the trainer's own metric, a choice of every task; lower is better
GROUPS = 10_000  # how many distinct values a mean is taken over


class Rows(t.Protocol):
    """The rows of one split with what is true of them and what a model says."""

    def __len__(self) -> int: ...

    def take(self, places: np.ndarray) -> t.Self:
        """The rows at ``places`` (n,), each as often as it is named: a resample."""


R = t.TypeVar("R", bound=Rows)
R_contra = t.TypeVar("R_contra", bound=Rows, contravariant=True)


class Undefined(Exception):
    """A metric cannot be computed on these rows; the message is the reason, which follows "cannot be computed: "."""


@dataclass(frozen=True, kw_only=True)
class Sums(t.Generic[R_contra]):
    """A metric as a function of sums over rows: all resamples of a bootstrap are then one matrix product.

    ``distinct`` gives the features of the distinct rows, (distinct rows, k), and how often each row occurs, (distinct
    rows,). Metrics with the same ``distinct`` share the draws. ``value`` maps sums (resamples, k) to (resamples,).
    """

    distinct: Callable[[R_contra], tuple[np.ndarray, np.ndarray]]
    value: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Weighted(t.Generic[R_contra]):
    """A metric of rows that count several times, for all resamples at once.

    ``value`` maps the rows and how often each is drawn, (resamples, rows), to (resamples,), nan where it is undefined.
    ``columns`` says for how many arrays of that shape the time is spent, so that the number of resamples is bounded.
    """

    value: Callable[[R_contra, np.ndarray], np.ndarray]
    columns: Callable[[R_contra], int]


@dataclass(frozen=True, kw_only=True)
class Headline(t.Generic[R_contra]):
    """What the one metric needs by which predictors are compared, pair by pair.

    ``parts`` gives (rows, 2): the metric is the sum of the first column divided by that of the second. So accuracy is
    made of (1 or 0, 1) per row, F1 of (2 x hits, predicted + true), a mean of (value, 1). ``claim`` is how a sentence
    goes on, before the metric's value, of the first predictor and of another one.
    """

    parts: Callable[[R_contra], np.ndarray]
    claim: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Metric(t.Generic[R_contra]):
    """One metric of rows of one kind.

    ``compute`` raises `Undefined` where the rows have no such value. Its 95 % interval is bootstrapped by ``sums`` or
    ``weighted``, which give what ``compute`` gives, many resamples at a time, or else by calling ``compute``.
    """

    name: str  # as in metrics.json, the training log and metric_for_best_model
    title: str  # in the report's table
    short_title: str | None = None  # in figures, where it is not the title
    compute: Callable[[R_contra], float]
    greater_is_better: bool = True
    percent: bool = False  # a share, which sentences give in percent
    chooses_checkpoint: bool = False  # whether training computes it, so that it is a choice of metric_for_best_model
    main: int | None = None  # its place among the metrics to lead with, 1 first
    headline: Headline[R_contra] | None = None  # exactly one metric of a task has it
    parts: Callable[[R_contra], np.ndarray] | None = None  # `Headline.parts`, of which a paired gain is made
    claim: tuple[str, str] | None = None  # `Headline.claim`, of a metric that may become the headline
    ranked: bool = True  # False: neither greater nor less is better, as of a length
    resampled: bool = True  # False: it has no interval
    sums: Sums[R_contra] | None = None
    weighted: Weighted[R_contra] | None = None
    applies: Callable[[R_contra], bool] = lambda rows: True  # whether rows of this kind are scored by it at all

    @property
    def label(self) -> str:
        """The title where there is little room."""
        return self.short_title or self.title

    @property
    def note(self) -> str:
        return "" if self.greater_is_better or not self.ranked else " (lower is better)"

    def best(self, values: Iterable[float | None]) -> float | None:
        """The best of the values, None of none."""
        known = [value for value in values if value is not None and self.ranked]
        return (max if self.greater_is_better else min)(known, default=None)

    def number(self, value: float | None) -> str:
        """A value as tables and figures show it."""
        return "–" if value is None else f"{value:.3f}"

    def in_words(self, value: float | None, interval: tuple[float, float] | None) -> str:
        """A value and its interval as sentences give them."""
        if value is None or interval is None:
            return self.number(value)
        low, high = interval
        if not self.percent:
            return f"{value:.3f} ({low:.3f} to {high:.3f})"
        return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

    def gain_in_words(self, value: float | None, interval: tuple[float, float] | None) -> str:
        """A difference of two values and its interval as sentences give them."""
        if value is None or interval is None:
            return "a difference that cannot be computed"
        low, high = interval
        if not self.percent:
            return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
        return f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


AnyMetric = Metric[t.Any]


def choices(metrics: Iterable[AnyMetric]) -> tuple[str, ...]:
    """The choices of metric_for_best_model, in the order of the records; the loss is the first."""
    return tuple(directions(metrics))


def directions(metrics: Iterable[AnyMetric]) -> dict[str, bool]:
    """Whether greater is better, by the name of each metric that may choose the best checkpoint."""
    return {LOSS: False} | {m.name: m.greater_is_better for m in metrics if m.chooses_checkpoint}


def in_order(metrics: Iterable[Metric[R]], rows: R) -> tuple[Metric[R], ...]:
    """The metrics that apply to the rows as a report lists them: the main ones by their places, then the others."""
    applied = [metric for metric in metrics if metric.applies(rows)]
    return tuple(sorted(applied, key=lambda metric: math.inf if metric.main is None else metric.main))


def training_scores(metrics: Sequence[Metric[R]], rows: R) -> dict[str, float]:
    """The metrics that may choose the best checkpoint, by name, without those that are undefined on the rows."""
    found = {}
    for metric in metrics:
        if metric.chooses_checkpoint and metric.applies(rows):
            with suppress(Undefined):
                found[metric.name] = float(metric.compute(rows))
    return found


def mean(values: Callable[[R], np.ndarray]) -> Callable[[R], float]:
    """The metric that is the mean of ``values`` (rows,)."""
    return lambda rows: float(values(rows).mean())


def parts_of_mean(values: Callable[[R], np.ndarray]) -> Callable[[R], np.ndarray]:
    """The `Headline.parts` of such a mean."""

    def parts(rows: R) -> np.ndarray:
        import numpy as np

        return np.column_stack([values(rows), np.ones(len(rows))])

    return parts


def sums_of_mean(values: Callable[[R], np.ndarray]) -> Sums[R]:
    """The `Sums` of such a mean; above `GROUPS` distinct values neighbours count as equal.

    What that moves is far below what resampling does.
    """

    def distinct(rows: R) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        found = values(rows)
        kept, counts = np.unique(found, return_counts=True)
        if len(kept) > GROUPS:
            groups = np.array_split(np.sort(found), GROUPS)
            kept, counts = np.array([g.mean() for g in groups]), np.array([len(g) for g in groups])
        return np.column_stack([kept, np.ones(len(kept))]), counts

    return Sums(distinct=distinct, value=lambda sums: sums[:, 0] / sums[:, 1])
