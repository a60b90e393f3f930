"""Scores of classifiers, single and multi label, and the trivial classifiers to hold them against."""

from __future__ import annotations

import typing as t
import warnings
from collections.abc import Callable, Sequence

from tuneport.metrics import bootstrap
from tuneport.metrics.evaluation import Evaluation

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]

MAIN = ("accuracy", "f1_macro", "mcc")
BASELINE_ROWS = 20_000  # a trivial baseline is fitted on at most so many rows
WORST = 1e3  # loss of a row whose scores are not numbers: above any real one


def scores(truth: np.ndarray, predicted: np.ndarray, n_labels: int) -> dict[str, float]:
    """Metrics of predicted against true classes.

    Both are integers: shape (n,) with class indices, or (n, n_labels) with 0 and 1 for multi label. There, accuracy is
    the share of rows whose labels are all right and mcc is taken over all cells. A class without rows and predictions
    counts as 0 in the macro averages.
    """
    from sklearn.metrics import (
        accuracy_score,
        f1_score,
        hamming_loss,
        matthews_corrcoef,
        precision_recall_fscore_support,
    )

    found = {"accuracy": accuracy_score(truth, predicted)}
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, predicted, labels=range(n_labels), average=average, zero_division=0
        )
        found |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    found["mcc"] = matthews_corrcoef(truth.ravel(), predicted.ravel())
    if truth.ndim == 2:
        found["f1_micro"] = f1_score(truth, predicted, labels=range(n_labels), average="micro", zero_division=0)
        found["hamming_loss"] = hamming_loss(truth, predicted)
    return {name: float(value) for name, value in found.items()}


