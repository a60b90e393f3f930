"""Scores of taggers, of entities (seqeval) where tags are IOB2 and else of words, and trivial taggers beside them."""

from __future__ import annotations

import typing as t
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tuneport.metrics import counts
from tuneport.metrics.metric import Headline, Metric, Sums, Undefined
from tuneport.metrics.scores import Evaluation, evaluated

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]
Tags = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class TaggedRows:
    """Sentences with their true and predicted tags; ``iob``: whether tags are IOB2, so that entities are scored."""

    truth: Tags
    predicted: Tags
    labels: Sequence[str]
    iob: bool

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, places: np.ndarray) -> t.Self:
        truth, predicted = ([tags[i] for i in places] for tags in (self.truth, self.predicted))
        return replace(self, truth=truth, predicted=predicted)

    @cached_property
    def kinds(self) -> list[str]:
        """The types of entities, or the tags: what is counted."""
        return sorted({tag[2:] for tag in self.labels if tag != "O"}) if self.iob else list(self.labels)

    @property
    def present(self) -> np.ndarray:
        """The places of the kinds that are true or predicted somewhere: macro averages are over those."""
        import numpy as np

        _, said, true = np.split(self.counts[:, :-2].sum(axis=0), 3)
        return np.flatnonzero(said + true)

    @cached_property
    def words(self) -> tuple[np.ndarray, np.ndarray]:
        """The true and predicted tags of all words, (words,), as indices of labels."""
        import numpy as np

        index = {tag: i for i, tag in enumerate(self.labels)}
        true, said = ([index[tag] for tags in rows for tag in tags] for rows in (self.truth, self.predicted))
        return np.array(true, dtype=int), np.array(said, dtype=int)

    @cached_property
    def counts(self) -> np.ndarray:
        """(rows, 3 x kinds + 2): hits, predictions and truths of every kind, then words that are right, and words."""
        import numpy as np
        from seqeval.metrics.sequence_labeling import get_entities

        index, n = {kind: i for i, kind in enumerate(self.kinds)}, len(self.kinds)
        found = np.zeros((len(self), 3 * n + 2), dtype=np.int64)
        for row, (wanted, got) in enumerate(zip(self.truth, self.predicted, strict=True)):
            if self.iob:
                true, said = set(get_entities(list(wanted))), set(get_entities(list(got)))
            else:
                true, said = ({(tag, i, i) for i, tag in enumerate(tags)} for tags in (wanted, got))
            for block, spans in enumerate((true & said, said, true)):
                for kind, _, _ in spans:
                    found[row, block * n + index[kind]] += 1
            found[row, -2:] = sum(a == b for a, b in zip(wanted, got, strict=True)), len(wanted)
        return found


def _distinct(rows: TaggedRows) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    patterns, found = np.unique(rows.counts, axis=0, return_counts=True)
    return patterns, found


def _sums(statistic: Callable[[counts.Counts], np.ndarray]) -> Sums[TaggedRows]:
    return Sums(distinct=_distinct, value=counts.of_counts(statistic))


def _accuracy(rows: TaggedRows) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*rows.words))


def _entity_parts(rows: TaggedRows) -> np.ndarray:
    import numpy as np

    hit, said, true = np.split(rows.counts[:, :-2], 3, axis=1)
    return np.column_stack([2 * hit.sum(axis=1), (said + true).sum(axis=1)])


def _iob(rows: TaggedRows) -> bool:
    return rows.iob


def _plain(rows: TaggedRows) -> bool:
    return not rows.iob


def _words_right(**more: t.Any) -> Metric[TaggedRows]:
    return Metric(
        name="accuracy",
        title="Accuracy, words",
        percent=True,
        compute=_accuracy,
        sums=_sums(counts.accuracy),
        chooses_checkpoint=True,
        **more,
    )


def _of_entities(
    name: str,
    title: str,
    score: str,
    average: str,
    **more: t.Any,
) -> Metric[TaggedRows]:
    """Precision, recall or F1 of entities as seqeval counts them: over all (micro), or an average over types."""

    def compute(rows: TaggedRows) -> float:
        from seqeval import metrics

        if not len(rows.present):
            raise Undefined("no word of the split is in an entity, true or predicted")
        truth, predicted = ([list(tags) for tags in found] for found in (rows.truth, rows.predicted))
        with warnings.catch_warnings():  # a type without predictions counts as 0 and needs no warning
            warnings.simplefilter("ignore")
            return float(getattr(metrics, f"{score}_score")(truth, predicted, average=average, zero_division=0))

    sums = _sums(counts.averaged(score, average))
    return Metric(name=name, title=title, percent=True, compute=compute, sums=sums, applies=_iob, **more)


