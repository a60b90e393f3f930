"""Scores of classifiers, single and multi label, and the trivial classifiers to hold them against."""

from __future__ import annotations

import typing as t
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tuneport.metrics import counts
from tuneport.metrics.metric import (
    Headline,
    Metric,
    Sums,
    Undefined,
    Weighted,
    mean,
    parts_of_mean,
    sums_of_mean,
)
from tuneport.metrics.scores import Evaluation, evaluated

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]
T = t.TypeVar("T")

BASELINE_ROWS = 20_000  # a trivial baseline is fitted on at most so many rows
WORST = 1e3  # loss of a row whose scores are not numbers: above any real one


@dataclass(frozen=True, kw_only=True)
class ClassifiedRows:
    """Rows with their true and predicted classes.

    ``truth`` and ``predicted`` are integers: (rows,) with class indices, or (rows, labels) with 0 and 1 for multi
    label. ``probabilities`` is (rows, labels).
    """

    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    labels: Sequence[str]

    @classmethod
    def of_logits(cls, logits: np.ndarray, truth: np.ndarray, labels: Sequence[str], multi_label: bool) -> t.Self:
        """Rows as a model's logits (rows, labels) classify them."""
        import numpy as np

        predicted = (logits > 0).astype(int) if multi_label else logits.argmax(-1)
        if multi_label:
            probabilities = 0.5 * (1 + np.tanh(logits / 2))  # the sigmoid, which no logit overflows
        else:
            shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
            probabilities = shares / shares.sum(axis=-1, keepdims=True)
        return cls(truth=truth.astype(int), predicted=predicted, probabilities=probabilities, labels=labels)

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, places: np.ndarray) -> t.Self:
        arrays = {name: getattr(self, name)[places] for name in ("truth", "predicted", "probabilities")}
        return replace(self, **arrays)

    @property
    def multi_label(self) -> bool:
        return self.truth.ndim == 2

    @property
    def n_labels(self) -> int:
        return len(self.labels)

    @property
    def cells(self) -> np.ndarray:
        """(rows, labels): 1 where the label is true of the row."""
        import numpy as np

        return self.truth if self.multi_label else np.eye(self.n_labels, dtype=int)[self.truth]

    @property
    def present(self) -> np.ndarray:
        """The places of the classes that are true or predicted in some row: macro averages are over those."""
        import numpy as np

        if not self.multi_label:
            return np.union1d(self.truth, self.predicted)
        return np.flatnonzero(self.truth.any(axis=0) | self.predicted.any(axis=0))

    @property
    def right(self) -> np.ndarray:
        """(rows,): whether the class, or all labels, are right."""
        equal = self.truth == self.predicted
        found: np.ndarray = equal.all(axis=1) if self.multi_label else equal
        return found


def _patterns(rows: ClassifiedRows) -> tuple[np.ndarray, np.ndarray]:
    """`Sums.distinct`: per distinct (truth, predicted) what `counts.Counts` is made of."""
    import numpy as np

    n_labels = rows.n_labels
    pairs, found = np.unique(np.column_stack([rows.truth, rows.predicted]), axis=0, return_counts=True)
    if rows.multi_label:
        true, said = pairs[:, :n_labels].astype(float), pairs[:, n_labels:].astype(float)
    else:
        true, said = (np.eye(n_labels)[pairs[:, i]] for i in (0, 1))
    right = (true == said).all(axis=1, keepdims=True)
    return np.hstack([true * said, said, true, right, np.ones_like(right)]), found


def _sums(statistic: Callable[[counts.Counts], np.ndarray]) -> Sums[ClassifiedRows]:
    return Sums(distinct=_patterns, value=counts.of_counts(statistic))


def _accuracy(rows: ClassifiedRows) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(rows.truth, rows.predicted))


