"""Scores of extracted answers as SQuAD 2.0 counts them, and trivial answers beside them."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneport.metrics.metric import Headline, Metric, mean, parts_of_mean, sums_of_mean
from tuneport.metrics.scores import Evaluation, evaluated

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]


@dataclass(frozen=True, kw_only=True)
class AnsweredRows:
    """Scores of each row's answer, 0 to 1, and whether the row has one; all (rows,)."""

    f1: np.ndarray
    exact: np.ndarray
    answerable: np.ndarray

    @classmethod
    def of(cls, truth: Sequence[Sequence[str]], predicted: Sequence[str]) -> t.Self:
        """Rows whose true answers are ``truth``, none where there is none."""
        import numpy as np

        return cls(**row_scores(truth, predicted), answerable=np.array([bool(texts) for texts in truth]))

    def __len__(self) -> int:
        return len(self.f1)

    def take(self, places: np.ndarray) -> t.Self:
        return type(self)(f1=self.f1[places], exact=self.exact[places], answerable=self.answerable[places])


def row_scores(truth: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, np.ndarray]:
    """Return f1 and exact of each row, 0 to 1: of the true answer that suits best.

    Answers are compared without case, punctuation, articles and white space. A row without true answers wants "", and
    so does one whose answers have nothing left then: that is the rule of SQuAD 2.0.
    """
    import numpy as np

    def score(answers: Sequence[str], said: str) -> dict[str, float]:
        return _compare([answer for answer in answers if not _compare([""], answer)["exact"]] or [""], said)

    found = [score(answers, said) for answers, said in zip(truth, predicted, strict=True)]
    return {name: np.array([row[name] for row in found], dtype=float) for name in ("f1", "exact")}


def _compare(wanted: list[str], said: str) -> dict[str, float]:
    """f1 and exact of one answer; the library's own scores are percentages, and it fails without anything expected."""
    from torchmetrics.functional.text.squad import squad

    found = squad({"prediction_text": said, "id": "0"}, {"answers": {"text": wanted}, "id": "0"})
    return {"f1": float(found["f1"]) / 100, "exact": float(found["exact_match"]) / 100}


def _f1(rows: AnsweredRows) -> np.ndarray:
    return rows.f1


def _exact(rows: AnsweredRows) -> np.ndarray:
    return rows.exact


def _of_mean(
    name: str, title: str, values: Callable[[AnsweredRows], np.ndarray], **more: t.Any
) -> Metric[AnsweredRows]:
    """The metric that is the mean of ``values``, one per row or per row of one kind."""
    return Metric(name=name, title=title, percent=True, compute=mean(values), sums=sums_of_mean(values), **more)


def _has_both(rows: AnsweredRows) -> bool:
    return bool(rows.answerable.any() and not rows.answerable.all())


def _has_unanswerable(rows: AnsweredRows) -> bool:
    return not rows.answerable.all()


METRICS: tuple[Metric[AnsweredRows], ...] = (
    _of_mean(
        "f1",
        "F1, mean over questions",
        _f1,
        chooses_checkpoint=True,
        main=1,
        headline=Headline(parts=parts_of_mean(_f1), claim=("has a mean F1 of", "one of")),
    ),
    _of_mean("exact", "Exact match", _exact, chooses_checkpoint=True, main=2),
    _of_mean("f1_answerable", "F1, questions with an answer", lambda rows: rows.f1[rows.answerable], applies=_has_both),
    _of_mean(
        "exact_answerable",
        "Exact match, questions with an answer",
        lambda rows: rows.exact[rows.answerable],
        applies=_has_both,
    ),
    _of_mean(
        "f1_unanswerable",
        "F1, questions without an answer",
        lambda rows: rows.f1[~rows.answerable],
        applies=_has_unanswerable,
    ),
    _of_mean(
        "exact_unanswerable",
        "Exact match, questions without an answer",
        lambda rows: rows.exact[~rows.answerable],
        applies=_has_unanswerable,
    ),
)


def evaluate(truth: Sequence[Sequence[str]], answers: Sequence[Answer], seed: int) -> Evaluation:
    """Score answers ``{"answer", "score"}`` against lists of true answers, which are empty where there is none.

    Rows with and without an answer are also scored apart; such a score's interval is over those rows.
    """
    rows = AnsweredRows.of(truth, [answer["answer"] for answer in answers])
    return evaluated(
        METRICS,
        rows,
        seed,
        row_losses=[(1 - value) * answer["score"] for value, answer in zip(rows.f1.tolist(), answers, strict=True)],
        row_correct=(rows.exact == 1).tolist(),
    )


def baselines(contexts: Sequence[str], unanswerable: bool) -> dict[str, list[Answer]]:
    """Answers of predictors that read no question: the context's first sentence, and, if it may be, none."""
    found = {"first sentence": [_first_sentence(context) for context in contexts]}
    none: Answer = {"answer": "", "start": -1, "end": -1, "score": 1.0}
    return found | ({"no answer": [none] * len(contexts)} if unanswerable else {})


def _first_sentence(context: str) -> Answer:
    start = len(context) - len(context.lstrip())
    end = re.compile(r"[.!?](?=\s)|\s*\Z").search(context, start)
    stop = end.end() if end and end.group().strip() else len(context.rstrip())
    return {"answer": context[start:stop], "start": start, "end": stop, "score": 1.0}
