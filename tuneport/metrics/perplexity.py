"""Scores of language models by the likelihood of texts, and the likelihood by the frequencies of tokens beside them."""

from __future__ import annotations

import math
import typing as t
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tuneport.labels import IGNORED
from tuneport.metrics.metric import Headline, Metric, Rows, Sums, Undefined
from tuneport.metrics.scores import Evaluation, evaluated

if t.TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

Answer = dict[str, t.Any]

FREQUENCIES = "token frequencies"


class RowsWithLikelihood(Rows, t.Protocol):
    """Rows whose texts a language model found more or less likely.

    ``likelihood`` is (rows, 3), the fields of a `Likelihood`: negative log-likelihood in nats, tokens, tokens right;
    None where no language model answered.
    """

    @property
    def likelihood(self) -> np.ndarray | None: ...


@dataclass(frozen=True, kw_only=True)
class LikelihoodRows:
    """Rows of which only the likelihood is scored."""

    likelihood: np.ndarray

    def __len__(self) -> int:
        return len(self.likelihood)

    def take(self, places: np.ndarray) -> t.Self:
        return replace(self, likelihood=self.likelihood[places])


def summed(losses: torch.Tensor) -> torch.Tensor:
    """`LikelihoodRows.likelihood`, (rows, 3), of `token_losses` (rows, tokens, 2); what is below 0 is not a label."""
    import torch

    known = losses[..., 0] >= 0
    kept = torch.where(known[..., None], losses, 0)
    nats, right = kept.sum(1, dtype=torch.float32 if losses.device.type == "mps" else torch.float64).unbind(-1)
    return torch.stack([nats, known.sum(1).to(nats.dtype), right], -1)


def likelihood_of(answers: Sequence[Answer]) -> np.ndarray | None:
    """`RowsWithLikelihood.likelihood` of answers, None where they do not hold it."""
    import numpy as np

    if not all("tokens" in answer for answer in answers):
        return None
    return np.array([[a["negative_log_likelihood"], a["tokens"], a["tokens_right"]] for a in answers], dtype=float)


def perplexity(loss: float) -> float:
    """Return e to the loss; infinite where that is beyond what a float holds."""
    return math.exp(loss) if loss < 700 else math.inf


def _known(rows: RowsWithLikelihood) -> np.ndarray:
    if rows.likelihood is None:
        raise Undefined("no language model gave the answers")
    return rows.likelihood


def _per_token(column: int) -> Callable[[RowsWithLikelihood], float]:
    def compute(rows: RowsWithLikelihood) -> float:
        sums = _known(rows).sum(axis=0)
        if not sums[1]:
            raise Undefined("no token of the rows has a label")
        return float(sums[column] / sums[1])

    return compute


def _distinct(rows: RowsWithLikelihood) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    found, counts = np.unique(_known(rows), axis=0, return_counts=True)
    return found, counts


def _perplexity_of_sums(sums: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.array([perplexity(loss) for loss in (sums[:, 0] / sums[:, 1]).tolist()])


_loss = _per_token(0)

METRICS: tuple[Metric[RowsWithLikelihood], ...] = (
    Metric(
        name="loss",
        title="Loss, nats per token",
        greater_is_better=False,
        compute=_loss,
        sums=Sums(distinct=_distinct, value=lambda sums: sums[:, 0] / sums[:, 1]),
        chooses_checkpoint=True,
        main=1,
        headline=Headline(parts=lambda rows: _known(rows)[:, :2], claim=("has a loss per token of", "one of")),
    ),
    Metric(
        name="perplexity",
        title="Perplexity",
        greater_is_better=False,
        compute=lambda rows: perplexity(_loss(rows)),
        sums=Sums(distinct=_distinct, value=_perplexity_of_sums),
        chooses_checkpoint=True,
        main=2,
    ),
    Metric(
        name="token_accuracy",
        title="Token accuracy",
        percent=True,
        compute=_per_token(2),
        sums=Sums(distinct=_distinct, value=lambda sums: sums[:, 2] / sums[:, 1]),
        chooses_checkpoint=True,
        main=3,
    ),
)
# The same beside the metrics of what a model writes, which lead.
SECONDARY_METRICS = tuple(replace(m, chooses_checkpoint=False, main=None, headline=None) for m in METRICS)


def evaluate(answers: Sequence[Answer], seed: int) -> Evaluation:
    """Score answers that hold the fields of a `Likelihood`; intervals are over rows."""
    found = likelihood_of(answers)
    assert found is not None, "each answer has its likelihood"
    row_losses = (found[:, 0] / found[:, 1]).tolist()
    return evaluated(METRICS, LikelihoodRows(likelihood=found), seed, row_losses=row_losses, row_correct=None)


def baselines(train: Iterable[pa.RecordBatch], test: pa.Table, vocabulary: int) -> dict[str, list[Answer]]:
    """Answers of a model that gives each token its share of the training rows' labels, whatever stands before it.

    ``train`` has these rows in batches. One is added to each token's count, over the ``vocabulary`` tokens that there
    are.
    """
    import numpy as np

    counts = np.ones(vocabulary)
    for batch in train:
        labels = batch["labels"].flatten().to_numpy(zero_copy_only=False)
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