def _mcc(rows: ClassifiedRows) -> float:
    """With multi label, over all cells."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(rows.truth.ravel(), rows.predicted.ravel()))


def _hamming_loss(rows: ClassifiedRows) -> float:
    from sklearn.metrics import hamming_loss

    return float(hamming_loss(rows.truth, rows.predicted))


def _averaged(score: str, average: str, **more: t.Any) -> Metric[ClassifiedRows]:
    """Precision, recall or F1, averaged by sklearn over the classes that are true or predicted somewhere."""

    def compute(rows: ClassifiedRows) -> float:
        import sklearn.metrics

        function, labels = getattr(sklearn.metrics, f"{score}_score"), rows.present
        if not len(labels):
            raise Undefined("no row of the split has a label, true or predicted")
        return float(function(rows.truth, rows.predicted, labels=labels, average=average, zero_division=0))

    return Metric(
        name=f"{score}_{average}",
        title=f"{score.capitalize()}, {average}",
        percent=True,
        compute=compute,
        sums=_sums(counts.averaged(score, average)),
        **more,
    )


def _mcc_by(
    statistic: Callable[[counts.Counts], np.ndarray], applies: Callable[[ClassifiedRows], bool]
) -> Metric[ClassifiedRows]:
    """One name for two statistics: of one class a row, or of yes and no over all cells."""
    return Metric(
        name="mcc",
        title="Matthews correlation (MCC)",
        short_title="MCC",
        compute=_mcc,
        sums=_sums(statistic),
        chooses_checkpoint=True,
        main=3,
        applies=applies,
    )


def _check_scores(rows: ClassifiedRows) -> None:
    import numpy as np

    if not np.isfinite(rows.probabilities).all():
        raise Undefined("the model's scores are not all numbers (training diverged)")


def _row_losses(rows: ClassifiedRows) -> np.ndarray:
    """Cross-entropy per row: of the true class, or the mean over the labels' own yes or no."""
    import numpy as np

    tiny, cells, probabilities = np.finfo(float).eps, rows.cells, rows.probabilities
    if rows.multi_label:
        right = np.where(cells == 1, probabilities, 1 - probabilities)
        losses = -np.log(np.clip(right, tiny, 1)).mean(axis=1)
    else:
        share = probabilities[cells == 1] / probabilities.sum(axis=1)
        losses = -np.log(np.clip(share, tiny, 1))
    found: np.ndarray = np.nan_to_num(losses, nan=WORST)
    return found


def _log_loss(rows: ClassifiedRows) -> float:
    _check_scores(rows)
    return mean(_row_losses)(rows)


def _aucs(rows: ClassifiedRows) -> list[float | None]:
    """One-vs-rest area under the ROC curve per label; None where all rows are of one side."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(rows.probabilities).all():
        return [None] * rows.n_labels
    return [
        None if column.min() == column.max() else float(roc_auc_score(column, scores))
        for column, scores in zip(rows.cells.T, rows.probabilities.T, strict=True)
    ]


def _auc(rows: ClassifiedRows) -> float:
    _check_scores(rows)
    found = dict(zip(rows.labels, _aucs(rows), strict=True))
    if missing := [repr(label) for label, auc in found.items() if auc is None]:
        raise Undefined(f"of {', '.join(missing)} the split has no rows, or no others")
    return sum(auc for auc in found.values() if auc is not None) / len(found)


def _weighted_auc(rows: ClassifiedRows, weights: np.ndarray) -> np.ndarray:
    """The mean over the labels that have rows of both sides among the drawn ones; nan of a draw with no such label."""
    import numpy as np

    drawn = np.ascontiguousarray(weights.T.astype(np.int32))
    found = np.stack([rank_auc(*label, drawn) for label in zip(rows.cells.T, rows.probabilities.T, strict=True)])
    known = np.isfinite(found)
    return counts.ratio(np.where(known, found, 0).sum(axis=0), known.sum(axis=0), empty=np.nan)


def rank_auc(truth: np.ndarray, scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of scores (rows,) for truths (rows,) of 0 and 1, per resample; nan where one side lacks.

    ``drawn`` (rows, resamples) is how often each row is drawn. It is the Mann–Whitney U by ranks: a positive row ranks
    above the weight of all rows with lower scores and half of that with its own; the positive rows' ranks among
    themselves, half the square of their weight in all, are subtracted.
    """
    import numpy as np

    order = np.argsort(scores, kind="stable")
    ordered, weights = scores[order], drawn[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of each run of equal scores
    tied = weights if len(starts) == len(scores) else np.add.reduceat(weights, starts, axis=0)
    twice_rank = 2 * np.cumsum(tied, axis=0, dtype=tied.dtype) - tied
    positive = truth[order] == 1
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(scores))))[positive]
    ranks = np.einsum("rb,rb->b", weights[positive], twice_rank[run], dtype=float) / 2
    above = weights[positive].sum(axis=0, dtype=float)
    pairs = above * (weights.sum(axis=0) - above)
    return counts.ratio(ranks - above**2 / 2, pairs, empty=np.nan)


