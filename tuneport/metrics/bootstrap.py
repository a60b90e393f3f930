"""Bootstrap 95 % intervals, vectorised: a resample of n rows is one multinomial draw over the distinct rows."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator, Sequence

if t.TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
CELLS = 4_000_000  # how many numbers are held at once
GROUPS = 10_000  # how many distinct values a mean is taken over

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


def intervals(
    features: np.ndarray, counts: np.ndarray, statistics: Callable[[np.ndarray], dict[str, np.ndarray]], seed: int
) -> dict[str, Interval]:
    """Intervals of statistics that depend on sums over rows only.

    ``features`` is (distinct rows, k); ``statistics`` maps sums (resamples, k) to arrays (resamples,) by name.
    """
    import numpy as np

    found: dict[str, list[np.ndarray]] = {}
    for weights in draws(counts, seed):
        for name, values in statistics(weights @ features).items():
            found.setdefault(name, []).append(values)
    return {name: interval(np.concatenate(blocks)) for name, blocks in found.items()}


def mean_interval(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """Interval of the mean of values, one per row."""
    import numpy as np

    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    if len(distinct) > GROUPS:  # neighbours count as equal: what that moves is far below what resampling does
        groups = np.array_split(np.sort(np.asarray(values, dtype=float)), GROUPS)
        distinct, counts = np.array([g.mean() for g in groups]), np.array([len(g) for g in groups])
    return interval(np.concatenate([weights @ distinct for weights in draws(counts, seed)]) / counts.sum())


def difference(base: Sequence[Parts], tuned: Sequence[Parts], seed: int) -> tuple[float, Interval]:
    """How far the ratio of ``tuned`` is above that of ``base``, with the interval from drawing the same rows for both.

    A row's parts are a numerator and a denominator, each summed over the rows.
    """
    import numpy as np

    rows = np.column_stack([np.asarray(tuned, dtype=float), np.asarray(base, dtype=float)])
    distinct, counts = np.unique(rows, axis=0, return_counts=True)

    def gain(sums: np.ndarray) -> np.ndarray:
        tuned_ratio, base_ratio = (sums[:, i] / np.where(sums[:, i + 1] == 0, 1, sums[:, i + 1]) for i in (0, 2))
        found: np.ndarray = tuned_ratio - base_ratio
        return found

    drawn = intervals(distinct, counts, lambda sums: {"gain": gain(sums)}, seed)
    return float(gain(rows.sum(axis=0, keepdims=True))[0]), drawn["gain"]


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of resampled values."""
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
