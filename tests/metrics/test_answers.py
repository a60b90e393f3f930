"""Each metric of written answers is its library's, or ten lines of counting."""

import json
import re
import string
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuneport import tasks
from tuneport.errors import UserError
from tuneport.evaluation.comparison import Comparison
from tuneport.metrics import answers, own
from tuneport.metrics.metric import Undefined

TRUTH = ["The cat sat.", "#### 1,234", '{"name": "Ann"}', "red dog", "-3.5"]
SAID = ["the  CAT sat", "so it is 1234.00", '```json\n{"name": 3}\n```', "I'm sorry, but I cannot say", ""]


def rows(**values: Any) -> answers.AnsweredRows:
    return answers.AnsweredRows(**{"truth": TRUTH, "predicted": SAID, "total": len(TRUTH), **values})


def score(name: str, given: answers.AnsweredRows) -> float:
    return next(metric for metric in answers.METRICS if metric.name == name).compute(given)


def squad_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def test_exact_match_looks_past_what_it_is_told_to() -> None:
    assert score("exact_match", rows()) == 0
    assert score("exact_match", rows(normalization="case", truth=["The cat sat", *TRUTH[1:]])) == 1 / 5
    wanted = [squad_words(want) == squad_words(got) for want, got in zip(TRUTH, SAID, strict=True)]
    assert score("exact_match", rows(normalization="squad")) == sum(wanted) / 5 == 1 / 5


def test_f1_is_that_of_the_words_in_both() -> None:
    found = []
    for want, got in zip(map(squad_words, TRUTH), map(squad_words, SAID), strict=True):
        both = sum(min(want.count(word), got.count(word)) for word in {*want})
        found.append(2 * both / (len(want) + len(got)))
    assert score("token_f1", rows()) == pytest.approx(sum(found) / 5)


def test_rouge_bleu_and_chrf_are_those_of_their_libraries() -> None:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        scorer = RougeScorer([name])
        wanted = [scorer.score(want, got)[name].fmeasure for want, got in zip(TRUTH, SAID, strict=True)]
        assert score(name, rows()) == pytest.approx(sum(wanted) / 5)
    assert score("bleu", rows()) == pytest.approx(sacrebleu.corpus_bleu(SAID, [TRUTH]).score)
    assert score("chrf", rows()) == pytest.approx(sacrebleu.corpus_chrf(SAID, [TRUTH]).score)
    each = [sacrebleu.sentence_chrf(got, [want]).score for want, got in zip(TRUTH, SAID, strict=True)]
    assert score("chrf_rows", rows()) == pytest.approx(sum(each) / 5)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 1,234", 1234),
        ("it costs $1,234.50.", 1234.5),
        ("5-3", 3),
        ("x = -3", -3),
        ("between 3 and −4", -4),
        ("1e3", 1000),
        ("version 2.", 2),
        ("12,34", 34),
        ("none", None),
        (".5", 0.5),
        ("it is -.5", -0.5),
        ("about...5", 5),
        ("3-5", 5),
        ("v1.2.3", 3),
        ("1,234.5", 1234.5),
        ("12.", 12),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert answers.last_number(text) == number


def test_numbers_are_right_within_the_tolerance_and_rows_without_one_do_not_count() -> None:
    assert score("numeric_match", rows()) == 1 / 2
    given = rows(truth=["3.14", "two"], predicted=["about 3.1", "2"])
    assert score("numeric_match", given) == 0
    assert score("numeric_match", rows(truth=["3.14"], predicted=["3.1"], tolerance=0.05)) == 1
    with pytest.raises(Undefined, match="no row has what it is about"):
        score("numeric_match", rows(truth=["two"], predicted=["2"]))


def test_json_is_valid_and_fits_the_schema() -> None:
    assert score("json_valid", rows()) == 1 / 5
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert score("json_schema", rows(schema=json.dumps(schema))) == 0
    assert score("json_schema", rows(schema=json.dumps(schema), predicted=TRUTH)) == 1 / 5
    assert score("json_valid", rows(predicted=["NaN", "1", "[" * 100_000, '"a"', "{}x"])) == 2 / 5
    with pytest.raises(Undefined, match="answer_schema is not set"):
        score("json_schema", rows())
    elsewhere = {"properties": {"name": {"$ref": "http://127.0.0.1:9/schema"}}}
    with pytest.raises(UserError, match=r"refers to 'http://127\.0\.0\.1:9/schema', which is not in it"):
        score("json_schema", rows(schema=json.dumps(elsewhere)))


