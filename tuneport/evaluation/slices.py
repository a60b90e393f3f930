"""The headline metric on parts of the test rows: by label, by length of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuneport.metrics import bootstrap
from tuneport.metrics.scores import Evaluation
from tuneport.tasks.task import Row, Task

PARTS = 12  # of a kind that are listed, the largest
FEWEST_ROWS = 5  # that a part has
LENGTHS = 4  # parts of about equally many rows, by length


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some of the test rows: ``value`` of the tuned model and its 95 % interval, ``base`` of the base model."""

    kind: str
    name: str
    rows: int
    value: float | None
    interval: tuple[float, float] | None
    base: float | None


def slices(task: Task, rows: Sequence[Row], tuned: Evaluation, base: Evaluation | None, seed: int) -> list[Slice]:
    """Each part with at least `FEWEST_ROWS` rows, of kinds by which the rows have at least two."""
    words = [len(task.identity(row).split()) for row in rows]
    labels = [task.labels(row) for row in rows]
    kinds: dict[str, Sequence[Sequence[str]]] = {
        "label": [list(dict.fromkeys(found)) for found in labels],
        "words": [[name] for name in _ranges(words)],
    }
    scored = _Scored(tuned.row_parts, None if base is None else base.row_parts, seed)
    return [found for kind, names in kinds.items() for found in scored.of_kind(kind, names)]


@dataclass(frozen=True)
class _Scored:
    """Both models' scores of the same rows, a row's numerator and denominator each."""

    tuned: Sequence[tuple[float, float]]
    base: Sequence[tuple[float, float]] | None
    seed: int

    def of_kind(self, kind: str, names: Sequence[Sequence[str]]) -> list[Slice]:
        members: dict[str, list[int]] = {}
        for i, found in enumerate(names):
            for name in found:
                members.setdefault(name, []).append(i)
        enough = [name for name, places in members.items() if len(places) >= FEWEST_ROWS]
        largest = sorted(enough, key=lambda name: -len(members[name]))[:PARTS]
        if len(largest) < 2:
            return []
        order = sorted(largest, key=_begins) if kind == "words" else largest
        return [self._slice(kind, name, members[name]) for name in order]

    def _slice(self, kind: str, name: str, places: Sequence[int]) -> Slice:
        value, interval = _ratio([self.tuned[i] for i in places], self.seed)
        base = None if self.base is None else _ratio([self.base[i] for i in places], self.seed)[0]
        return Slice(kind=kind, name=name, rows=len(places), value=value, interval=interval, base=base)


def _ratio(parts: Sequence[tuple[float, float]], seed: int) -> tuple[float | None, tuple[float, float] | None]:
    """The ratio of the parts' sums, with its interval; None where they are not all numbers."""
    if not sum(below for _, below in parts):
        return None, None
    nothing = [(0.0, 1.0)] * len(parts)
    return bootstrap.difference(nothing, parts, seed) or (None, None)


def _ranges(words: Sequence[int]) -> list[str]:
    """For each row the name of the range that its number of words is in; ranges have about equally many rows."""
    import numpy as np

    counts = np.asarray(words)
    edges = np.unique(np.quantile(counts, np.linspace(0, 1, LENGTHS + 1)).astype(int))
    if len(edges) < 3:
        return ["all"] * len(words)
    last = len(edges) - 2
    places = np.clip(np.searchsorted(edges, counts, side="right") - 1, 0, last)
    names = [_range(low, high - (i < last)) for i, (low, high) in enumerate(pairwise(edges.tolist()))]
    return [names[place] for place in places]


def _range(low: int, high: int) -> str:
    if low < high:
        return f"{low:,} to {high:,} words"
    return f"{low:,} word{'s' if low != 1 else ''}"


def _begins(name: str) -> int:
    """The least number of words of a range."""
    return int(name.partition(" ")[0].replace(",", ""))


def by_kind(found: Sequence[Slice]) -> Mapping[str, list[Slice]]:
    """The slices by their kind, in order."""
    grouped: dict[str, list[Slice]] = {}
    for part in found:
        grouped.setdefault(part.kind, []).append(part)
    return grouped