def _single(rows: ClassifiedRows) -> bool:
    return not rows.multi_label


def _multi(rows: ClassifiedRows) -> bool:
    return rows.multi_label


def _right(rows: ClassifiedRows) -> np.ndarray:
    return rows.right.astype(float)


def _n_labels(rows: ClassifiedRows) -> int:
    return rows.n_labels


# With multi label, accuracy is the share of rows whose labels are all right.
METRICS: tuple[Metric[ClassifiedRows], ...] = (
    Metric(
        name="accuracy",
        title="Accuracy",
        percent=True,
        compute=_accuracy,
        sums=_sums(counts.accuracy),
        chooses_checkpoint=True,
        main=1,
        headline=Headline(parts=parts_of_mean(_right), claim=("is right in", "in")),
    ),
    _averaged("f1", "macro", chooses_checkpoint=True, main=2),
    _mcc_by(counts.mcc, _single),
    _mcc_by(counts.mcc_of_cells, _multi),
    _averaged("precision", "macro", chooses_checkpoint=True),
    _averaged("recall", "macro", chooses_checkpoint=True),
    _averaged("precision", "weighted"),
    _averaged("recall", "weighted"),
    _averaged("f1", "weighted"),
    _averaged("f1", "micro", applies=_multi),
    Metric(
        name="hamming_loss",
        title="Hamming loss",
        greater_is_better=False,
        compute=_hamming_loss,
        sums=_sums(counts.hamming_loss),
        applies=_multi,
    ),
    Metric(
        name="auc",
        title="AUC, one-vs-rest macro",
        short_title="AUC",
        compute=_auc,
        weighted=Weighted(value=_weighted_auc, columns=_n_labels),
    ),
    Metric(
        name="log_loss",
        title="Log loss",
        greater_is_better=False,
        compute=_log_loss,
        sums=sums_of_mean(_row_losses),
    ),
)


def evaluate(
    truth_labels: Sequence[t.Any], answers: Sequence[Answer], labels: Sequence[str], multi_label: bool, seed: int
) -> Evaluation:
    """Score answers ``{"label", "score", "scores"}``; a true label is a string, or a list of them with multi label."""
    import numpy as np

    rows = ClassifiedRows(
        truth=_encode(truth_labels, labels, multi_label),
        predicted=_encode([answer["label"] for answer in answers], labels, multi_label),
        probabilities=np.array([[answer["scores"][label] for label in labels] for answer in answers], dtype=float),
        labels=labels,
    )
    return evaluated(
        METRICS,
        rows,
        seed,
        row_losses=_row_losses(rows).tolist(),
        row_correct=rows.right.tolist(),
        notes=counts.absent(labels, rows.present, "classes"),
        labels=list(labels),
        multi_label=multi_label,
        per_class=_per_class(rows),
        confusion_matrix=None if multi_label else _confusion(rows).tolist(),
    )


