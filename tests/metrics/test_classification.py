"""The scores hold against a recount, against sklearn and against answers whose scores are known beforehand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tuneport.metrics import bootstrap
from tuneport.metrics.classification import METRICS, ClassifiedRows, baselines, evaluate, rank_auc

LABELS = ["desc", "hum", "loc"]


def answer(probabilities, labels=LABELS, multi_label=False):
    by_label = dict(zip(labels, probabilities, strict=True))
    if multi_label:
        chosen = [k for k, v in by_label.items() if v >= 0.5]
        return {"label": chosen, "score": [by_label[k] for k in chosen], "scores": by_label}
    best = max(by_label, key=by_label.get)
    return {"label": best, "score": by_label[best], "scores": by_label}


def random_classes(rows, n_labels, seed, skill=0.7):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_labels, rows)
    return truth, np.where(rng.random(rows) < skill, truth, rng.integers(0, n_labels, rows))


def random_cells(rows, n_labels, seed):
    rng = np.random.default_rng(seed)
    truth = (rng.random((rows, n_labels)) < 0.3).astype(int)
    return truth, np.where(rng.random((rows, n_labels)) < 0.8, truth, 1 - truth)


def classified(truth, predicted, n_labels):
    """Rows of given classes; a class that is predicted has a probability of 1."""
    multi_label = truth.ndim == 2
    cells = predicted if multi_label else np.eye(n_labels)[predicted]
    return ClassifiedRows(
        truth=truth, predicted=predicted, probabilities=cells.astype(float), labels=[str(i) for i in range(n_labels)]
    )


def counted(rows):
    """The metrics that are made of counts of classes."""
    return [m for m in METRICS if m.applies(rows) and m.name not in ("auc", "log_loss")]


def by_sums(metric, rows):
    """The metric's value by its sums."""
    features, counts = metric.sums.distinct(rows)
    return metric.sums.value((counts @ features)[None])[0]


def test_a_perfect_predictor_scores_one():
    truth = LABELS * 5
    found = evaluate(truth, [answer([float(label == t) for label in LABELS]) for t in truth], LABELS, False, 0)
    for name in ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "mcc", "auc"):
        assert found.metrics[name] == pytest.approx(1.0), name
    assert found.metrics["log_loss"] == pytest.approx(0, abs=1e-9)
    assert found.intervals["accuracy"] == (1.0, 1.0)
    assert all(found.row_correct)
    assert found.details["confusion_matrix"] == [[5, 0, 0], [0, 5, 0], [0, 0, 5]]


def test_an_inverted_predictor_scores_zero_and_is_worst_where_it_is_surest():
    labels = ["no", "yes"]
    answers = [answer([0.1, 0.9], labels), answer([0.9, 0.1], labels), answer([0.01, 0.99], labels)]
    found = evaluate(["no", "yes", "no"], answers, labels, False, 0)
    assert found.metrics["accuracy"] == 0
    assert found.metrics["mcc"] == -1
    assert found.metrics["auc"] == 0
    assert found.metrics["log_loss"] > 2
    assert int(np.argmax(found.row_losses)) == 2
    assert not any(found.row_correct)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_vectorised_statistics_equal_sklearn_on_every_random_draw(multi_label):
    for seed in range(20):
        truth, predicted = random_cells(40, 4, seed) if multi_label else random_classes(40, 4, seed)
        drawn = np.random.default_rng(seed).integers(0, 40, 40)
        rows = classified(truth, predicted, 4).take(drawn)
        assert len(counted(rows)) == (10 if multi_label else 8)
        for metric in counted(rows):
            assert by_sums(metric, rows) == pytest.approx(metric.compute(rows), abs=1e-12), (seed, metric.name)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_vectorised_statistics_equal_sklearn_where_a_class_is_absent(multi_label):
    truth, predicted = np.zeros(6, int), np.array([0, 0, 1, 0, 0, 0])
    if multi_label:
        truth, predicted = np.eye(3, dtype=int)[truth] * 0, np.eye(3, dtype=int)[predicted]
    rows = classified(truth, predicted, 3)
    for metric in counted(rows):
        assert by_sums(metric, rows) == pytest.approx(metric.compute(rows)), metric.name


