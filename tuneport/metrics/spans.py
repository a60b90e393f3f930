"""Scores of extracted answers as SQuAD 2.0 counts them, and trivial answers beside them."""

from __future__ import annotations

import re
import typing as t
from collections.abc import Sequence

from tuneport.metrics import bootstrap
from tuneport.metrics.evaluation import Evaluation

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]

TITLES = {
    "f1": "F1, mean over questions",
    "exact": "Exact match",
    "f1_answerable": "F1, questions with an answer",
    "exact_answerable": "Exact match, questions with an answer",
    "f1_unanswerable": "F1, questions without an answer",
    "exact_unanswerable": "Exact match, questions without an answer",
}


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


def evaluate(truth: Sequence[Sequence[str]], answers: Sequence[Answer], seed: int) -> Evaluation:
    """Score answers ``{"answer", "score"}`` against lists of true answers, which are empty where there is none."""
    import numpy as np

    found = row_scores(truth, [answer["answer"] for answer in answers])
    answerable = np.array([bool(texts) for texts in truth])
    groups = {"": np.ones(len(truth), dtype=bool)}
    if not answerable.all():
        groups |= {"_answerable": answerable, "_unanswerable": ~answerable}
    values = {
        f"{name}{suffix}": rows[kept] for suffix, kept in groups.items() if kept.any() for name, rows in found.items()
    }
    f1, exact = found["f1"].tolist(), found["exact"].tolist()
    return Evaluation(
        main=("f1", "exact"),
        metrics={name: float(rows.mean()) for name, rows in values.items()},
        intervals={name: bootstrap.mean_interval(rows, seed) for name, rows in values.items()},
        headline="f1",
        claim=("has a mean F1 of", "one of"),
        row_parts=[(value, 1) for value in f1],
        titles=TITLES,
        row_losses=[(1 - value) * answer["score"] for value, answer in zip(f1, answers, strict=True)],
        row_correct=[value == 1 for value in exact],
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