def evaluate(
    truth_labels: Sequence[t.Any], answers: Sequence[Answer], labels: Sequence[str], multi_label: bool, seed: int
) -> Evaluation:
    """Score answers ``{"label", "score", "scores"}``; a true label is a string, or a list of them with multi label."""
    import numpy as np

    truth = _encode(truth_labels, labels, multi_label)
    predicted = _encode([answer["label"] for answer in answers], labels, multi_label)
    probabilities = np.array([[answer["scores"][label] for label in labels] for answer in answers], dtype=float)
    cells = truth if multi_label else np.eye(len(labels), dtype=int)[truth]
    notes: list[str] = []
    aucs = _aucs(cells, probabilities, labels, notes)
    losses = _row_losses(cells, probabilities, multi_label)
    finite = bool(np.isfinite(probabilities).all())
    if not finite:
        notes.append("auc and log_loss cannot be computed: the model's scores are not all numbers (training diverged).")
    metrics = scores(truth, predicted, len(labels))
    row_correct = truth == predicted if truth.ndim == 1 else (truth == predicted).all(axis=1)
    found = bootstrap.intervals(*_patterns(truth, predicted, len(labels)), statistics_of_sums(multi_label), seed)
    if finite:
        found["log_loss"] = bootstrap.mean_interval(losses, seed)
    return Evaluation(
        main=MAIN,
        metrics={
            **metrics,
            "auc": _mean(aucs),
            "log_loss": float(np.mean(losses)) if finite else None,
        },
        intervals=found,
        details={
            "labels": list(labels),
            "multi_label": multi_label,
            "notes": notes,
            "per_class": _per_class(truth, predicted, labels, aucs),
            "confusion_matrix": None if multi_label else _confusion(truth, predicted, len(labels)).tolist(),
        },
        row_parts=[(float(right), 1.0) for right in row_correct.tolist()],
        lower_is_better=frozenset({"log_loss", "hamming_loss"}),
        row_losses=losses.tolist(),
        row_correct=row_correct.tolist(),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _encode(values: Sequence[t.Any], labels: Sequence[str], multi_label: bool) -> np.ndarray:
    import numpy as np

    index = {label: i for i, label in enumerate(labels)}
    if not multi_label:
        return np.array([index[value] for value in values], dtype=int)
    cells = np.zeros((len(values), len(labels)), dtype=int)
    for row, chosen in enumerate(values):
        cells[row, [index[label] for label in chosen]] = 1
    return cells


def _row_losses(cells: np.ndarray, probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Cross-entropy per row: of the true class, or the mean over the labels' own yes or no."""
    import numpy as np

    tiny = np.finfo(float).eps
    if multi_label:
        right = np.where(cells == 1, probabilities, 1 - probabilities)
        losses = -np.log(np.clip(right, tiny, 1)).mean(axis=1)
    else:
        share = probabilities[cells == 1] / probabilities.sum(axis=1)
        losses = -np.log(np.clip(share, tiny, 1))
    found: np.ndarray = np.nan_to_num(losses, nan=WORST)
    return found


def _aucs(cells: np.ndarray, probabilities: np.ndarray, labels: Sequence[str], notes: list[str]) -> list[float | None]:
    """One-vs-rest area under the ROC curve per label; None where all rows are of one side."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(probabilities).all():
        return [None] * len(labels)
    one_sided = [label for label, column in zip(labels, cells.T, strict=True) if column.min() == column.max()]
    if one_sided:
        notes.append(
            f"auc cannot be computed: of {', '.join(map(repr, one_sided))} the split has no rows, or no others."
        )
    return [
        None if label in one_sided else float(roc_auc_score(cells[:, i], probabilities[:, i]))
        for i, label in enumerate(labels)
    ]


def _per_class(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str], aucs: Sequence[float | None]
) -> list[dict[str, t.Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    places = range(len(labels))
    columns = precision_recall_fscore_support(truth, predicted, labels=places, average=None, zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "auc": auc, "support": int(support)}
        for label, p, r, f, support, auc in zip(labels, *columns, aucs, strict=True)
    ]


def _confusion(truth: np.ndarray, predicted: np.ndarray, n_labels: int) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    matrix: np.ndarray = confusion_matrix(truth, predicted, labels=range(n_labels))
    return matrix


def _patterns(truth: np.ndarray, predicted: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (truth, predicted) rows as features, and how often each occurs.

    A row's features are, per label, hit, predicted and true, then whether the whole row is right, and 1: all that the
    statistics need are sums of these.
    """
    import numpy as np

    pairs, counts = np.unique(np.column_stack([truth, predicted]), axis=0, return_counts=True)
    if truth.ndim == 1:
        true, said = (np.eye(n_labels)[pairs[:, i]] for i in (0, 1))
    else:
        true, said = pairs[:, :n_labels].astype(float), pairs[:, n_labels:].astype(float)
    right = (true == said).all(axis=1, keepdims=True)
    return np.hstack([true * said, said, true, right, np.ones_like(right)]), counts


def statistics_of_sums(multi_label: bool) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The metrics of `scores`, from sums (resamples, 3 x labels + 2) of the features of `_patterns`."""
    import numpy as np

    def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b > 0)
        return found

    def statistics(sums: np.ndarray) -> dict[str, np.ndarray]:
        hit, said, true = np.split(sums[:, :-2], 3, axis=1)
        n_labels = hit.shape[1]
        precision, recall, f1 = ratio(hit, said), ratio(hit, true), ratio(2 * hit, said + true)
        total, rows = true.sum(axis=1), sums[:, -1]
        found = {"accuracy": sums[:, -2] / rows}
        for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            found[f"{name}_macro"] = values.mean(axis=1)
            found[f"{name}_weighted"] = ratio((values * true).sum(axis=1), total)
        hits, saids, cells = hit.sum(axis=1), said.sum(axis=1), rows * n_labels
        if multi_label:
            spread = saids * (cells - saids) * total * (cells - total)
            found["mcc"] = ratio(hits * cells - saids * total, np.sqrt(spread))
            found["f1_micro"] = ratio(2 * hits, saids + total)
            found["hamming_loss"] = (saids + total - 2 * hits) / cells
        else:
            spread = (rows**2 - (said**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1))
            found["mcc"] = ratio(hits * rows - (said * true).sum(axis=1), np.sqrt(spread))
        return found

    return statistics


def baselines(
    train_texts: Sequence[str],
    train_labels: Sequence[t.Any],
    test_texts: Sequence[str],
    labels: Sequence[str],
    multi_label: bool,
) -> dict[str, list[Answer]]:
    """Answers of classifiers that need no pretrained model, fitted on at most `BASELINE_ROWS` of the training rows."""
    import numpy as np

    name = "TF-IDF + logistic regression"
    if len(train_texts) > BASELINE_ROWS:
        picked = np.linspace(0, len(train_texts) - 1, BASELINE_ROWS).astype(int)
        train_texts, train_labels = [train_texts[i] for i in picked], [train_labels[i] for i in picked]
        name += f" ({BASELINE_ROWS:,} rows)"
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
