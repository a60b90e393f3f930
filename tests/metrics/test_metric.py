"""What follows from a record: choices, directions, order, words, and an interval whatever the metric is."""

import json
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest
import torch

from tuneport import tasks
from tuneport.metrics import bootstrap, perplexity
from tuneport.metrics.metric import (
    Headline,
    Metric,
    Undefined,
    choices,
    directions,
    in_order,
    mean,
    parts_of_mean,
    sums_of_mean,
    training_scores,
)
from tuneport.metrics.scores import Evaluation, evaluated


@dataclass(frozen=True)
class Numbers:
    """Rows of one number each."""

    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, places: np.ndarray) -> Self:
        return type(self)(self.values[places])


def values(rows: Numbers) -> np.ndarray:
    return rows.values


def undefined(rows: Numbers) -> float:
    raise Undefined("there is no such thing")


def spread(rows: Numbers) -> float:
    if len(set(rows.values.tolist())) < 2:
        raise Undefined("all rows are equal")
    return float(rows.values.std())


MEAN: Metric[Numbers] = Metric(
    name="mean",
    title="Mean",
    compute=mean(values),
    sums=sums_of_mean(values),
    chooses_checkpoint=True,
    main=1,
    headline=Headline(parts=parts_of_mean(values), claim=("has", "has")),
)
SPREAD: Metric[Numbers] = Metric(
    name="spread", title="Spread", compute=spread, chooses_checkpoint=True, greater_is_better=False
)
ROWS = Numbers(np.random.default_rng(0).normal(5, 1, 300))


def scored(rows: Numbers, *metrics: Metric[Any]) -> Evaluation:
    return evaluated([MEAN, *metrics], rows, 0, row_losses=[0.0] * len(rows), row_correct=None)


def test_the_records_say_what_may_choose_a_checkpoint_and_which_way() -> None:
    reported: Metric[Numbers] = Metric(name="reported", title="Reported only", compute=spread)
    assert choices([MEAN, reported, SPREAD]) == ("loss", "mean", "spread")
    assert directions([MEAN, reported, SPREAD]) == {"loss": False, "mean": True, "spread": False}


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_offers_the_metrics_that_its_records_offer_and_has_one_headline(name: str) -> None:
    task = tasks.load(name)
    port = task.params["finetune"].ports()["metric_for_best_model"]
    assert port.choices == tuple(task.metrics) and port.default == "loss"
    assert task.metrics["loss"] is False
    assert any(metric.headline is not None for metric in task.scored_by)


def test_main_metrics_lead_in_their_order_and_those_that_do_not_apply_are_left_out() -> None:
    other: Metric[Numbers] = Metric(name="other", title="Other", compute=spread, applies=lambda rows: False)
    second: Metric[Numbers] = Metric(name="second", title="Second", compute=spread, main=2)
    found = in_order([SPREAD, other, second, MEAN], ROWS)
    assert [metric.name for metric in found] == ["mean", "second", "spread"]


def test_a_function_of_rows_alone_has_the_interval_of_its_value_on_rows_drawn_again() -> None:
    alone: Metric[Numbers] = Metric(name="alone", title="Alone", compute=mean(values))
    found = scored(ROWS, alone)
    assert found.metrics["alone"] == found.metrics["mean"]
    error = ROWS.values.std() / math.sqrt(len(ROWS))
    expected = (ROWS.values.mean() - 1.96 * error, ROWS.values.mean() + 1.96 * error)
    assert found.intervals["alone"] == pytest.approx(expected, abs=0.25 * error)
    assert found.intervals["mean"] == pytest.approx(expected, abs=0.25 * error)


def test_the_calls_of_a_function_are_bounded_by_the_rows_and_the_draws_by_the_seed() -> None:
    calls: list[int] = []

    def counting(rows: Numbers) -> float:
        calls.append(len(rows))
        return float(rows.values[0])

    metric: Metric[Numbers] = Metric(name="counting", title="Counting", compute=counting)
    for rows, expected in ((10, bootstrap.RESAMPLES), (200_000, bootstrap.FEWEST_RESAMPLES)):
        calls.clear()
        drawn = bootstrap.resampled([metric], Numbers(np.arange(rows)), seed=1)["counting"]
        assert len(calls) == len(drawn) == expected and set(calls) == {rows}
    again = bootstrap.resampled([metric], Numbers(np.arange(10)), seed=1)["counting"]
    other = bootstrap.resampled([metric], Numbers(np.arange(10)), seed=2)["counting"]
    assert again.tolist() == bootstrap.resampled([metric], Numbers(np.arange(10)), seed=1)["counting"].tolist()
    assert again.tolist() != other.tolist()


