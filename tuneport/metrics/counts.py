"""Accuracy, precision, recall, F1 and MCC from counts by class: of classes, of labels, of tags, of entities."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

if t.TYPE_CHECKING:
    import numpy as np

LISTED = 10  # labels in a note


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of each resample: ``hit``, ``said`` and ``true`` are (resamples, classes), the others (resamples,)."""

    hit: np.ndarray  # predicted and true
    said: np.ndarray  # predicted
    true: np.ndarray
    right: np.ndarray  # what is wholly right: rows, or words
    total: np.ndarray  # rows, or words

    @classmethod
    def of(cls, sums: np.ndarray) -> Counts:
        """Split sums (resamples, 3 x classes + 2) of features that stand in the order of the fields."""
        import numpy as np

        hit, said, true = np.split(sums[:, :-2], 3, axis=1)
        return cls(hit=hit, said=said, true=true, right=sums[:, -2], total=sums[:, -1])

    @property
    def present(self) -> np.ndarray:
        """(resamples, classes): whether a class is true or predicted somewhere."""
        found: np.ndarray = self.said + self.true > 0
        return found

    @property
    def precision(self) -> np.ndarray:
        """By class; a class without predictions has 0."""
        return ratio(self.hit, self.said)

    @property
    def recall(self) -> np.ndarray:
        """By class; a class that is nowhere true has 0."""
        return ratio(self.hit, self.true)

    @property
    def f1(self) -> np.ndarray:
        """By class; a class without rows and predictions has 0."""
        return ratio(2 * self.hit, self.said + self.true)


def of_counts(statistic: Callable[[Counts], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic as `Sums.value`."""
    return lambda sums: statistic(Counts.of(sums))


def ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """``above`` / ``below``, ``empty`` where that is 0."""
    import numpy as np

    shape = np.broadcast(above, below).shape
    found: np.ndarray = np.divide(above, below, out=np.full(shape, empty), where=below > 0)
    return found


def accuracy(counts: Counts) -> np.ndarray:
    """The share of what is wholly right."""
    found: np.ndarray = counts.right / counts.total
    return found


def macro(values: Callable[[Counts], np.ndarray]) -> Callable[[Counts], np.ndarray]:
    """The mean over the classes that are true or predicted somewhere; nan where none is."""
    return lambda counts: ratio(values(counts).sum(axis=1), counts.present.sum(axis=1), empty=math.nan)


def weighted(values: Callable[[Counts], np.ndarray]) -> Callable[[Counts], np.ndarray]:
    """The mean over classes, each weighted by how often it is true; nan where none is true or predicted."""

    def mean(counts: Counts) -> np.ndarray:
        import numpy as np

        found = ratio((values(counts) * counts.true).sum(axis=1), counts.true.sum(axis=1))
        return np.where(counts.present.any(axis=1), found, math.nan)

    return mean


def micro(values: Callable[[Counts], np.ndarray]) -> Callable[[Counts], np.ndarray]:
    """The value of all classes as one; nan where none is true or predicted."""

    def value(counts: Counts) -> np.ndarray:
        import numpy as np

        return np.where(counts.present.any(axis=1), values(pooled(counts))[:, 0], math.nan)

    return value


def absent(labels: Sequence[str], present: Iterable[int], kind: str) -> list[str]:
    """A note on the labels that are neither true nor predicted, so that averages leave them out; none where all are."""
    places = set(present)
    names = [repr(label) for i, label in enumerate(labels) if i not in places]
    if not names:
        return []
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    note = f"{len(names)} of {len(labels)} {kind} are neither true nor predicted in these rows"
    return [f"{note}, and averages over {kind} leave them out: {listed}."]


AVERAGES = {"macro": macro, "micro": micro, "weighted": weighted}


def averaged(score: str, average: str) -> Callable[[Counts], np.ndarray]:
    """Precision, recall or F1 of a class, averaged over classes as sklearn's ``average`` does."""
    return AVERAGES[average](lambda counts: t.cast("np.ndarray", getattr(counts, score)))


def pooled(counts: Counts) -> Counts:
    """All classes as one."""
    hit, said, true = (part.sum(axis=1, keepdims=True) for part in (counts.hit, counts.said, counts.true))
    return Counts(hit=hit, said=said, true=true, right=counts.right, total=counts.total)


def mcc(counts: Counts) -> np.ndarray:
    """Matthews correlation of one class a row (R_K, https://doi.org/10.1016/j.compbiolchem.2004.09.006)."""
    import numpy as np

    rows, said, true = counts.total, counts.said, counts.true
    spread = (rows**2 - (said**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1))
    return ratio(counts.hit.sum(axis=1) * rows - (said * true).sum(axis=1), np.sqrt(spread))


def mcc_of_cells(counts: Counts) -> np.ndarray:
    """Matthews correlation of yes and no over all cells (rows x labels)."""
    import numpy as np

    whole = pooled(counts)
    hit, said, true = whole.hit[:, 0], whole.said[:, 0], whole.true[:, 0]
    cells = counts.total * counts.hit.shape[1]
    spread = said * (cells - said) * true * (cells - true)
    return ratio(hit * cells - said * true, np.sqrt(spread))


def hamming_loss(counts: Counts) -> np.ndarray:
    """The share of cells (rows x labels) that are wrong."""
    wrong = (counts.said + counts.true - 2 * counts.hit).sum(axis=1)
    found: np.ndarray = wrong / (counts.total * counts.hit.shape[1])
    return found
