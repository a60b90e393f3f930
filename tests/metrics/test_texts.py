"""Scores of written texts equal those of the fields' own tools."""

from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tuneport.metrics.metric import training_scores
from tuneport.metrics.scores import Evaluation
from tuneport.metrics.texts import (
    SUMMARY_METRICS,
    TRANSLATION_METRICS,
    Words,
    WrittenRows,
    evaluate_summaries,
    evaluate_translations,
)

TRUTH = ["the cat sat on the mat, again", "A dog's life!\nThe end", "3.5 points_up"]
SAID = ["the cat sat on a mat", "dog life\nthe very end", ""]


def likelihood(nll: float, tokens: int, right: int) -> dict[str, Any]:
    return {"negative_log_likelihood": nll, "tokens": tokens, "tokens_right": right}


def rouge(truth: list[str], said: list[str]) -> dict[str, float]:
    return training_scores(SUMMARY_METRICS, WrittenRows(truth=truth, predicted=said))


def translated(truth: list[str], said: list[str], code: str) -> Evaluation:
    return evaluate_translations(truth, [{"translation": text} for text in said], code, 0)


def test_rouge_on_ascii_is_that_of_rouge_scores_own_words() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    rows = [scorer.score(want, got) for want, got in zip(TRUTH, SAID, strict=True)]
    found = rouge(TRUTH, SAID)
    assert found == pytest.approx({name: sum(row[name].fmeasure for row in rows) / 3 for name in rows[0]})
    assert 0 < found["rouge2"] < found["rouge1"] < 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Die Katze, größer – schöner!", ["die", "katze", "größer", "schöner"]),
        ("Η γάτα κοιμάται.", ["η", "γάτα", "κοιμάται"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("猫は走る 2回", ["猫", "は", "走", "る", "2", "回"]),
        ("", []),
    ],
)
def test_words_of_every_script_count(text: str, words: list[str]) -> None:
    assert Words().tokenize(text) == words


def test_a_greek_summary_is_scored() -> None:
    assert rouge(["η γάτα κοιμάται"], ["η γάτα τρέχει"])["rouge1"] == pytest.approx(2 / 3)


def test_bleu_has_the_tokenizer_of_languages_without_spaces_and_the_note_says_so() -> None:
    truth, said = ["我喜欢红色的猫和狗。"], ["我喜欢蓝色的猫和狗。"]
    for code in ("zh_CN", "zho_Hans", "zh"):
        found = translated(truth, said, code)
        assert found.metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [truth], tokenize="zh").score)
        assert "tok:zh" in found.details["notes"][0]
    assert translated(truth, said, "jpn_Jpan").metrics["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(said, [truth], tokenize="char").score
    )
    assert "tok:13a" in translated(TRUTH, SAID, "__de__").details["notes"][0]


def test_bleu_and_chrf_are_sacrebleus_also_on_rows_drawn_again() -> None:
    truth = [f"the {word} cat sat on the mat, again and again" for word in ("red", "old", "big", "wet")] + TRUTH
    said = [f"the {word} cat sat on a mat again" for word in ("red", "new", "big", "dry")] + SAID
    rows = WrittenRows(truth=truth, predicted=said, code="en")
    drawn = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 3, 0, 0, 2, 1, 1], [0, 0, 0, 0, 0, 0, 7]])
    scores = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}
    for metric in TRANSLATION_METRICS:
        if metric.name in scores:
            assert metric.sums is not None
            features, _ = metric.sums.distinct(rows)
            again = [[np.repeat(texts, weights).tolist() for texts in (said, truth)] for weights in drawn]
            expected = [scores[metric.name](hypotheses, [references]).score for hypotheses, references in again]
            assert metric.sums.value(drawn @ features) == pytest.approx(expected), metric.name
            assert metric.compute(rows) == pytest.approx(expected[0])


def test_every_metric_of_written_texts_has_an_interval() -> None:
    parts = [likelihood(2.0, 4, 3), likelihood(6.0, 2, 0), likelihood(4.0, 6, 6)]
    summaries = [{"summary": text, **part} for text, part in zip(SAID, parts, strict=True)]
    translations = [{"translation": text, **part} for text, part in zip(SAID, parts, strict=True)]
    for found in (evaluate_summaries(TRUTH, summaries, 0), evaluate_translations(TRUTH, translations, "en", 0)):
        assert found.intervals.keys() == found.metrics.keys()
        for name, (low, high) in found.intervals.items():
            value = found.metrics[name]
            assert value is not None and low <= value <= high, name


def test_summaries_are_scored_by_rouge_l_and_by_the_likelihood_of_the_references() -> None:
    parts = [likelihood(2.0, 4, 3), likelihood(6.0, 2, 0), likelihood(4.0, 6, 6)]
    answers = [{"summary": text, **part} for text, part in zip(SAID, parts, strict=True)]
    found = evaluate_summaries(TRUTH, answers, 0)
    assert found.metrics["loss"] == pytest.approx(1.0) and found.metrics["token_accuracy"] == pytest.approx(0.75)
    assert found.metrics["perplexity"] == pytest.approx(2.718281828)
    values = [value for value, _ in found.row_parts]
    assert found.metrics["rougeL"] == pytest.approx(sum(values) / 3) and values[2] == 0
    assert max(range(3), key=lambda i: found.row_losses[i]) == 2 and found.row_correct is None
    assert [metric.name for metric in found.records] == list(found.metrics)
    assert {metric.name for metric in found.records if not metric.greater_is_better} == {"loss", "perplexity"}


def test_answers_of_no_language_model_have_no_loss() -> None:
    found = evaluate_translations(TRUTH, [{"translation": text} for text in SAID], "en", 0)
    assert found.metrics["loss"] is None and found.metrics["bleu"] is not None
    assert "loss" not in found.intervals
    assert "loss, perplexity and token_accuracy cannot be computed" in found.details["notes"][-1]
    rows = [sacrebleu.sentence_chrf(said, [truth]).score for truth, said in zip(TRUTH, SAID, strict=True)]
    assert [value for value, _ in found.row_parts] == pytest.approx(rows)
    assert found.metrics["chrf_rows"] == pytest.approx(sum(rows) / 3)