def test_intervals_agree_with_scipys_bootstrap_and_hold_the_metric():
    from scipy.stats import bootstrap as scipy_bootstrap

    truth, predicted = random_classes(300, 3, 1)
    rows = classified(truth, predicted, 3)
    drawn = bootstrap.resampled(counted(rows), rows, seed=0)
    found = {name: bootstrap.interval(values) for name, values in drawn.items()}
    right = (truth == predicted).astype(float)
    reference = scipy_bootstrap((right,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert found["accuracy"] == pytest.approx(tuple(reference), abs=0.012)
    for metric in counted(rows):
        low, high = found[metric.name]
        assert low < metric.compute(rows) < high, metric.name


def test_the_seed_decides_the_intervals():
    truth, predicted = random_classes(200, 3, 1)
    rows = classified(truth, predicted, 3)

    def drawn(seed):
        return {k: values.tolist() for k, values in bootstrap.resampled(METRICS[:2], rows, seed).items()}

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_more_rows_than_fit_one_block_give_the_same_kind_of_interval(monkeypatch):
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 500)
    answers = [answer(p.tolist()) for p in probabilities]

    def found():
        return evaluate([LABELS[i % 3] for i in range(500)], answers, LABELS, False, 0).intervals

    whole = found()
    monkeypatch.setattr(bootstrap, "CELLS", 10_000)
    again = found()
    assert whole.keys() == again.keys() >= {"auc", "log_loss", "accuracy"}
    assert all(again[name] == pytest.approx(whole[name]) for name in whole)


def test_log_loss_and_auc_equal_sklearn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet([1, 1, 1], 60)
    found = evaluate([LABELS[i] for i in truth], [answer(p.tolist()) for p in probabilities], LABELS, False, 0)
    assert found.metrics["log_loss"] == pytest.approx(log_loss(truth, probabilities, labels=[0, 1, 2]))
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    low, high = found.intervals["log_loss"]
    assert low < found.metrics["log_loss"] < high


def test_auc_is_left_out_with_a_reason_where_the_split_lacks_a_class():
    found = evaluate(["desc", "hum"], [answer([0.8, 0.1, 0.1]), answer([0.1, 0.8, 0.1])], LABELS, False, 0)
    assert found.metrics["auc"] is None
    assert "'loc'" in " ".join(found.details["notes"])
    assert [row["auc"] for row in found.details["per_class"]] == [1.0, 1.0, None]
    assert [row["support"] for row in found.details["per_class"]] == [1, 1, 0]


def test_scores_that_are_not_numbers_are_reported_and_rank_worst():
    nan = float("nan")
    found = evaluate(["hum", "hum"], [answer([0.6, 0.3, 0.1]), answer([nan, nan, nan])], LABELS, False, 0)
    assert found.metrics["log_loss"] is None and found.metrics["auc"] is None
    assert "log_loss" not in found.intervals
    assert "diverged" in " ".join(found.details["notes"])
    assert found.row_losses[1] > found.row_losses[0]


@pytest.mark.parametrize("decimals", [8, 1])
def test_auc_of_ranks_equals_sklearn_on_every_draw_also_where_scores_are_equal(decimals):
    rng = np.random.default_rng(decimals)
    truth, scores = rng.integers(0, 2, 50), rng.random(50).round(decimals)
    drawn = np.stack([np.bincount(rng.integers(0, 50, 50), minlength=50) for _ in range(20)], axis=1)
    expected = [roc_auc_score(truth, scores, sample_weight=weights) for weights in drawn.T]
    assert rank_auc(truth, scores, drawn) == pytest.approx(expected)
    nobody = np.where(truth[:, None] == 1, 0, drawn)
    assert np.isnan(rank_auc(truth, scores, nobody)).all(), "no positive row is drawn"


@pytest.mark.parametrize("multi_label", [False, True])
def test_auc_has_the_interval_that_sklearn_gives_on_rows_drawn_again(multi_label):
    rng = np.random.default_rng(3)
    truth, _ = random_cells(120, 3, 0) if multi_label else random_classes(120, 3, 0)
    cells = truth if multi_label else np.eye(3, dtype=int)[truth]
    probabilities = np.clip(0.3 * cells + 0.7 * rng.random((120, 3)), 0, 1)
    labels = [[LABELS[j] for j in np.flatnonzero(row)] if multi_label else LABELS[row.argmax()] for row in cells]
    found = evaluate(labels, [answer(p.tolist(), LABELS, multi_label) for p in probabilities], LABELS, multi_label, 0)
    values = []
    for _ in range(300):
        drawn = rng.integers(0, 120, 120)
        values.append(np.mean([roc_auc_score(cells[drawn, j], probabilities[drawn, j]) for j in range(3)]))
    assert found.intervals["auc"] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.015)
    low, high = found.intervals["auc"]
    assert low < found.metrics["auc"] < high


