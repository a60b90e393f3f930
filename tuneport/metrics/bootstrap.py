"""Bootstrap 95 % intervals, vectorised: a resample of n rows is how often each row, or distinct row, is drawn."""

from __future__ import annotations

import typing as t
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from tuneport.metrics.metric import Metric, R, Sums, Undefined

if t.TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
FEWEST_RESAMPLES = 200  # where a resample takes long
CELLS = 4_000_000  # how many numbers are held at once
COMPUTED_CELLS = 100_000_000  # how many are computed with, where a metric has no sums: a few seconds
COLUMNS_OF_A_CALL = 50  # what a call of a metric's function costs, in arrays of one number per row

Interval = tuple[float, float]
Parts = tuple[float, float]


def draws(counts: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Yield blocks (resamples, distinct rows): how often each distinct row is drawn when n rows are drawn again.

    ``counts`` says how often each distinct row stands in the data; it sums to n.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    block = max(1, CELLS // len(counts))
    for start in range(0, resamples, block):
        yield rng.multinomial(counts.sum(), counts / counts.sum(), size=min(block, resamples - start))


def row_draws(rows: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """As `draws`, of rows that are all taken for different; several times as fast."""
    import numpy as np

    rng = np.random.default_rng(seed)
    block = max(1, CELLS // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, rows, (size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)


def resampled(metrics: Sequence[Metric[R]], rows: R, seed: int) -> dict[str, np.ndarray]:
    """Each metric's values (resamples,) on rows drawn again, by name; nan where the drawn rows leave it undefined."""
    shared: dict[t.Any, dict[str, Sums[R]]] = defaultdict(dict)
    found = {}
    for metric in metrics:
        if metric.sums is None:
            found[metric.name] = _of_weights(metric, rows, seed)
        else:
            shared[metric.sums.distinct][metric.name] = metric.sums
    for distinct, group in shared.items():
        features, counts = distinct(rows)
        found |= _of_sums(features, counts, {name: sums.value for name, sums in group.items()}, seed)
    return found


def _of_sums(
    features: np.ndarray, counts: np.ndarray, statistics: dict[str, Callable[[np.ndarray], np.ndarray]], seed: int
) -> dict[str, np.ndarray]:
    """Values (resamples,) of statistics of the sums of ``features`` (distinct rows, k) over drawn rows."""
    import numpy as np

    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for weights in draws(counts, seed):
        sums = weights @ features
        for name, statistic in statistics.items():
            found[name].append(statistic(sums))
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def _of_weights(metric: Metric[R], rows: R, seed: int) -> np.ndarray:
    import numpy as np

    columns = COLUMNS_OF_A_CALL if metric.weighted is None else metric.weighted.columns(rows)
    resamples = min(RESAMPLES, max(FEWEST_RESAMPLES, COMPUTED_CELLS // (columns * len(rows))))
    blocks = row_draws(len(rows), seed, resamples)
    if metric.weighted is not None:
        return np.concatenate([metric.weighted.value(rows, block) for block in blocks])
    return np.array([_computed(metric, rows.take(np.repeat(np.arange(len(rows)), n))) for b in blocks for n in b])


def _computed(metric: Metric[R], rows: R) -> float:
    with warnings.catch_warnings():  # of a class without rows, and the like: the value says what it has to say
        warnings.simplefilter("ignore")
        try:
            return float(metric.compute(rows))
        except Undefined:
            return float("nan")


def difference(base: Sequence[Parts], tuned: Sequence[Parts], seed: int) -> tuple[float, Interval] | None:
    """How far the ratio of ``tuned`` is above that of ``base``, with the interval from drawing the same rows for both.

    A row's parts are a numerator and a denominator, each summed over the rows. None where they are not all numbers.
    """
    import numpy as np

    rows = np.column_stack([np.asarray(tuned, dtype=float), np.asarray(base, dtype=float)])
    distinct, counts = np.unique(rows, axis=0, return_counts=True)

    def gain(sums: np.ndarray) -> np.ndarray:
        tuned_ratio, base_ratio = (sums[:, i] / np.where(sums[:, i + 1] == 0, 1, sums[:, i + 1]) for i in (0, 2))
        found: np.ndarray = tuned_ratio - base_ratio
        return found

    if not np.isfinite(rows).all():
        return None
    drawn = interval(_of_sums(distinct, counts, {"gain": gain}, seed)["gain"])
    return None if drawn is None else (float(gain(rows.sum(axis=0, keepdims=True))[0]), drawn)


def interval(values: np.ndarray) -> Interval | None:
    """The middle 95 % of resampled values; None where fewer than half of them are finite.

    A resample that leaves the metric undefined is left out.
    """
    import numpy as np

    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
