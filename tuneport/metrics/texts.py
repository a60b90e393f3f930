"""Scores of written texts against reference texts: ROUGE, BLEU and chrF, beside the references' own likelihood."""

from __future__ import annotations

import re
import typing as t
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tuneport.metrics import perplexity
from tuneport.metrics.metric import Headline, Metric, Sums, mean, parts_of_mean, sums_of_mean
from tuneport.metrics.scores import Evaluation, evaluated

if t.TYPE_CHECKING:
    import numpy as np

Answer = dict[str, t.Any]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
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


@dataclass(frozen=True, kw_only=True)
class WrittenRows:
    """Texts that a model wrote beside the true ones; ``code`` is that of the language they are in, for BLEU's words."""

    truth: Sequence[str]
    predicted: Sequence[str]
    code: str = ""
    likelihood: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, places: np.ndarray) -> t.Self:
        truth, predicted = ([texts[i] for i in places] for texts in (self.truth, self.predicted))
        likelihood = None if self.likelihood is None else self.likelihood[places]
        return type(self)(truth=truth, predicted=predicted, code=self.code, likelihood=likelihood)

    @cached_property
    def rouge(self) -> dict[str, np.ndarray]:
        """F1 of each ROUGE, 0 to 1, (rows,)."""
        import numpy as np
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE), tokenizer=Words())
        scores = [scorer.score(want, got) for want, got in zip(self.truth, self.predicted, strict=True)]
        return {name: np.array([score[name].fmeasure for score in scores], dtype=float) for name in ROUGE}

    @cached_property
    def bleu(self) -> NgramCounts:
        tokenizer = BLEU_TOKENIZERS.get(re.split(r"[_\-]", self.code.strip("_").lower())[0], "13a")
        return NgramCounts.of(_bleu(tokenize=tokenizer), self.truth, self.predicted)

    @cached_property
    def chrf(self) -> NgramCounts:
        return NgramCounts.of(_chrf(), self.truth, self.predicted)

    @cached_property
    def chrf_of_rows(self) -> np.ndarray:
        """SacreBLEU's chrF of every row, 0 to 100, (rows,)."""
        return scores(_chrf(), self.chrf.rows)


@dataclass(frozen=True, kw_only=True)
class NgramCounts:
    """What a metric of sacreBLEU counts in each row, (rows, k), and the signature that says how.

    The metric is a function of the sums: sacreBLEU's own significance tests use the same two functions of it.
    """

    rows: np.ndarray
    signature: str

    @classmethod
    def of(cls, metric: t.Any, truth: Sequence[str], predicted: Sequence[str]) -> t.Self:
        import numpy as np

        rows = np.array(metric._extract_corpus_statistics(list(predicted), [list(truth)]))
        return cls(rows=rows, signature=str(metric.get_signature()))


def _bleu(**settings: t.Any) -> t.Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(**settings)


def _chrf() -> t.Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def scores(metric: t.Any, sums: np.ndarray) -> np.ndarray:
    """A sacreBLEU metric's scores (resamples,) of sums (resamples, k) of `NgramCounts.rows`."""
    import numpy as np

    return np.array([metric._compute_score_from_stats(row).score for row in sums.astype(int).tolist()], dtype=float)


def _rouge(name: str, title: str, **more: t.Any) -> Metric[WrittenRows]:
    values = _rouge_of_rows(name)
    return Metric(
        name=name, title=title, compute=mean(values), sums=sums_of_mean(values), chooses_checkpoint=True, **more
    )


def _rouge_of_rows(name: str) -> Callable[[WrittenRows], np.ndarray]:
    return lambda rows: rows.rouge[name]


def _of_ngrams(
    name: str,
    title: str,
    counts: Callable[[WrittenRows], NgramCounts],
    metric: Callable[[], t.Any],
    *,
    main: int,
) -> Metric[WrittenRows]:
    """The metric of sacreBLEU that is a function of such counts, summed over the rows."""

    def distinct(rows: WrittenRows) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        return counts(rows).rows, np.ones(len(rows), dtype=int)

    return Metric(
        name=name,
        title=title,
        compute=lambda rows: float(scores(metric(), counts(rows).rows.sum(axis=0, keepdims=True))[0]),
        sums=Sums(distinct=distinct, value=lambda sums: scores(metric(), sums)),
        chooses_checkpoint=True,
        main=main,
    )


def _chrf_of_rows(rows: WrittenRows) -> np.ndarray:
    return rows.chrf_of_rows


# F1 of rouge_score, mean of rows, without stemming.
SUMMARY_METRICS: tuple[Metric[WrittenRows], ...] = (
    _rouge("rouge1", "ROUGE-1", main=2),
    _rouge("rouge2", "ROUGE-2", main=3),
    _rouge(
        "rougeL",
        "ROUGE-L",
        main=1,
        headline=Headline(parts=parts_of_mean(_rouge_of_rows("rougeL")), claim=("has a ROUGE-L of", "one of")),
    ),
    _rouge("rougeLsum", "ROUGE-L, by lines"),
    *perplexity.SECONDARY_METRICS,
)
TRANSLATION_METRICS: tuple[Metric[WrittenRows], ...] = (
    Metric(
        name="chrf_rows",
        title="chrF, mean of rows",
        compute=mean(_chrf_of_rows),
        sums=sums_of_mean(_chrf_of_rows),
        main=1,
        headline=Headline(parts=parts_of_mean(_chrf_of_rows), claim=("has a mean chrF of", "one of")),
    ),
    _of_ngrams("bleu", "BLEU", lambda rows: rows.bleu, _bleu, main=3),
    _of_ngrams("chrf", "chrF", lambda rows: rows.chrf, _chrf, main=2),
    *perplexity.SECONDARY_METRICS,
)


def evaluate_summaries(truth: Sequence[str], answers: Sequence[Answer], seed: int) -> Evaluation:
    """Score answers ``{"summary", …}`` against true summaries."""
    predicted, likelihood = [answer["summary"] for answer in answers], perplexity.likelihood_of(answers)
    rows = WrittenRows(truth=truth, predicted=predicted, likelihood=likelihood)
    return evaluated(
        SUMMARY_METRICS,
        rows,
        seed,
        row_losses=(1 - rows.rouge["rougeL"]).tolist(),
        row_correct=None,
        notes=["ROUGE: F1 of rouge_score, mean of rows, without stemming."],
    )


def evaluate_translations(truth: Sequence[str], answers: Sequence[Answer], code: str, seed: int) -> Evaluation:
    """Score answers ``{"translation", …}`` against true translations into the language ``code``."""
    predicted, likelihood = [answer["translation"] for answer in answers], perplexity.likelihood_of(answers)
    rows = WrittenRows(truth=truth, predicted=predicted, code=code, likelihood=likelihood)
    return evaluated(
        TRANSLATION_METRICS,
        rows,
        seed,
        row_losses=(100 - rows.chrf_of_rows).tolist(),
        row_correct=None,
        notes=[
            f"BLEU: sacreBLEU {rows.bleu.signature}.",
            f"chrF: sacreBLEU {rows.chrf.signature}.",
        ],
    )