def test_a_schema_that_does_not_end_for_an_answer_is_told_and_an_answer_of_many_brackets_does_not_fit() -> None:
    for looks in ({"const": "x"}, {"type": "string"}):
        schema = {"$schema": "http://json-schema.org/draft-07/schema#", "if": looks, "then": {"allOf": [{"$ref": "#"}]}}
        answers.check_schema(json.dumps(schema))
        given = rows(schema=json.dumps(schema), predicted=["1", "{}", "2", "3", '"x"'])
        with pytest.raises(UserError, match=r"answer_schema: .* the reference to '#' leads back to itself without end"):
            score("json_schema", given)
    tree = json.dumps({"type": "array", "items": {"$ref": "#"}})
    deep = ["[" * depth + "]" * depth for depth in (1, 20, 500)]
    assert score("json_schema", rows(schema=tree, predicted=[*deep, "[[], [[]], []]", "[1]"])) == 3 / 5
    with pytest.raises(UserError, match="answer_schema: cannot be held against an answer: unterminated character set"):
        score("json_schema", rows(schema='{"pattern": "["}', predicted=['"a"'] * 5))


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>',
        'Sure. {"type": "function", "function": {"name": "add", "arguments": "{\\"b\\": [2], \\"a\\": 1}"}}',
        '[{"name": "add", "parameters": {"a": 1, "b": [2]}}]',
        '{"tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}]}',
    ],
)
def test_a_call_is_found_in_whatever_shape_it_is_written(text: str) -> None:
    assert answers.calls_in(text) == [("add", {"a": 1, "b": [2]})]


def test_a_call_is_right_with_its_name_and_arguments_and_rows_without_one_do_not_count() -> None:
    calls = [[("add", {"a": 1})], [("add", {"a": 1})], [("add", {"a": 1})], [], [("add", {"a": 1})]]
    said = [json.dumps({"name": name, "arguments": {"a": a}}) for name, a in (("add", 1), ("add", 2), ("sub", 1))]
    assert score("tool_call", rows(calls=calls, predicted=[*said, "no call", "no call"])) == 1 / 4


def test_refusals_empty_answers_and_lengths_are_counted() -> None:
    assert score("refusal", rows()) == score("empty_answer", rows()) == 1 / 5
    assert score("answer_words", rows()) == sum(len(text.split()) for text in SAID) / 5
    assert score("length_difference", rows()) == (0 + 2 + 2 + 4 + 1) / 5


def answered(texts: list[str], nats: float) -> list[dict[str, Any]]:
    return [{"text": text, "negative_log_likelihood": nats, "tokens": 2, "tokens_right": 1} for text in texts]


def options(metrics: str, **values: Any) -> SimpleNamespace:
    defaults = {"answer_normalization": "none", "numeric_tolerance": 0.0, "answer_schema": None, "metrics_file": None}
    return SimpleNamespace(**{**defaults, "metrics": metrics, "seed": 0, **values})


def test_a_better_but_wordier_model_is_judged_right_by_what_it_writes_and_wrong_by_perplexity() -> None:
    task, test = (
        tasks.load("text_generation"),
        [{"text": "6 x 7?", "ground_truth": "42", "row_id": str(i)} for i in range(40)],
    )
    tuned, base = answered(["let me see: it is 42"] * 40, 9.0), answered(["41"] * 40, 1.0)

    def verdict(metrics: str) -> tuple[str, str]:
        pair = [task.evaluate_with(test, given, {}, options(metrics)) for given in (tuned, base)]
        found = Comparison(tuned=pair[0], base=pair[1], base_has_head=True, baselines={}, seed=0)
        return pair[0].headline.name, found.verdict.level

    assert verdict("") == ("loss", "bad")
    assert verdict("numeric_match,exact_match") == ("numeric_match", "good")
    assert verdict('["token_f1"]') == ("token_f1", "good")


