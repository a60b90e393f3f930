"""Scores of taggers, of entities (seqeval) where tags are IOB2 and else of words, and trivial taggers beside them."""

from __future__ import annotations

import typing as t
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

from tuneport.metrics import bootstrap
from tuneport.metrics.classification import scores as word_scores
from tuneport.metrics.classification import statistics_of_sums
from tuneport.metrics.evaluation import Evaluation

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]
Tags = Sequence[Sequence[str]]

IOB_TITLES = {
    "f1": "F1, entities",
    "precision": "Precision, entities",
    "recall": "Recall, entities",
    "f1_macro": "F1, macro over types",
    "f1_weighted": "F1, weighted over types",
    "accuracy": "Accuracy, words",
}
PLAIN_TITLES = {
    "accuracy": "Accuracy, words",
    "f1": "F1, macro over tags",
    "precision": "Precision, macro over tags",
    "recall": "Recall, macro over tags",
    "f1_weighted": "F1, weighted over tags",
}


def scores(truth: Tags, predicted: Tags, labels: Sequence[str], iob: bool) -> dict[str, float]:
    """Metrics of predicted against true tags, one list a sentence.

    accuracy is of words. With ``iob``, the others are of entities as seqeval counts them: f1, precision and recall over
    all entities, f1_macro and f1_weighted over types. Else f1, precision and recall are macro averages over ``labels``.
    """
    if not iob:
        index = {tag: i for i, tag in enumerate(labels)}
        found = word_scores(_flat(truth, index), _flat(predicted, index), len(labels))
        macro = {name: found[f"{name}_macro"] for name in ("f1", "precision", "recall")}
        return {"accuracy": found["accuracy"], **macro, "f1_weighted": found["f1_weighted"]}
    from seqeval import metrics

    wanted, got = [list(tags) for tags in truth], [list(tags) for tags in predicted]
    with warnings.catch_warnings():  # a type without predictions counts as 0 and needs no warning
        warnings.simplefilter("ignore")
        found = {
            "f1": metrics.f1_score(wanted, got, zero_division=0),
            "precision": metrics.precision_score(wanted, got, zero_division=0),
            "recall": metrics.recall_score(wanted, got, zero_division=0),
            "accuracy": metrics.accuracy_score(wanted, got),
            "f1_macro": metrics.f1_score(wanted, got, average="macro", zero_division=0),
            "f1_weighted": metrics.f1_score(wanted, got, average="weighted", zero_division=0),
        }
    return {name: float(value) for name, value in found.items()}


def _flat(sentences: Tags, index: dict[str, int]) -> np.ndarray:
    import numpy as np

    return np.array([index[tag] for tags in sentences for tag in tags], dtype=int)


def evaluate(truth: Tags, answers: Sequence[Answer], labels: Sequence[str], iob: bool, seed: int) -> Evaluation:
    """Score answers ``{"tags", "scores"}`` against lists of true tags; intervals are over sentences."""
    import numpy as np

    predicted = [answer["tags"] for answer in answers]
    kinds = sorted({tag[2:] for tag in labels if tag != "O"}) if iob else list(labels)
    features = _features(truth, predicted, kinds, iob)
    patterns, counts = np.unique(features, axis=0, return_counts=True)
    main = ("f1", "precision", "recall") if iob else ("accuracy", "f1", "f1_weighted")
    hit, said, true = np.split(features[:, :-2], 3, axis=1)
    parts = (2 * hit.sum(axis=1), (said + true).sum(axis=1)) if iob else (features[:, -2], features[:, -1])
    return Evaluation(
        main=main,
        metrics=scores(truth, predicted, labels, iob),
        intervals=bootstrap.intervals(patterns, counts, lambda sums: _statistics(sums, iob), seed),
        headline=main[0],
        claim=("has an entity F1 of", "one of") if iob else ("tags words right in", "in"),
        row_parts=list(zip(*(part.tolist() for part in parts), strict=True)),
        titles=IOB_TITLES if iob else PLAIN_TITLES,
        details={
            "labels": list(labels),
            "notes": [],
            "counted": "Test entities" if iob else "Test words",
            "per_class": _per_kind(kinds, hit.sum(axis=0), said.sum(axis=0), true.sum(axis=0)),
            "confusion_matrix": _confusion(truth, predicted, labels),
        },
        row_losses=[
            sum(score for want, got, score in zip(tags, a["tags"], a["scores"], strict=True) if want != got)
            for tags, a in zip(truth, answers, strict=True)
        ],
        row_correct=[list(tags) == list(said) for tags, said in zip(truth, predicted, strict=True)],
    )


