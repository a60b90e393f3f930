"""The scores hold against a recount, against sklearn and against answers whose scores are known beforehand."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tuneport.metrics import bootstrap
from tuneport.metrics.classification import _patterns, baselines, evaluate, scores, statistics_of_sums

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
        features, counts = _patterns(truth[drawn], predicted[drawn], 4)
        fast = statistics_of_sums(multi_label)((counts @ features)[None])
        for name, value in scores(truth[drawn], predicted[drawn], 4).items():
            assert fast[name][0] == pytest.approx(value, abs=1e-12), (seed, name)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_vectorised_statistics_equal_sklearn_where_a_class_is_absent(multi_label):
    truth, predicted = np.zeros(6, int), np.array([0, 0, 1, 0, 0, 0])
    if multi_label:
        truth, predicted = np.eye(3, dtype=int)[truth] * 0, np.eye(3, dtype=int)[predicted]
    features, counts = _patterns(truth, predicted, 3)
    fast = statistics_of_sums(multi_label)((counts @ features)[None])
    for name, value in scores(truth, predicted, 3).items():
        assert fast[name][0] == pytest.approx(value), name


def test_intervals_agree_with_scipys_bootstrap_and_hold_the_metric():
    from scipy.stats import bootstrap as scipy_bootstrap

    truth, predicted = random_classes(300, 3, 1)
    found = bootstrap.intervals(*_patterns(truth, predicted, 3), statistics_of_sums(False), seed=0)
    right = (truth == predicted).astype(float)
    reference = scipy_bootstrap((right,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert found["accuracy"] == pytest.approx(tuple(reference), abs=0.012)
    metrics = scores(truth, predicted, 3)
    for name, (low, high) in found.items():
        assert low < metrics[name] < high, name


def test_the_seed_decides_the_intervals():
    truth, predicted = random_classes(200, 3, 1)
    args = (*_patterns(truth, predicted, 3), statistics_of_sums(False))
    assert bootstrap.intervals(*args, seed=3) == bootstrap.intervals(*args, seed=3)
    assert bootstrap.intervals(*args, seed=3) != bootstrap.intervals(*args, seed=4)


def test_more_rows_than_fit_one_block_give_the_same_kind_of_interval(monkeypatch):
    values = np.random.default_rng(0).random(500).tolist()
    whole = bootstrap.mean_interval(values, 0)
    monkeypatch.setattr(bootstrap, "CELLS", 10_000)
    assert bootstrap.mean_interval(values, 0) == pytest.approx(whole)


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
    found = baselines([x for x, _ in TRAIN], [y for _, y in TRAIN], ["where now"], LABELS, False)
    assert list(found) == ["majority class", "TF-IDF + logistic regression (4 rows)"]