def test_the_named_metrics_lead_and_their_gains_are_paired() -> None:
    task, test = (
        tasks.load("text_generation"),
        [{"text": "a", "ground_truth": str(i), "row_id": str(i)} for i in range(40)],
    )
    tuned = answered([str(i) for i in range(30)] + ["x"] * 10, 1.0)
    base = answered([str(i) for i in range(20)] + [""] * 20, 1.0)
    pair = [task.evaluate_with(test, given, {}, options("exact_match,empty_answer")) for given in (tuned, base)]
    found = Comparison(tuned=pair[0], base=pair[1], base_has_head=True, baselines={}, seed=0)
    assert [metric.name for metric in pair[0].main] == ["exact_match", "empty_answer"]
    assert [metric.name for metric in pair[0].records][2:] == ["loss", "perplexity", "token_accuracy"]
    document = found.as_json()
    assert document["gains"]["base model"]["value"] == pytest.approx(0.25)
    gain = document["paired_gains"]["empty_answer"]["base model"]
    assert gain["value"] == pytest.approx(-0.5) and gain["interval"][0] < -0.5 < gain["interval"][1] < 0
    assert document["better_than_base"] is True
    low, high = document["tuned"]["intervals"]["exact_match"]
    assert low < 0.75 < high


@pytest.mark.parametrize("metric", ["bleu", "chrf", "mine.py:one_number"])
def test_a_metric_of_all_rows_alone_leaves_exact_match_to_compare_by_where_no_likelihood_is_known(
    metric: str, file: Path
) -> None:
    task, test = tasks.load("text_generation"), [{"text": "a", "ground_truth": "b", "row_id": str(i)} for i in range(4)]
    chosen = options(metric, metrics_file=SimpleNamespace(path=file))
    found = task.evaluate_with(test, [{"text": text} for text in ("b", "c", "d", "e")], {}, chosen)
    assert found.headline.name == "exact_match" and found.metrics["exact_match"] == 0.25
    assert found.metrics[metric.rpartition(":")[2]] is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": "exact"}, "metrics: 'exact' is not one of them.*Did you mean 'exact_match'"),
        ({"metrics": '["a", 1]'}, "expected a list of names"),
        ({"metrics": "mine.py:f"}, "metrics_file is not set. Set metrics_file to the path of mine.py"),
        ({"metrics": "", "answer_schema": "{"}, "expected a JSON schema"),
        (
            {"metrics": "", "answer_schema": '{"$ref": "http://127.0.0.1:9/schema"}'},
            "http://127.0.0.1:9/schema.*expected",
        ),
        ({"metrics": "", "answer_schema": '{"type": "thing"}'}, "answer_schema=.*thing.*expected a JSON schema"),
        ({"metrics": "", "answer_schema": '{"$ref": "#"}'}, "the reference to '#' leads back to itself without end"),
        ({"metrics": "", "answer_schema": '{"not": ' * 100_000 + "{}" + "}" * 100_000}, "nested too deep"),
        ({"metrics": "exact_match,json_schema"}, "answer_schema: is not set, and json_schema holds answers against it"),
        ({"metrics": "", "metric_for_best_model": "json_schema"}, "answer_schema: is not set.*Set it, or leave"),
    ],
)
def test_what_is_not_a_metric_or_a_schema_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tasks.load("text_generation").check_options(options(**values))


