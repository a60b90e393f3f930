"""Scores of language models by the likelihood of texts, and the likelihood by the frequencies of tokens beside them."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence

from tuneport.labels import IGNORED
from tuneport.metrics import bootstrap
from tuneport.metrics.evaluation import Evaluation
from tuneport.modeling.likelihood import perplexity, total

if t.TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Answer = dict[str, t.Any]

FREQUENCIES = "token frequencies"


def evaluate(answers: Sequence[Answer], seed: int) -> Evaluation:
    """Score answers that hold the fields of a `Likelihood`; intervals are over rows."""
    import numpy as np

    features = np.array([[a["negative_log_likelihood"], a["tokens"], a["tokens_right"]] for a in answers], dtype=float)
    distinct, counts = np.unique(features, axis=0, return_counts=True)
    intervals = bootstrap.intervals(distinct, counts, _statistics, seed)
    low, high = intervals["loss"]
    return Evaluation(
        main=("loss", "perplexity", "token_accuracy"),
        metrics=total(answers),
        intervals={**intervals, "perplexity": (perplexity(low), perplexity(high))},
        headline="loss",
        percent=False,
        claim=("has a loss per token of", "one of"),
        row_parts=[(float(row[0]), float(row[1])) for row in features],
        titles={
            "loss": "Loss, nats per token",
            "perplexity": "Perplexity",
            "token_accuracy": "Accuracy, next token",
        },
        lower_is_better=frozenset(["loss", "perplexity"]),
        details={"notes": []},
        row_losses=(features[:, 0] / features[:, 1]).tolist(),
        row_correct=None,
    )


def _statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"loss": sums[:, 0] / sums[:, 1], "token_accuracy": sums[:, 2] / sums[:, 1]}


def baselines(train: pa.Table, test: pa.Table, vocabulary: int) -> dict[str, list[Answer]]:
    """Answers of a model that gives each token its share of the training rows' labels, whatever stands before it.

    One is added to each token's count, over the ``vocabulary`` tokens that there are.
    """
    import numpy as np

    counts = np.ones(vocabulary)
    for chunk in train["labels"].chunks:
        labels = chunk.flatten().to_numpy(zero_copy_only=False)
        counts += np.bincount(labels[labels != IGNORED], minlength=vocabulary)
    losses, commonest = np.log(counts.sum()) - np.log(counts), int(counts.argmax())

    def answer(labels: list[int]) -> Answer:
        known = np.array([label for label in labels if label != IGNORED], dtype=int)
        return {
            "negative_log_likelihood": float(losses[known].sum()),
            "tokens": len(known),
            "tokens_right": int((known == commonest).sum()),
        }

    return {FREQUENCIES: [answer(labels) for labels in test["labels"].to_pylist()]}
