"""An evaluation's batches, kept as they are and joined once: joined again at each of them, the cost is quadratic."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Sequence

import numpy as np
from transformers import EvalPrediction, Trainer

from tuneport.labels import IGNORED

Reduce = Callable[[t.Any, t.Any], t.Any]
Compute = Callable[[EvalPrediction], dict[str, float]]


class LeanEvaluation(Trainer):
    """A Trainer that keeps of an evaluation's batches what its metrics need.

    ``reduce`` makes that of a batch's logits and labels, on the device; the labels themselves are kept, and exchanged
    between processes, only with ``keeps_labels``.
    """

    def __init__(
        self,
        *,
        reduce: Reduce | None = None,
        keeps_labels: bool = True,
        compute_metrics: Compute | None = None,
        **kwargs: t.Any,
    ) -> None:
        computed = None if compute_metrics is None else of_batches(compute_metrics)
        super().__init__(compute_metrics=computed, **kwargs)
        self.args.eval_do_concat_batches = False  # `of_batches` does it once
        self.reduce = reduce
        self.keeps_labels = keeps_labels

    def prediction_step(self, *args: t.Any, **kwargs: t.Any) -> tuple[t.Any, t.Any, t.Any]:
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        if logits is not None and self.reduce is not None:
            logits = self.reduce(logits, labels)
        if labels is not None and not self.keeps_labels:
            first = labels[0] if isinstance(labels, tuple) else labels
            labels = first.new_zeros(len(first), 1)  # None would mean that there is nothing to score
        return loss, logits, labels


def of_batches(compute: Compute) -> Compute:
    """Let metrics of arrays be computed from lists of them, one a batch."""

    def computed(prediction: EvalPrediction) -> dict[str, float]:
        kept = (prediction.predictions, prediction.label_ids)
        return compute(EvalPrediction(*(joined(t.cast(t.Any, batches)) for batches in kept)))

    return computed


def joined(batches: Sequence[t.Any]) -> t.Any:
    """Arrays (rows, width, ...) as one, filled up to the largest width with `IGNORED`; of tuples, one a place."""
    if isinstance(batches[0], (tuple, list)):
        return tuple(joined(parts) for parts in zip(*batches, strict=True))
    if batches[0].ndim == 1:
        return np.concatenate(batches)
    width = max(batch.shape[1] for batch in batches)
    rows = sum(len(batch) for batch in batches)
    found = np.full((rows, width, *batches[0].shape[2:]), IGNORED, dtype=batches[0].dtype)
    start = 0
    for batch in batches:
        found[start : start + len(batch), : batch.shape[1]] = batch
        start += len(batch)
    return found