OWN = """
def politeness(predictions, references, rows):
    return ["please" in text for text in predictions]

def several(predictions, references, rows):
    return {"rows": len(rows), "shorter": [len(a) < len(b) for a, b in zip(predictions, references)]}

def fails(predictions, references, rows):
    return [1 / len(text) for text in predictions]

def too_few(predictions, references, rows):
    return [1.0]

def one_number(predictions, references, rows):
    return 0.5

def nothing(predictions, references, rows):
    pass

def nothing_named(predictions, references, rows):
    return {"a": 1, "b": None}

fails.greater_is_better = False
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_own_functions_are_scored_by_row_or_as_one_number(file: Path) -> None:
    task = tasks.load("text_generation")
    test = [{"text": "a", "ground_truth": "b c", "row_id": str(i)} for i in range(10)]
    given = answered(["please"] * 4 + ["no"] * 6, 1.0)
    chosen = options("mine.py:several, mine.py:politeness", metrics_file=SimpleNamespace(path=file))
    found = task.evaluate_with(test, given, {}, chosen)
    assert {name: found.metrics[name] for name in ("rows", "shorter", "politeness")} == {
        "rows": 10,
        "shorter": 0.6,
        "politeness": 0.4,
    }
    assert found.headline.name == "shorter" and "rows" not in found.intervals
    low, high = found.intervals["politeness"]
    assert low < 0.4 < high


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("mine.py:fails", r"'fails' failed at row 2, whose answer is ''?: ZeroDivisionError.*\(line 9 of .*mine.py\)"),
        ("mine.py:too_few", "'too_few' returned .* expected a number, or 2 of them, one a row"),
        ("mine.py:nothing", "'nothing' returned None for nothing; expected a number, or 2 of them, one a row"),
        ("mine.py:nothing_named", "'nothing_named' returned None for b; expected a number"),
        ("mine.py:polite", "has no function 'polite'; it has: .*Did you mean 'politeness'"),
    ],
)
def test_what_goes_wrong_in_an_own_function_is_told_with_the_row(file: Path, metric: str, message: str) -> None:
    given = rows(truth=["a", "b"], predicted=["x", ""], raw=[{"row_id": "row 1"}, {"row_id": "row 2"}], total=2)
    with pytest.raises(UserError, match=message):
        _ = [own.scored(entry, given) for entry in own.load(metric, file) if isinstance(entry, own.OwnMetric)]


def test_a_file_of_metrics_may_have_dataclasses_with_annotations_as_text(tmp_path: Path) -> None:
    path = tmp_path / "typed.py"
    typed = "from dataclasses import dataclass\n@dataclass\nclass Found:\n    value: float\n"
    path.write_text(f"from __future__ import annotations\n{typed}def f(p, r, rows):\n    return Found(0.5).value\n")
    (found,) = own.load("typed.py:f", path)
    assert isinstance(found, own.OwnMetric) and found(rows())["f"] == 0.5
    path.write_text("1 / 0")
    with pytest.raises(UserError, match=r"typed.py: cannot be loaded \(ZeroDivisionError"):
        own.load("typed.py:f", path)
    assert "tuneport_own_metrics" not in sys.modules


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("exact_match", {"answer_normalization": "case"}),
        ("numeric_match", {"numeric_tolerance": 0.5}),
        ("json_schema", {"answer_schema": '{"type": "string"}'}),
    ],
)
def test_a_training_scores_by_its_own_parameters(metric: str, values: dict[str, Any]) -> None:
    """As an evaluation does; the defaults score otherwise."""
    task, test = tasks.load("text_generation"), [{"text": "a", "ground_truth": '"YES 1"', "row_id": "1"}]
    given = answered(['"yes  1.4"' if metric == "numeric_match" else '"yes  1"'], 1.0)
    plain, changed = (task.score(test, given, {}, options("", **v)).get(metric) for v in ({}, values))
    assert plain in (0.0, None) and changed == 1.0
    found = task.evaluate_with(test, given, {}, options(metric, **values))
    assert found.metrics[metric] == 1.0


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one, which brings two metrics, one of them not where it says."""
    info = tmp_path / "polite_words-1.5.dist-info"
    info.mkdir()
    declared = "[tuneport.metrics]\npoliteness = polite_words:politeness\nlost = polite_words:lost\n"
    (info / "entry_points.txt").write_text(declared)
    (tmp_path / "polite_words.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("distribution")
def test_another_distribution_brings_metrics_by_their_names() -> None:
    task, test = tasks.load("text_generation"), [{"text": "a", "ground_truth": "b", "row_id": str(i)} for i in range(4)]
    chosen = options("politeness,exact_match")
    task.check_options(chosen, files=True)
    found = task.evaluate_with(test, answered(["please", "b", "no", "no"], 1.0), {}, chosen)
    assert found.headline.name == "politeness" and found.metrics["politeness"] == found.metrics["exact_match"] == 0.25
    assert own.origins("politeness,exact_match") == {"metrics": "politeness of polite-words 1.5"}
    assert own.origins("exact_match") == {}
    with pytest.raises(UserError, match=r"polite-words 1.5: its entry point lost .* cannot be loaded"):
        task.check_options(options("lost"), files=True)


def test_rows_without_an_answer_count_for_nothing() -> None:
    given = rows(truth=["a"], predicted=["a"], places=[2], total=4)
    metric = answers.METRICS[0]
    assert metric.parts is not None
    assert np.array_equal(metric.parts(given), [[0, 0], [0, 0], [1, 1], [0, 0]])