def _of_words(name: str, title: str, score: str, average: str, **more: t.Any) -> Metric[TaggedRows]:
    """Precision, recall or F1 of words, averaged by sklearn over the tags that are true or predicted somewhere."""

    def compute(rows: TaggedRows) -> float:
        import sklearn.metrics

        function = getattr(sklearn.metrics, f"{score}_score")
        return float(function(*rows.words, labels=rows.present, average=average, zero_division=0))

    sums = _sums(counts.averaged(score, average))
    return Metric(name=name, title=title, percent=True, compute=compute, sums=sums, applies=_plain, **more)


ENTITY_HEADLINE = Headline(parts=_entity_parts, claim=("has an entity F1 of", "one of"))
WORD_HEADLINE = Headline[TaggedRows](parts=lambda rows: rows.counts[:, -2:], claim=("tags words right in", "in"))

METRICS: tuple[Metric[TaggedRows], ...] = (
    _of_entities("f1", "F1, entities", "f1", "micro", chooses_checkpoint=True, main=1, headline=ENTITY_HEADLINE),
    _words_right(applies=_iob),
    _of_entities("precision", "Precision, entities", "precision", "micro", main=2, chooses_checkpoint=True),
    _of_entities("recall", "Recall, entities", "recall", "micro", main=3, chooses_checkpoint=True),
    _of_entities("f1_macro", "F1, macro over types", "f1", "macro"),
    _of_entities("f1_weighted", "F1, weighted over types", "f1", "weighted"),
    _words_right(applies=_plain, main=1, headline=WORD_HEADLINE),
    _of_words("f1", "F1, macro over tags", "f1", "macro", main=2, chooses_checkpoint=True),
    _of_words("precision", "Precision, macro over tags", "precision", "macro", chooses_checkpoint=True),
    _of_words("recall", "Recall, macro over tags", "recall", "macro", chooses_checkpoint=True),
    _of_words("f1_weighted", "F1, weighted over tags", "f1", "weighted", main=3),
)


def evaluate(truth: Tags, answers: Sequence[Answer], labels: Sequence[str], iob: bool, seed: int) -> Evaluation:
    """Score answers ``{"tags", "scores"}`` against lists of true tags; intervals are over sentences."""
    rows = TaggedRows(truth=truth, predicted=[answer["tags"] for answer in answers], labels=labels, iob=iob)
    return evaluated(
        METRICS,
        rows,
        seed,
        row_losses=[
            sum(score for want, got, score in zip(tags, a["tags"], a["scores"], strict=True) if want != got)
            for tags, a in zip(truth, answers, strict=True)
        ],
        row_correct=[list(tags) == list(said) for tags, said in zip(truth, rows.predicted, strict=True)],
        notes=counts.absent(rows.kinds, rows.present, "types" if iob else "tags"),
        labels=list(labels),
        counted="Test entities" if iob else "Test words",
        per_class=_per_kind(rows),
        confusion_matrix=_confusion(rows),
    )


def _per_kind(rows: TaggedRows) -> list[dict[str, t.Any]]:
    import numpy as np

    hit, said, true = np.split(rows.counts[:, :-2].sum(axis=0), 3)
    return [
        {
            "label": kind,
            "precision": (h / s if s else 0.0) if s + w else None,
            "recall": (h / w if w else 0.0) if s + w else None,
            "f1": 2 * h / (s + w) if s + w else None,
            "support": w,
        }
        for kind, h, s, w in zip(rows.kinds, hit.tolist(), said.tolist(), true.tolist(), strict=True)
    ]


def _confusion(rows: TaggedRows) -> list[list[int]]:
    import numpy as np

    matrix = np.zeros((len(rows.labels), len(rows.labels)), dtype=np.int64)
    np.add.at(matrix, rows.words, 1)
    found: list[list[int]] = matrix.tolist()
    return found


def baselines(train: Iterable[Answer], test: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers of two taggers that only count: the commonest tag, and each word's own commonest one.

    Of the training rows' words only those of the test rows are kept, so that any number of rows takes no more memory.
    """
    by_word: dict[str, Counter[str]] = {word: Counter() for row in test for word in row["tokens"]}
    overall: Counter[str] = Counter()
    for row in train:
        overall.update(row["tags"])
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            if word in by_word:
                by_word[word][tag] += 1

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