def _encode(values: Sequence[t.Any], labels: Sequence[str], multi_label: bool) -> np.ndarray:
    import numpy as np

    index = {label: i for i, label in enumerate(labels)}
    if not multi_label:
        return np.array([index[value] for value in values], dtype=int)
    cells = np.zeros((len(values), len(labels)), dtype=int)
    for row, chosen in enumerate(values):
        cells[row, [index[label] for label in chosen]] = 1
    return cells


def _per_class(rows: ClassifiedRows) -> list[dict[str, t.Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    places, present = range(rows.n_labels), set(rows.present.tolist())
    columns = precision_recall_fscore_support(rows.truth, rows.predicted, labels=places, average=None, zero_division=0)
    return [
        {
            "label": label,
            **{
                name: float(value) if place in present else None
                for name, value in (("precision", p), ("recall", r), ("f1", f))
            },
            "auc": auc,
            "support": int(support),
        }
        for place, label, p, r, f, support, auc in zip(places, rows.labels, *columns, _aucs(rows), strict=True)
    ]


def _confusion(rows: ClassifiedRows) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(rows.truth, rows.predicted, labels=range(rows.n_labels))
    return matrix


def spread(rows: Sequence[T]) -> list[T]:
    """At most `BASELINE_ROWS` of the rows, at even steps, by going once through all."""
    import numpy as np

    if len(rows) <= BASELINE_ROWS:
        return list(rows)
    picked = set(np.linspace(0, len(rows) - 1, BASELINE_ROWS).astype(int).tolist())
    return [row for i, row in enumerate(rows) if i in picked]


def baselines(
    train_texts: Sequence[str],
    train_labels: Sequence[t.Any],
    test_texts: Sequence[str],
    labels: Sequence[str],
    multi_label: bool,
    *,
    of_all: bool = True,
) -> dict[str, list[Answer]]:
    """Answers of classifiers that need no pretrained model; ``of_all``: whether the training rows are all there are."""
    import numpy as np

    name = "TF-IDF + logistic regression" + ("" if of_all else f" ({len(train_texts):,} rows)")
    truth = _encode(train_labels, labels, multi_label)
    cells = truth if multi_label else np.eye(len(labels), dtype=int)[truth]
    majority = np.tile(cells.mean(axis=0), (len(test_texts), 1))
    return {
        "majority class": _answers(majority, labels, multi_label),
        name: _answers(_tfidf(train_texts, truth, test_texts, len(labels)), labels, multi_label),
    }


def _tfidf(train_texts: Sequence[str], truth: np.ndarray, test_texts: Sequence[str], n_labels: int) -> np.ndarray:
    """Probabilities (test rows, labels) of a logistic regression over words and pairs of words."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    # One binary model a label: as good as one multinomial model here, and some thirty times as fast to fit.
    classifier = OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear"))
    with warnings.catch_warnings():  # a label without training rows, or a fit that is cut off, is good enough here
        warnings.simplefilter("ignore")
        classifier.fit(words.fit_transform(train_texts), truth)
    found: np.ndarray = classifier.predict_proba(words.transform(test_texts))
    if truth.ndim == 2:
        return found
    probabilities = np.zeros((len(test_texts), n_labels))
    probabilities[:, classifier.classes_] = found
    return probabilities


def _answers(probabilities: np.ndarray, labels: Sequence[str], multi_label: bool) -> list[Answer]:
    answers: list[Answer] = []
    for row in probabilities.tolist():
        by_label = dict(zip(labels, row, strict=True))
        if multi_label:
            chosen = [label for label, score in by_label.items() if score >= 0.5]
            answers.append({"label": chosen, "score": [by_label[label] for label in chosen], "scores": by_label})
        else:
            best = max(by_label, key=lambda label: by_label[label])
            answers.append({"label": best, "score": by_label[best], "scores": by_label})
    return answers
