"""Scores of written texts equal those of the fields' own tools."""

from typing import Any

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tuneport.metrics.texts import Words, bleu_and_chrf, chrf_rows, evaluate_summaries, evaluate_translations, rouge

TRUTH = ["the cat sat on the mat, again", "A dog's life!\nThe end", "3.5 points_up"]
SAID = ["the cat sat on a mat", "dog life\nthe very end", ""]


def likelihood(nll: float, tokens: int, right: int) -> dict[str, Any]:
    return {"negative_log_likelihood": nll, "tokens": tokens, "tokens_right": right}


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
        found, notes = bleu_and_chrf(truth, said, code)
        assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [truth], tokenize="zh").score)
        assert "tok:zh" in notes[0]
    assert bleu_and_chrf(truth, said, "jpn_Jpan")[0]["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(said, [truth], tokenize="char").score
    )
    assert "tok:13a" in bleu_and_chrf(TRUTH, SAID, "__de__")[1][0]


def test_summaries_are_scored_by_rouge_l_and_by_the_likelihood_of_the_references() -> None:
    parts = [likelihood(2.0, 4, 3), likelihood(6.0, 2, 0), likelihood(4.0, 6, 6)]
    answers = [{"summary": text, **part} for text, part in zip(SAID, parts, strict=True)]
    found = evaluate_summaries(TRUTH, answers, 0)
    assert found.metrics["loss"] == pytest.approx(1.0) and found.metrics["token_accuracy"] == pytest.approx(0.75)
    assert found.metrics["perplexity"] == pytest.approx(2.718281828)
    values = [value for value, _ in found.row_parts]
    assert found.metrics["rougeL"] == pytest.approx(sum(values) / 3) and values[2] == 0
    assert max(range(3), key=lambda i: found.row_losses[i]) == 2 and found.row_correct is None
    assert set(found.main) <= found.metrics.keys() and found.lower_is_better <= found.metrics.keys()


def test_answers_of_no_language_model_have_no_loss() -> None:
    found = evaluate_translations(TRUTH, [{"translation": text} for text in SAID], "en", 0)
    assert found.metrics["loss"] is None and found.metrics["bleu"] is not None
    assert [value for value, _ in found.row_parts] == pytest.approx(chrf_rows(TRUTH, SAID))
    assert found.metrics["chrf_rows"] == pytest.approx(sum(chrf_rows(TRUTH, SAID)) / 3)
