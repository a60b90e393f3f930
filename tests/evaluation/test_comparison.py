"""The verdict says what the intervals allow it to say, and no more."""

import json
import math
from typing import Any

import pytest

from tuneport.evaluation.comparison import Comparison
from tuneport.metrics import bootstrap
from tuneport.metrics.metric import Headline, Metric
from tuneport.metrics.scores import Evaluation


def headline(name: str, **more: Any) -> Metric[Any]:
    """A record as an evaluation names it; nothing is computed by it here."""
    return Metric(
        name=name,
        title=name.capitalize(),
        compute=lambda rows: 0.0,
        main=1,
        headline=Headline(parts=lambda rows: rows, claim=("is right in", "in")),
        **more,
    )


ACCURACY = headline("accuracy", percent=True)
AUC: Metric[Any] = Metric(name="auc", title="AUC", compute=lambda rows: 0.0)


def found(right: int, of: int = 200) -> Evaluation:
    share = right / of
    return Evaluation(
        records=(ACCURACY, AUC),
        metrics={"accuracy": share, "auc": None},
        intervals={"accuracy": (share - 0.01, share + 0.01)},
        row_parts=[(float(i < right), 1.0) for i in range(of)],
        row_losses=[0.0] * of,
        row_correct=[i < right for i in range(of)],
    )


def compare(tuned: int, base: int, has_head: bool = True, **baselines: int) -> Comparison:
    others = {name: found(right) for name, right in baselines.items()}
    return Comparison(found(tuned), found(base), has_head, others, 0)


@pytest.mark.parametrize(
    ("comparison", "level", "headline"),
    [
        (compare(180, 100, words=140), "good", "Better than the base model and every trivial baseline"),
        (compare(180, 100, has_head=False), "good", "Better than the base model (untrained head)"),
        (compare(180, 100, words=180), "unclear", "Better than the base model, but not clearly better than words"),
        (compare(150, 100, luck=40, words=180), "bad", "Better than the base model, but worse than words"),
        (compare(100, 100, words=40), "unclear", "No clear difference from the base model"),
        (compare(60, 100, words=40), "bad", "Worse than the base model"),
    ],
)
def test_the_headline_follows_the_paired_intervals(comparison, level, headline):
    assert (comparison.verdict.level, comparison.verdict.headline) == (level, headline)


@pytest.mark.parametrize(
    ("baselines", "level", "headline"),
    [
        ({"words": 100}, "good", "Better than every trivial baseline"),
        ({"words": 100, "luck": 178}, "unclear", "Not clearly better than luck"),
        ({"words": 199}, "bad", "Worse than words"),
        ({}, "unclear", "Scored alone, beside no other model"),
    ],
)
def test_without_a_base_model_the_trivial_baselines_decide(baselines, level, headline):
    others = {name: found(right) for name, right in baselines.items()}
    alone = Comparison(found(180), None, False, others, 0)
    assert (alone.verdict.level, alone.verdict.headline) == (level, headline)
    assert alone.verdict.sentences[1] == "The base model was left out (evaluate_base_model=false)."
    assert list(alone.all) == ["tuned model", *baselines]


def test_the_gain_is_given_in_points_with_its_interval():
    gain = compare(180, 100).gains["base model"]
    assert gain.value == pytest.approx(0.4)
    assert gain.interval is not None and 0.3 < gain.interval[0] < 0.4 < gain.interval[1] < 0.5
    assert "+40.0 points (" in compare(180, 100).verdict.sentences[0]


def test_an_untrained_head_is_explained():
    assert any("random weights" in s for s in compare(180, 100, has_head=False).verdict.sentences)
    assert not any("random weights" in s for s in compare(180, 100).verdict.sentences)


def test_the_lines_for_the_terminal_are_aligned():
    lines = compare(180, 100, has_head=False, words=140).lines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["tuned", "model", "0.9000"]
    assert lines[3].split() == ["words", "0.7000"]


def test_json_holds_scores_intervals_and_gains():
    value = compare(180, 100, words=140).as_json()
    assert value["tuned"] == {"metrics": {"accuracy": 0.9, "auc": None}, "intervals": {"accuracy": [0.89, 0.91]}}
    assert value["base"]["metrics"]["accuracy"] == 0.5
    assert value["baselines"]["words"]["metrics"]["accuracy"] == 0.7
    assert value["gains"]["words"]["value"] == pytest.approx(0.2)
    assert value["main"] == ["accuracy"]


def test_a_metric_that_is_better_when_lower_turns_the_verdict_round():
    def loss(value: float) -> Evaluation:
        return Evaluation(
            records=(headline("loss", greater_is_better=False),),
            metrics={"loss": value},
            intervals={"loss": (value, value)},
            row_parts=[(value + i % 3 / 100, 1.0) for i in range(60)],
            row_losses=[0.0] * 60,
            row_correct=[False] * 60,
        )

    comparison = Comparison(loss(0.2), loss(0.9), True, {"guess": loss(0.1), "luck": loss(2.0)}, 0)
    assert comparison.gains["base model"].level == "good"
    assert comparison.verdict.headline == "Better than the base model, but worse than guess"


def test_a_gain_may_be_of_a_ratio_of_sums_over_rows():
    tuned, base = ([(float(hits), 4.0) for hits in row] for row in ([4, 3, 4, 2], [1, 3, 0, 2]))
    gain, (low, high) = bootstrap.difference(base, tuned, 0)
    assert gain == pytest.approx(13 / 16 - 6 / 16)
    assert low <= gain <= high


def test_a_headline_that_is_not_a_number_makes_no_verdict_and_no_invalid_json():
    def loss(value: float) -> Evaluation:
        finite = math.isfinite(value)
        return Evaluation(
            records=(headline("loss", greater_is_better=False),),
            metrics={"loss": value if finite else None},
            intervals={"loss": (value, value)} if finite else {},
            row_parts=[(value, 1.0)] * 20,
            row_losses=[0.0] * 20,
            row_correct=None,
        )

    comparison = Comparison(loss(math.nan), loss(0.9), True, {"guess": loss(0.5)}, 0)
    assert comparison.verdict.level == "unclear"
    assert comparison.verdict.headline == "No clear difference from the base model"
    assert "–" in comparison.verdict.sentences[0]
    assert json.loads(json.dumps(comparison.as_json(), allow_nan=False))["gains"]["base model"]["interval"] is None