def test_a_class_that_a_resample_lacks_is_left_out_of_its_auc():
    truth = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])  # four of ten resamples lack the last class
    probabilities = np.eye(3)[truth] * 0.5 + np.random.default_rng(0).dirichlet([1, 1, 1], 10) * 0.5
    found = evaluate([LABELS[i] for i in truth], [answer(p.tolist()) for p in probabilities], LABELS, False, 0)
    low, high = found.intervals["auc"]
    assert 0 < low <= found.metrics["auc"] <= high <= 1
    rows = ClassifiedRows(truth=truth, predicted=truth, probabilities=probabilities, labels=LABELS)
    (auc,) = (metric for metric in METRICS if metric.name == "auc")
    weights = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 2, 0], [10, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    without, undefined = auc.weighted.value(rows, weights)
    expected = [roc_auc_score(truth == i, probabilities[:, i], sample_weight=weights[0]) for i in (0, 1)]
    assert without == pytest.approx(sum(expected) / 2)
    assert np.isnan(undefined), "all drawn rows are of one class"


def test_every_metric_with_a_value_has_an_interval():
    for multi_label in (False, True):
        truth, _ = random_cells(80, 3, 0) if multi_label else random_classes(80, 3, 0)
        probabilities = np.random.default_rng(0).random((80, 3))
        labels = (
            [[LABELS[j] for j in np.flatnonzero(row)] for row in truth] if multi_label else [LABELS[i] for i in truth]
        )
        answers = [answer(p.tolist(), LABELS, multi_label) for p in probabilities]
        found = evaluate(labels, answers, LABELS, multi_label, 0)
        assert found.intervals.keys() == found.metrics.keys() and None not in found.metrics.values()


def test_training_and_evaluation_read_the_same_out_of_logits():
    logits = np.array([[2.0, -1.0, 0.5], [-800.0, 800.0, 0.0]])
    single = ClassifiedRows.of_logits(logits, np.array([0, 1]), LABELS, False)
    assert single.predicted.tolist() == [0, 1]
    assert single.probabilities[0] == pytest.approx(np.exp(logits[0]) / np.exp(logits[0]).sum())
    assert single.probabilities[1] == pytest.approx([0, 1, 0])
    multi = ClassifiedRows.of_logits(logits, np.array([[1.0, 0, 1], [0, 1, 0]]), LABELS, True)
    assert multi.predicted.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert multi.probabilities[0] == pytest.approx(1 / (1 + np.exp(-logits[0])))
    assert multi.probabilities[1] == pytest.approx([0, 1, 0.5])


def test_multi_label_counts_a_row_as_right_only_if_all_its_labels_are():
    truth = [["desc", "hum"], ["loc"], []]
    answers = [answer(p, multi_label=True) for p in ([0.9, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.1, 0.1])]
    found = evaluate(truth, answers, LABELS, True, 0)
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["hamming_loss"] == pytest.approx(1 / 9)
    assert found.metrics["f1_micro"] == pytest.approx(6 / 7)
    assert found.row_correct == [True, False, True]
    assert found.details["confusion_matrix"] is None
    assert [row["recall"] for row in found.details["per_class"]] == [1.0, 1.0, 1.0]


def test_the_difference_of_two_predictors_is_paired():
    base, tuned = ([(float(i < right), 1.0) for i in range(100)] for right in (50, 60))
    gain, (low, high) = bootstrap.difference(base, tuned, 0)
    assert gain == pytest.approx(0.1)
    assert 0.03 < low < 0.1 < high < 0.18  # unpaired it would be about -0.04 to 0.24


TRAIN = [
    ("who wrote it", "hum"),
    ("who sang it", "hum"),
    ("where is it", "loc"),
    ("where is home", "loc"),
    ("who ran", "hum"),
]


def test_baselines_answer_in_the_predictors_shape_and_learn_from_words():
    found = baselines([x for x, _ in TRAIN], [y for _, y in TRAIN], ["where now", "who now"], LABELS, False)
    assert [a["label"] for a in found["majority class"]] == ["hum", "hum"]
    assert found["majority class"][0]["score"] == pytest.approx(0.6)
    learnt = found["TF-IDF + logistic regression"]
    assert [a["label"] for a in learnt] == ["loc", "hum"]
    assert learnt[0]["scores"].keys() == set(LABELS) and learnt[0]["scores"]["desc"] == 0
    assert sum(learnt[0]["scores"].values()) == pytest.approx(1)


def test_multi_label_baselines_give_lists_of_labels():
    labels = [["hum", "desc"], ["hum"], ["loc"], ["loc"], ["hum"]]
    found = baselines([x for x, _ in TRAIN], labels, ["where now", "who now"], LABELS, True)
    assert [a["label"] for a in found["majority class"]] == [["hum"], ["hum"]]
    assert [a["label"] for a in found["TF-IDF + logistic regression"]] == [["loc"], ["hum"]]


def test_a_text_of_punctuation_alone_is_no_obstacle_to_the_baselines():
    found = baselines(["?", "!", "?", "!"], ["hum", "loc", "hum", "loc"], ["?", "!"], LABELS, False)
    assert [a["label"] for a in found["TF-IDF + logistic regression"]] == ["hum", "loc"]


def test_a_baseline_fitted_on_a_part_of_the_rows_says_so(monkeypatch):
    from tuneport.metrics import classification

    monkeypatch.setattr(classification, "BASELINE_ROWS", 4)
    part = classification.spread(TRAIN)
    assert part == [TRAIN[0], TRAIN[1], TRAIN[2], TRAIN[4]]
    found = baselines([x for x, _ in part], [y for _, y in part], ["where now"], LABELS, False, of_all=False)
    assert list(found) == ["majority class", "TF-IDF + logistic regression (4 rows)"]