def _features(truth: Tags, predicted: Tags, kinds: Sequence[str], iob: bool) -> np.ndarray:
    """One row a sentence: hits, predictions and truths of every kind, then words that are right, and words."""
    import numpy as np
    from seqeval.metrics.sequence_labeling import get_entities

    index, n = {kind: i for i, kind in enumerate(kinds)}, len(kinds)
    found = np.zeros((len(truth), 3 * n + 2), dtype=np.int64)
    for row, (wanted, got) in enumerate(zip(truth, predicted, strict=True)):
        if iob:
            true, said = set(get_entities(list(wanted))), set(get_entities(list(got)))
        else:
            true, said = ({(tag, i, i) for i, tag in enumerate(tags)} for tags in (wanted, got))
        for block, spans in enumerate((true & said, said, true)):
            for kind, _, _ in spans:
                found[row, block * n + index[kind]] += 1
        found[row, -2:] = sum(a == b for a, b in zip(wanted, got, strict=True)), len(wanted)
    return found


def _statistics(sums: np.ndarray, iob: bool) -> dict[str, np.ndarray]:
    """The metrics of `scores`, from sums (resamples, features) of `_features`."""
    import numpy as np

    found = statistics_of_sums(False)(sums)
    if not iob:
        macro = {name: found[f"{name}_macro"] for name in ("f1", "precision", "recall")}
        return {"accuracy": found["accuracy"], **macro, "f1_weighted": found["f1_weighted"]}
    hit, said, true = (part.sum(axis=1) for part in np.split(sums[:, :-2], 3, axis=1))
    return {
        "f1": 2 * hit / np.maximum(said + true, 1),
        "precision": hit / np.maximum(said, 1),
        "recall": hit / np.maximum(true, 1),
        "accuracy": found["accuracy"],
        "f1_weighted": found["f1_weighted"],
    }


def _per_kind(kinds: Sequence[str], hit: np.ndarray, said: np.ndarray, true: np.ndarray) -> list[dict[str, t.Any]]:
    return [
        {
            "label": kind,
            "precision": h / s if s else 0.0,
            "recall": h / w if w else 0.0,
            "f1": 2 * h / (s + w) if s + w else 0.0,
            "support": w,
        }
        for kind, h, s, w in zip(kinds, hit.tolist(), said.tolist(), true.tolist(), strict=True)
    ]


def _confusion(truth: Tags, predicted: Tags, labels: Sequence[str]) -> list[list[int]]:
    import numpy as np

    index = {tag: i for i, tag in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(matrix, (_flat(truth, index), _flat(predicted, index)), 1)
    found: list[list[int]] = matrix.tolist()
    return found


def baselines(train: Sequence[Answer], test: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers of two taggers that only count: the commonest tag, and each word's own commonest one."""
    by_word: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            by_word[word][tag] += 1
    overall: Counter[str] = Counter()
    for counter in by_word.values():
        overall.update(counter)

    def answer(words: Sequence[str], counters: dict[str, Counter[str]]) -> Answer:
        chosen = [_commonest(counters.get(word) or overall) for word in words]
        return {"tags": [tag for tag, _ in chosen], "scores": [score for _, score in chosen], "entities": []}

    return {
        "commonest tag": [answer(row["tokens"], {}) for row in test],
        "commonest tag of the word": [answer(row["tokens"], by_word) for row in test],
    }


def _commonest(counter: Counter[str]) -> tuple[str, float]:
    tag, count = min(counter.items(), key=lambda item: (-item[1], item[0]))
    return tag, count / counter.total()
