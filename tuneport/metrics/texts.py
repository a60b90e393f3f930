"""Scores of written texts against reference texts: ROUGE, BLEU and chrF, beside the references' own likelihood."""

from __future__ import annotations

import re
import typing as t
import unicodedata
from collections.abc import Sequence

from tuneport.metrics import bootstrap
from tuneport.metrics.evaluation import Evaluation
from tuneport.modeling.likelihood import total

Answer = dict[str, t.Any]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
TITLES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-L, by lines",
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf_rows": "chrF, mean of rows",
    "loss": "Loss, nats a token",
    "perplexity": "Perplexity",
    "token_accuracy": "Token accuracy",
}
LIKELIHOOD = ("loss", "perplexity", "token_accuracy")
LOWER_IS_BETTER = frozenset(["loss", "perplexity"])
CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
# sacreBLEU's tokenizers of languages that put no spaces between words, by the start of their codes
BLEU_TOKENIZERS = {
    "zh": "zh",
    "zho": "zh",
    "yue": "zh",
    "ja": "char",
    "jpn": "char",
    "th": "char",
    "tha": "char",
    "km": "char",
}
BLEU_TOKENIZERS |= {"khm": "char", "lo": "char", "lao": "char", "my": "char", "mya": "char"}


class Words:
    """ROUGE's words, in any script; rouge_score's own tokenizer knows a–z and 0–9 only, and equals this one on them."""

    def tokenize(self, text: str) -> list[str]:
        """Lower-case runs of letters, marks and digits; each Chinese or Japanese character is a word."""
        text = text.lower()
        if text.isascii():
            return re.findall("[a-z0-9]+", text)
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
        return CJK.sub(r" \1 ", kept).split()


def rouge_rows(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, list[float]]:
    """F1 of each ROUGE, 0 to 1, for every row."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=Words())
    scores = [scorer.score(want, got) for want, got in zip(truth, predicted, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in ROUGE}


def rouge(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Mean F1 of each ROUGE, 0 to 1."""
    return {name: sum(values) / len(values) for name, values in rouge_rows(truth, predicted).items()}


def evaluate_summaries(truth: Sequence[str], answers: Sequence[Answer], seed: int) -> Evaluation:
    """Score answers ``{"summary", …}`` against true summaries."""
    rows = rouge_rows(truth, [answer["summary"] for answer in answers])
    return Evaluation(
        main=("rougeL", "rouge1", "rouge2"),
        metrics={**{name: sum(values) / len(values) for name, values in rows.items()}, **_likelihood(answers)},
        intervals={name: bootstrap.mean_interval(values, seed) for name, values in rows.items()},
        headline="rougeL",
        percent=False,
        claim=("has a ROUGE-L of", "one of"),
        row_parts=[(value, 1.0) for value in rows["rougeL"]],
        titles=TITLES,
        lower_is_better=LOWER_IS_BETTER,
        details={"notes": ["ROUGE: F1 of rouge_score, mean of rows, without stemming."]},
        row_losses=[1 - value for value in rows["rougeL"]],
        row_correct=None,
    )


def chrf_rows(truth: Sequence[str], predicted: Sequence[str]) -> list[float]:
    """SacreBLEU's chrF of every row, 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()
    return [float(chrf.sentence_score(got, [want]).score) for want, got in zip(truth, predicted, strict=True)]


def bleu_and_chrf(truth: Sequence[str], predicted: Sequence[str], code: str) -> tuple[dict[str, float], list[str]]:
    """Corpus BLEU and chrF, 0 to 100, and their signatures; ``code`` is that of the target's language."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    tokenizer = BLEU_TOKENIZERS.get(re.split(r"[_\-]", code.strip("_").lower())[0], "13a")
    scores, signatures = {}, []
    for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
        scores[name] = float(metric.corpus_score(list(predicted), [list(truth)]).score)
        signatures.append(f"{TITLES[name]}: sacreBLEU {metric.get_signature()}.")
    return scores, signatures


def evaluate_translations(truth: Sequence[str], answers: Sequence[Answer], code: str, seed: int) -> Evaluation:
    """Score answers ``{"translation", …}`` against true translations into the language ``code``."""
    predicted = [answer["translation"] for answer in answers]
    corpus, signatures = bleu_and_chrf(truth, predicted, code)
    rows = chrf_rows(truth, predicted)
    return Evaluation(
        main=("chrf_rows", "chrf", "bleu"),
        metrics={"chrf_rows": sum(rows) / len(rows), **corpus, **_likelihood(answers)},
        intervals={"chrf_rows": bootstrap.mean_interval(rows, seed)},
        headline="chrf_rows",
        percent=False,
        claim=("has a mean chrF of", "one of"),
        row_parts=[(value, 1.0) for value in rows],
        titles=TITLES,
        lower_is_better=LOWER_IS_BETTER,
        details={"notes": signatures},
        row_losses=[100 - value for value in rows],
        row_correct=None,
    )


def _likelihood(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Loss, perplexity and token accuracy of the references; None of answers that no language model gave."""
    if not all("tokens" in answer for answer in answers):
        return dict.fromkeys(LIKELIHOOD)
    found: dict[str, float | None] = {**total(answers)}
    return found
