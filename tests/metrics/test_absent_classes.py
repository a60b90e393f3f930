"""Averages are over the classes that are true or predicted in the rows, as sklearn's are; what is undefined is null."""

import json
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from tuneport.evaluation.comparison import Comparison
from tuneport.json_yaml import to_json
from tuneport.metrics import classification, tagging
from tuneport.metrics.bootstrap import resampled
from tuneport.metrics.metric import training_scores

LABELS = ["a", "b", "c", "d"]
AVERAGES = [f"{score}_macro" for score in ("f1", "precision", "recall")]


def of_classes(truth: list[int], predicted: list[int]) -> classification.ClassifiedRows:
    shares = np.full((len(truth), len(LABELS)), 0.1)
    shares[np.arange(len(truth)), predicted] = 0.7
    return classification.ClassifiedRows(
        truth=np.array(truth), predicted=np.array(predicted), probabilities=shares, labels=LABELS
    )


def answer(label: str) -> dict[str, Any]:
    return {"label": label, "score": 0.7, "scores": {other: 0.7 if other == label else 0.1 for other in LABELS}}


def test_a_perfect_classifier_is_perfect_where_classes_are_absent():
    truth = ["a", "a", "a", "b", "b"]
    found = classification.evaluate(truth, [answer(label) for label in truth], LABELS, False, 0)
    assert [found.metrics[name] for name in AVERAGES] == [1, 1, 1]
    assert all(found.intervals[name] == (1, 1) for name in AVERAGES)
    assert (
        "2 of 4 classes are neither true nor predicted in these rows, and averages over classes leave them out: "
        "'c', 'd'." in found.details["notes"]
    )
    absent = [entry for entry in found.details["per_class"] if entry["label"] in "cd"]
    assert [(e["precision"], e["recall"], e["f1"], e["support"]) for e in absent] == [(None, None, None, 0)] * 2


@pytest.mark.parametrize(
    ("truth", "predicted"),
    [([0, 0, 1, 1], [0, 0, 1, 2]), ([0, 0, 0], [0, 0, 0]), ([0, 1, 1, 3], [2, 2, 2, 2]), ([3, 2, 1, 0], [0, 1, 2, 3])],
)
def test_macro_averages_are_sklearns_defaults_also_in_training_and_in_resamples(truth, predicted):
    rows = of_classes(truth, predicted)
    trained = training_scores(classification.METRICS, rows)
    for metric in (m for m in classification.METRICS if m.name in AVERAGES):
        function = getattr(sklearn.metrics, f"{metric.name.removesuffix('_macro')}_score")
        wanted = function(truth, predicted, average="macro", zero_division=0)
        assert metric.compute(rows) == trained[metric.name] == pytest.approx(wanted)
        distinct, counts = metric.sums.distinct(rows)
        assert metric.sums.value((counts @ distinct)[None])[0] == pytest.approx(wanted)


def test_labels_that_no_row_has_are_left_out_with_several_labels_a_row():
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]])
    rows = classification.ClassifiedRows(
        truth=truth, predicted=truth, probabilities=np.abs(truth - 0.1), labels=["a", "b", "c"]
    )
    assert training_scores(classification.METRICS, rows)["f1_macro"] == 1
    nothing = classification.ClassifiedRows(
        truth=truth * 0, predicted=truth * 0, probabilities=truth * 0.1, labels=["a", "b", "c"]
    )
    assert "f1_macro" not in training_scores(classification.METRICS, nothing)


def test_a_perfect_tagger_is_perfect_where_tags_are_absent():
    truth = [["N", "V"], ["N", "N"]]
    answers = [{"tags": tags, "scores": [0.9] * 2} for tags in truth]
    found = tagging.evaluate(truth, answers, ["A", "N", "V"], False, 0)
    assert (found.metrics["f1"], found.metrics["precision"], found.metrics["recall"]) == (1, 1, 1)
    assert found.intervals["f1"] == (1, 1)
    assert any(note.startswith("1 of 3 tags are neither true nor predicted") for note in found.details["notes"])


def test_rows_without_entities_have_no_score_of_entities_and_no_gain():
    truth = [["O", "O"]] * 5
    answers = [{"tags": tags, "scores": [0.9] * 2} for tags in truth]
    found, base = (tagging.evaluate(truth, answers, ["O", "B-x"], True, 0) for _ in range(2))
    compared = Comparison(tuned=found, base=base, base_has_head=True, baselines={}, seed=0)
    written = json.loads(to_json(compared.as_json()), parse_constant=pytest.fail)
    assert written["tuned"]["metrics"]["f1"] is None and next(iter(written["gains"].values()))["value"] is None
    assert any("no word of the split is in an entity" in note for note in written["notes"])
    drawn = resampled([m for m in tagging.METRICS if m.name == "f1"], _rows(truth), 0)
    assert np.isnan(drawn["f1"]).all()


def _rows(truth: list[list[str]]) -> tagging.TaggedRows:
    return tagging.TaggedRows(truth=truth, predicted=truth, labels=["O", "B-x"], iob=True)
