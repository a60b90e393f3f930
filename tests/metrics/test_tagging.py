"""The scores equal seqeval's and sklearn's own, the vectorised ones too, and the intervals hold them."""

import numpy as np
import pytest
from seqeval import metrics as seqeval
from sklearn import metrics as sklearn

from tuneport.metrics.tagging import METRICS, TaggedRows, baselines, evaluate

IOB = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
PLAIN = ["ADJ", "NOUN", "VERB"]


def sentences(labels, seed, rows=60, skill=0.8):
    rng = np.random.default_rng(seed)
    truth = [[str(tag) for tag in rng.choice(labels, rng.integers(1, 9))] for _ in range(rows)]
    said = [[tag if rng.random() < skill else str(rng.choice(labels)) for tag in tags] for tags in truth]
    return truth, said


def answers(tags):
    return [{"tags": row, "scores": [0.75] * len(row), "entities": []} for row in tags]


def test_a_perfect_tagger_scores_one():
    for labels, iob in ((IOB, True), (PLAIN, False)):
        truth, _ = sentences(labels, 0)
        found = evaluate(truth, answers(truth), labels, iob, 0)
        assert all(value == pytest.approx(1) for value in found.metrics.values())
        assert all(found.row_correct) and not any(found.row_losses)


@pytest.mark.parametrize("seed", range(8))
def test_entity_scores_are_seqevals_and_word_scores_sklearns(seed):
    truth, said = sentences(IOB, seed)
    found = evaluate(truth, answers(said), IOB, True, 0).metrics
    assert found["f1"] == pytest.approx(seqeval.f1_score(truth, said))
    assert found["precision"] == pytest.approx(seqeval.precision_score(truth, said))
    assert found["recall"] == pytest.approx(seqeval.recall_score(truth, said))
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, said))
    truth, said = sentences(PLAIN, seed)
    found = evaluate(truth, answers(said), PLAIN, False, 0).metrics
    flat, flat_said = ([tag for row in rows for tag in row] for rows in (truth, said))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(flat, flat_said))
    assert found["f1"] == pytest.approx(sklearn.f1_score(flat, flat_said, average="macro"))
    assert found["f1_weighted"] == pytest.approx(sklearn.f1_score(flat, flat_said, average="weighted"))


@pytest.mark.parametrize(("labels", "iob"), [(IOB, True), (PLAIN, False)])
def test_the_vectorised_statistics_equal_the_scores_and_the_intervals_hold_them(labels, iob):
    truth, said = sentences(labels, 3)
    rows = TaggedRows(truth=truth, predicted=said, labels=labels, iob=iob)
    sums = rows.counts.sum(axis=0, keepdims=True)
    slow = {metric.name: metric.compute(rows) for metric in METRICS if metric.applies(rows)}
    for metric in METRICS:
        if metric.applies(rows):
            assert metric.sums.value(sums)[0] == pytest.approx(slow[metric.name]), metric.name
    found = evaluate(truth, answers(said), labels, iob, 0)
    assert found.intervals.keys() == slow.keys() >= {metric.name for metric in found.main}
    assert all(low < slow[name] < high for name, (low, high) in found.intervals.items())


@pytest.mark.parametrize(("labels", "iob"), [(IOB, True), (PLAIN, False)])
def test_the_headline_is_the_ratio_of_the_sums_of_the_rows_parts(labels, iob):
    truth, said = sentences(labels, 5)
    found = evaluate(truth, answers(said), labels, iob, 0)
    above, below = (sum(part) for part in zip(*found.row_parts, strict=True))
    assert above / below == pytest.approx(found.metrics[found.headline.name])


def test_scores_by_entity_type_and_the_confusion_of_tags():
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    found = evaluate(truth, answers([["B-PER", "O", "O", "B-LOC"]]), IOB, True, 0)
    by_type = {row["label"]: (row["precision"], row["recall"], row["support"]) for row in found.details["per_class"]}
    assert by_type == {"LOC": (1.0, 1.0, 1), "PER": (0.0, 0.0, 1)}
    assert found.details["confusion_matrix"][IOB.index("I-PER")][IOB.index("O")] == 1
    assert found.row_losses == [0.75] and found.row_correct == [False]


def test_the_average_over_types_is_seqevals_where_a_draw_lacks_a_type():
    truth, said = [["B-PER", "O"], ["B-PER", "O"], ["B-LOC", "O"]], [["B-PER", "O"], ["O", "B-PER"], ["B-LOC", "O"]]
    rows = TaggedRows(truth=truth, predicted=said, labels=IOB, iob=True)
    (macro,) = (metric for metric in METRICS if metric.name == "f1_macro")
    drawn = rows.take(np.array([0, 1, 1]))  # no LOC
    by_sums = macro.sums.value(drawn.counts.sum(axis=0, keepdims=True))[0]
    assert by_sums == pytest.approx(seqeval.f1_score(drawn.truth, drawn.predicted, average="macro"))
    assert by_sums == pytest.approx(1 / 3)  # with LOC's 0 it would be a half of that


def test_no_entity_at_all_leaves_the_scores_of_entities_out_with_a_reason():
    found = evaluate([["O", "O"]], answers([["O", "O"]]), IOB, True, 0)
    assert found.metrics["f1"] is None and found.metrics["accuracy"] == 1
    assert any("f1" in note and "no word of the split is in an entity" in note for note in found.details["notes"])


def test_the_baselines_count_words():
    train = [{"tokens": ["a", "dog", "runs"], "tags": ["DET", "NOUN", "VERB"]}, {"tokens": ["dog"], "tags": ["NOUN"]}]
    found = baselines(train, [{"tokens": ["runs", "cat"]}])
    assert found["commonest tag"][0]["tags"] == ["NOUN", "NOUN"]
    assert found["commonest tag of the word"][0] == {"tags": ["VERB", "NOUN"], "scores": [1.0, 0.5], "entities": []}