def test_what_cannot_be_computed_is_null_in_valid_json_and_a_note_says_why() -> None:
    broken: Metric[Numbers] = Metric(name="broken", title="Broken", compute=undefined)
    gone: Metric[Numbers] = Metric(name="gone", title="Gone", compute=undefined)
    infinite: Metric[Numbers] = Metric(name="infinite", title="Infinite", compute=lambda rows: math.inf)
    found = scored(ROWS, broken, gone, infinite)
    assert json.loads(json.dumps(dict(found.metrics), allow_nan=False))["broken"] is None
    assert found.intervals.keys() == {"mean"}
    assert found.details["notes"] == [
        "broken and gone cannot be computed: there is no such thing.",
        "infinite cannot be computed: its value is not a finite number.",
    ]


def test_a_value_that_most_resamples_leave_undefined_has_no_interval_and_a_note_says_so() -> None:
    rare = scored(Numbers(np.array([0.0, 0.0, 1.0])), SPREAD)  # two thirds of the resamples have both values
    assert "spread" in rare.intervals and rare.details["notes"] == []
    flat: Metric[Numbers] = Metric(
        name="flat", title="Flat", compute=lambda rows: 1.0 if rows.values.tolist() == [0, 1, 2] else math.nan
    )
    found = scored(Numbers(np.arange(3.0)), flat)
    assert found.metrics["flat"] == 1 and "flat" not in found.intervals
    assert found.details["notes"] == ["flat: no interval, as most resamples of the rows leave it undefined."]


def test_in_training_an_undefined_metric_is_left_out() -> None:
    found = training_scores([MEAN, SPREAD], Numbers(np.ones(3)))
    assert found == {"mean": 1}


def test_an_infinite_perplexity_does_not_get_into_the_json() -> None:
    answers = [{"negative_log_likelihood": 4000.0, "tokens": 5, "tokens_right": 0}] * 3
    found = perplexity.evaluate(answers, 0)
    assert found.metrics["loss"] == 800 and found.metrics["perplexity"] is None
    assert found.details["notes"] == ["perplexity cannot be computed: its value is not a finite number."]


def test_token_losses_give_what_their_rows_give_and_padding_nothing() -> None:
    losses = np.full((2, 4, 2), -100.0, dtype=np.float32)
    losses[0, :2], losses[1, 1:4] = [[1.0, 1], [2.0, 0]], [[0.5, 1], [0.5, 1], [1.0, 0]]
    rows, nothing = (
        perplexity.LikelihoodRows(likelihood=perplexity.summed(torch.tensor(kept)).numpy())
        for kept in (losses, losses[:, :1] * 0 - 1)
    )
    assert rows.likelihood.tolist() == [[3.0, 2, 1], [2.0, 3, 2]]
    found = training_scores(perplexity.METRICS, rows)
    assert found == pytest.approx({"loss": 1.0, "perplexity": math.e, "token_accuracy": 0.6})
    assert all(math.isnan(value) for value in training_scores(perplexity.METRICS, nothing).values())


def test_a_share_is_given_in_percent_and_another_number_as_it_is() -> None:
    share: Metric[Numbers] = Metric(name="share", title="Share", compute=spread, percent=True)
    assert share.in_words(0.934, (0.9, 0.95)) == "93.4 % (90.0 to 95.0)"
    assert share.gain_in_words(0.1, (-0.02, 0.2)) == "+10.0 points (-2.0 to +20.0)"
    assert SPREAD.in_words(0.934, (0.9, 0.95)) == "0.934 (0.900 to 0.950)"
    assert SPREAD.in_words(None, None) == SPREAD.number(None) == "–"
    assert SPREAD.best([3.0, None, 2.0]) == 2 and share.best([3.0, None, 2.0]) == 3 and share.best([None]) is None
