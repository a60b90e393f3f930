"""The stage scores base and tuned model side by side; every number can be counted again from its predictions."""

import json
import math
import re
import shutil
import socket
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoTokenizer

from steps.model_evaluation import ModelEvaluation
from steps.preprocess import Preprocess
from tuneport import tasks
from tuneport.artifacts import MANIFEST, Model, Report, verify, write_manifest
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute
from tuneport.step import Context
from tuneport.targets.kfp.views import numbers, render
from tuneport.tasks import with_task

TASK = "text_classification"
HISTORY = [
    {"loss": 1.2, "learning_rate": 1e-4, "epoch": 0.5, "step": 10},
    {"eval_loss": 1.0, "eval_accuracy": 0.4, "eval_f1_macro": 0.3, "eval_mcc": 0.1, "epoch": 1.0, "step": 20},
    {"loss": 0.8, "learning_rate": 5e-5, "epoch": 1.5, "step": 30},
    {"eval_loss": 0.9, "eval_accuracy": 0.6, "eval_f1_macro": 0.5, "eval_mcc": 0.4, "epoch": 2.0, "step": 40},
    {"train_runtime": 3.0, "train_loss": 1.0, "epoch": 2.0, "step": 40},
]


def as_model(folder):
    write_manifest(Model(folder), "by hand", "0", {}, {})
    return folder


def imported(tiny_model, folder):
    shutil.copytree(tiny_model, folder)
    return as_model(folder)


def prepare(folder, base, rows, write_jsonl, **params):
    train = write_jsonl(folder / "train.jsonl", rows)
    params = {"sentence1_key": "text", "label_key": "label", "test_split_ratio": 0.3} | params
    out = folder / "data"
    execute(
        with_task(Preprocess, TASK)(
            model_selector_output=base,
            preprocess_output=out,
            max_seq_length=32,
            **{"train_file_path": train, **params},
        )
    )
    return out


def tune(folder, base, data, seed=1, change=None):
    """A tuned folder as `finetune` leaves it: head, tokenizer, log; the head's weights are random."""
    info = Prepared(data).info
    torch.manual_seed(seed)
    model = tasks.load(TASK).load_model(base, info.meta)
    with torch.no_grad():
        model.classifier.weight.normal_(std=3.0)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, model_max_length=info.max_seq_length).save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY, "best_global_step": 40}))
    return as_model(folder)


def evaluate(folder, base, tuned, data, context=None, **params):
    step = with_task(ModelEvaluation, TASK)(
        model_selector_output=base,
        pytorch_model_folder=tuned,
        preprocess_output=data,
        evaluation_result=folder / "report",
        **({"per_device_eval_batch_size": 16} | params),
    )
    if context is not None:
        step.context = context
    execute(step)
    verify(Report(folder / "report"))
    metrics = json.loads((folder / "report" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "report" / "predictions.jsonl").read_text().splitlines()]
    return metrics, lines, (folder / "report" / "report.html").read_text("utf-8")


def views(kind):
    """What the stage's report is worth showing, by name, of one kind."""
    views = ModelEvaluation.ports()["evaluation_result"].views
    return {name: view for name, view in views.items() if view.kind == kind}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_model, questions, write_jsonl):
    folder = tmp_path_factory.mktemp("inputs")
    base = imported(tiny_model, folder / "base")
    data = prepare(folder, base, questions, write_jsonl)
    return base, tune(folder / "tuned", base, data), data


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, inputs):
    return evaluate(tmp_path_factory.mktemp("evaluated"), *inputs)


def test_the_metrics_equal_a_recount_from_the_predictions(evaluated, inputs):
    metrics, lines, _ = evaluated
    labels = Prepared(inputs[2]).info.meta["labels"]
    truth = [line["label"] for line in lines]
    for who, said in (
        ("tuned", [line["tuned"]["label"] for line in lines]),
        ("base", [line["base"]["label"] for line in lines]),
    ):
        found = metrics[who]["metrics"]
        assert found["accuracy"] == pytest.approx(accuracy_score(truth, said))
        assert found["f1_macro"] == pytest.approx(
            f1_score(truth, said, labels=labels, average="macro", zero_division=0)
        )
        assert found["mcc"] == pytest.approx(matthews_corrcoef(truth, said))
    of_truth = [-math.log(line["tuned"]["scores"][line["label"]]) for line in lines]
    assert metrics["tuned"]["metrics"]["log_loss"] == pytest.approx(sum(of_truth) / len(lines), rel=1e-4)
    assert [line["correct"] for line in lines] == [line["tuned"]["label"] == line["label"] for line in lines]
    low, high = metrics["tuned"]["intervals"]["accuracy"]
    assert low <= metrics["tuned"]["metrics"]["accuracy"] <= high


def test_every_test_row_is_answered_once_and_keeps_its_id(evaluated, inputs):
    _, lines, _ = evaluated
    rows = Prepared(inputs[2]).rows("test")
    assert [line["row_id"] for line in lines] == [row["row_id"] for row in rows]
    assert {line["row_id"]: line["sentence1"] for line in lines} == {row["row_id"]: row["sentence1"] for row in rows}


def test_the_tuned_answers_are_those_of_the_model_loaded_by_itself(evaluated, inputs):
    _, lines, _ = evaluated
    alone = tasks.load(TASK).predictor(str(inputs[1]))([{"sentence1": line["sentence1"]} for line in lines])
    assert [a["label"] for a in alone] == [line["tuned"]["label"] for line in lines]
    assert [a["score"] for a in alone] == pytest.approx([line["tuned"]["score"] for line in lines], abs=1e-5)


def test_trivial_baselines_stand_beside_the_models_unless_they_are_turned_off(evaluated, inputs, tmp_path):
    metrics, _, html = evaluated
    assert metrics["baselines"].keys() == {"majority class", "TF-IDF + logistic regression"}
    assert metrics["baselines"]["TF-IDF + logistic regression"]["metrics"]["accuracy"] > 0.8
    assert "TF-IDF + logistic regression" in html
    without, _, html = evaluate(tmp_path, *inputs, trivial_baselines=False)
    assert without["baselines"] == {}
    assert "TF-IDF" not in html


def test_a_file_s_values_hold_in_evaluation_alone(inputs, tmp_path):
    (tmp_path / "config.json").write_text('{"trivial_baselines": false, "per_device_eval_batch_size": 4}')
    metrics, _, _ = evaluate(tmp_path, *inputs, evaluation_config=tmp_path / "config.json")
    assert metrics["baselines"] == {}
    found = json.loads((tmp_path / "report" / MANIFEST).read_text())["parameters"]
    assert (found["trivial_baselines"], found["per_device_eval_batch_size"]) == (False, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"num_beam": 4}', "config.json: unknown parameter 'num_beam' for model_evaluation"),
        ('{"task_name": "translation"}', "unknown parameter 'task_name'"),
        ('{"seed": -1}', "config.json: seed=-1: not valid; expected a whole number >= 0"),
        (
            "[4]",
            "config.json: holds no JSON object; expected values of evaluate_base_model, .*seed",
        ),
        ("{", "config.json: is not valid JSON"),
    ],
)
def test_a_file_with_other_things_than_parameters_of_evaluation_is_refused(text, message, inputs, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, *inputs, evaluation_config=tmp_path / "config.json")
    assert not (tmp_path / "report").exists()


def test_the_rows_of_each_source_are_scored_by_themselves(tiny_model, questions, write_jsonl, tmp_path):
    base = imported(tiny_model, tmp_path / "base")
    files = [write_jsonl(tmp_path / f"{name}.jsonl", questions[i::3]) for i, name in enumerate("abc")]
    sources = [{"path": str(file), "weight": weight} for file, weight in zip(files, (2, 1, 1), strict=True)]
    data = prepare(tmp_path, base, questions, write_jsonl, train_file_path=sources)
    metrics, lines, html = evaluate(tmp_path, base, tune(tmp_path / "tuned", base, data), data)
    assert sum(found["rows"] for found in metrics["by_source"].values()) == len(lines) == metrics["test_rows"]
    for source, found in metrics["by_source"].items():
        own = [line for line in lines if line["row_id"].startswith(source)]
        assert len(own) == found["rows"]
        right = [line["correct"] for line in own]
        assert found["tuned"]["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
        assert "accuracy" in found["base"]["metrics"]
    assert "<h2>By source</h2>" in html and "Mixture of the train data" in html
    assert "a.jsonl: 50.00% of the rows (asked: 50.00%)" in html


def test_a_base_without_a_head_for_the_labels_is_called_that(evaluated):
    metrics, _, html = evaluated
    assert metrics["base_has_head"] is False
    assert "base model, untrained head" in html


def test_a_base_with_the_same_head_is_scored_as_it_is(inputs, tmp_path):
    _, tuned, data = inputs
    metrics, lines, html = evaluate(tmp_path, tuned, tuned, data)
    assert metrics["base_has_head"] is True
    assert "untrained head" not in html
    assert "No clear difference from the base model" in html
    assert all(line["base"]["label"] == line["tuned"]["label"] for line in lines)


def test_a_base_with_weights_of_another_size_is_scored_only_where_they_may_be_random(inputs, tmp_path):
    base = Path(shutil.copytree(inputs[0], tmp_path / "base"))
    held = load_file(base / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.weight"
    save_file(held | {name: held[name][:5].contiguous()}, base / "model.safetensors", {"format": "pt"})
    as_model(base)
    with pytest.raises(UserError, match=rf"{name} \(is \[5, 32\], .* with ignore_mismatched_sizes=true"):
        evaluate(tmp_path, base, *inputs[1:])
    metrics, _, _ = evaluate(tmp_path, base, *inputs[1:], ignore_mismatched_sizes=True)
    assert metrics["base"]["metrics"]["accuracy"] >= 0


def test_the_seed_decides_the_untrained_head_and_nothing_else_does(evaluated, inputs, tmp_path):
    metrics, lines, html = evaluated
    again = evaluate(tmp_path, *inputs)
    assert again == (metrics, lines, html)
    other, other_lines, _ = evaluate(tmp_path, *inputs, seed=7)
    assert [line["base"]["score"] for line in other_lines] != [line["base"]["score"] for line in lines]
    assert other["tuned"]["metrics"] == metrics["tuned"]["metrics"]


def test_the_report_shows_verdict_curves_lineage_data_and_parameters(evaluated, inputs):
    _, _, html = evaluated
    for part in (
        '<div class="verdict',
        "Confusion matrix",
        "Errors",
        "best checkpoint, step 40",
        "Sequence lengths",
        "By label",
    ):
        assert part in html, part
    digests = json.loads((inputs[2] / MANIFEST).read_text())["inputs"]
    assert all(digest in html for digest in digests.values())
    assert "max_dropped_fraction" in html and "per_device_eval_batch_size" in html


def test_the_report_needs_no_network_and_no_script_but_its_own(evaluated):
    _, _, html = evaluated
    addresses = set(re.findall(r"https?://[^\"'\s<>)]+", html))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, fetched by nobody
    own = (files("tuneport.evaluation") / "report.js").read_text("utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert scripts == [own] and "script-src 'sha256-" in html
    html = re.sub(r"<script( type=.application/json. id=.rows.)?>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:)|@import|\ssrc=|url\((?!#)", html)


def test_the_stage_opens_no_connection(inputs, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError(f"connects to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    evaluate(tmp_path, *inputs)


def test_markup_in_labels_and_texts_stays_text(tiny_model, questions, write_jsonl, tmp_path):
    names = {"colour": '<img src=x onerror="alert(1)">', "animal": "</script><b>&amp;", "number": "$x^2$ #010101"}
    rows = [
        {"text": f"<script>alert({i})</script> {q['text']}", "label": names[q["label"]]}
        for i, q in enumerate(questions)
    ]
    base = imported(tiny_model, tmp_path / "base")
    data = prepare(tmp_path, base, rows, write_jsonl)
    _, _, html = evaluate(tmp_path, base, tune(tmp_path / "tuned", base, data), data)
    embedded = re.findall(r"<script type=.application/json. id=.rows.>(.*?)</script>", html, re.DOTALL)
    assert len(embedded) == 1 and "<" not in embedded[0]
    html = re.sub(r"<script( type=.application/json. id=.rows.)?>.*?</script>", "", html, flags=re.DOTALL)
    assert "<script" not in html and "<img" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(" in html
    assert "&lt;img src=x onerror=" in html
    assert "&lt;/script&gt;&lt;b&gt;&amp;amp;" in html
    assert "$x^2$ #010101" in html  # neither typeset as a formula nor taken for a colour


def test_several_labels_a_row(tiny_model, questions, write_jsonl, tmp_path):
    rows = [{"text": q["text"], "label": [q["label"], *(["two"] if " and " in q["text"] else [])]} for q in questions]
    base = imported(tiny_model, tmp_path / "base")
    data = prepare(tmp_path, base, rows, write_jsonl, multi_label=True)
    metrics, lines, html = evaluate(tmp_path, base, tune(tmp_path / "tuned", base, data), data)
    right = [set(line["tuned"]["label"]) == set(line["label"]) for line in lines]
    assert metrics["tuned"]["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert {"f1_micro", "hamming_loss"} <= metrics["tuned"]["metrics"].keys()
    assert metrics["confusion_matrix"] is None and "Confusion matrix" not in html
    assert {row["label"] for row in metrics["per_class"]} == {"animal", "colour", "number", "two"}


def test_pairs_are_scored_on_both_texts(tiny_model, questions, write_jsonl, tmp_path):
    rows = [{"text": "is this about", "second": q["text"], "label": q["label"]} for q in questions]
    base = imported(tiny_model, tmp_path / "base")
    data = prepare(tmp_path, base, rows, write_jsonl, sentence2_key="second")
    metrics, lines, html = evaluate(tmp_path, base, tune(tmp_path / "tuned", base, data), data)
    assert len({line["tuned"]["score"] for line in lines}) > 1  # the first text is the same in all rows
    assert metrics["baselines"]["TF-IDF + logistic regression"]["metrics"]["accuracy"] > 0.8
    wrong = [line["sentence2"] for line in lines if not line["correct"]]
    shown = re.findall(r"<p>is this about</p><p>([^<]*)</p>", html)
    assert shown and len(shown) == min(20, len(wrong)) and set(shown) <= set(wrong)


def test_a_diverged_model_gives_valid_json_and_says_so(inputs, tmp_path):
    base, _, data = inputs
    tuned = tune(tmp_path / "tuned", base, data, change=lambda model: model.classifier.bias.data.fill_(float("nan")))
    metrics, lines, html = evaluate(tmp_path, base, tuned, data)
    assert metrics["tuned"]["metrics"]["log_loss"] is None
    assert "training diverged" in html
    assert lines[0]["tuned"]["score"] is None


def test_scores_and_report_are_added_to_the_run_that_trained_the_model(inputs, mlflow_store, tmp_path):
    from mlflow import MlflowClient

    base, tuned, data = inputs
    uri = mlflow_store(tmp_path)
    client = MlflowClient(uri)
    experiment = client.create_experiment("words", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment, run_name="finetune").info.run_id
    tracked = tmp_path / "tuned"
    shutil.copytree(tuned, tracked)
    (tracked / "tracking.json").write_text(json.dumps({"tracking_uri": uri, "run_id": run}))
    as_model(tracked)
    metrics, _, _ = evaluate(tmp_path, base, tracked, data, Context(tracking_uri=uri, experiment="words"))
    logged = client.get_run(run).data.metrics
    assert logged["test/accuracy"] == pytest.approx(metrics["tuned"]["metrics"]["accuracy"])
    assert logged["baseline/base_model/accuracy"] == pytest.approx(metrics["base"]["metrics"]["accuracy"])
    assert "baseline/tf_idf_logistic_regression/mcc" in logged
    assert client.get_run(run).data.tags["mlflow.note.content"].startswith("No clear difference from the base model")
    names = {f.path for f in client.list_artifacts(run, "evaluation")}
    files = ("metrics.json", "predictions.jsonl", "report.html", "row_scores.json")
    assert names == {f"evaluation/{n}" for n in files}
    scores = json.loads((tmp_path / "report" / "row_scores.json").read_text())
    assert (scores["metric"], len(scores["parts"])) == (metrics["headline"], metrics["test_rows"])
    assert len(client.search_runs([experiment])) == 1


def test_the_log_holds_the_scores_side_by_side_and_the_reports_final_path(inputs, tmp_path, caplog):
    caplog.set_level("INFO")
    metrics, _, _ = evaluate(tmp_path, *inputs)
    said = [r.getMessage() for r in caplog.records if r.name == "tuneport.model_evaluation"]
    (tuned,) = [line for line in said if line.startswith("tuned model  ")]
    (base,) = [line for line in said if line.startswith("base model, untrained head ")]
    assert f"{metrics['tuned']['metrics']['accuracy']:.4f}" in tuned
    assert len(tuned) == len(base)
    assert f"evaluation_result: {tmp_path / 'report'}" in said


def test_a_model_tuned_for_other_labels_is_refused(inputs, tiny_model, questions, write_jsonl, tmp_path):
    base, tuned, _ = inputs
    rows = [{"text": q["text"], "label": q["label"].upper()} for q in questions]
    data = prepare(tmp_path, base, rows, write_jsonl)
    with pytest.raises(UserError, match=r"tuned for the labels animal, colour, number.*ANIMAL, COLOUR, NUMBER"):
        evaluate(tmp_path, base, tuned, data)
    assert not (tmp_path / "report").exists()


def test_a_model_altered_by_one_byte_is_refused_and_nothing_is_left_behind(inputs, tmp_path):
    base, tuned, data = inputs
    altered = tmp_path / "tuned"
    shutil.copytree(tuned, altered)
    weights = bytearray((altered / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (altered / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors: was altered"):
        evaluate(tmp_path, base, altered, data)
    assert [p.name for p in tmp_path.iterdir()] == ["tuned"]


def test_a_model_without_a_training_log_still_gets_a_report(inputs, tmp_path):
    base, tuned, data = inputs
    bare = tmp_path / "tuned"
    shutil.copytree(tuned, bare, ignore=shutil.ignore_patterns("trainer_state.json", MANIFEST))
    as_model(bare)
    _, _, html = evaluate(tmp_path, base, bare, data)
    assert "best checkpoint" not in html and "Confusion matrix" in html


def learn(model, tokenizer, rows, labels):
    """Plain training, long enough that the tiny model knows the fixture's words."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = tokenizer([row["sentence1"] for row in rows], padding=True, return_tensors="pt")
    truth = torch.tensor([labels.index(row["label"]) for row in rows])
    for _ in range(60):
        loss = model(**batch, labels=truth).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_model_that_has_learnt_the_task_is_found_better_than_its_base(inputs, tmp_path):
    base, _, data = inputs
    prepared, tokenizer = Prepared(data), AutoTokenizer.from_pretrained(base)
    rows, labels = prepared.rows("train"), prepared.info.meta["labels"]
    tuned = tune(tmp_path / "tuned", base, data, change=lambda model: learn(model, tokenizer, rows, labels))
    metrics, _, html = evaluate(tmp_path, base, tuned, data, trivial_baselines=False)
    assert metrics["gains"]["base model, untrained head"]["interval"][0] > 0
    assert "Better than the base model (untrained head)" in html


def test_the_base_model_can_be_left_out(inputs, evaluated, tmp_path):
    with_base, all_lines, _ = evaluated
    metrics, lines, html = evaluate(tmp_path, *inputs, evaluate_base_model=False)
    assert metrics["base"] == {"metrics": {}, "intervals": {}} and metrics["base_has_head"] is None
    for name in ("tuned", "baselines"):
        assert metrics[name] == with_base[name]
    assert metrics["gains"].keys() == metrics["baselines"].keys()
    assert lines == [{name: value for name, value in line.items() if name != "base"} for line in all_lines]
    assert "The base model was left out (evaluate_base_model=false)." in html
    assert "untrained head" not in html and '<th class="text">Base model</th>' not in html
    assert {name: render(view, tmp_path / "report", tmp_path / name) for name, view in views("metrics").items()} == {
        "test_metrics": numbers(metrics["tuned"]["metrics"]),
        "base_model_test_metrics": {},
    }


EARLIER = "answers of an earlier evaluation"


def test_the_base_model_is_not_asked_again_for_another_tuned_model(inputs, evaluated, tmp_path, caplog):
    caplog.set_level("INFO")
    base, _, data = inputs
    first = evaluate(tmp_path, base, tune(tmp_path / "first", base, data, seed=7), data)
    assert EARLIER not in caplog.text
    second, lines, _ = evaluate(tmp_path, *inputs)
    assert EARLIER in caplog.text and "tuned model: 36 rows" in caplog.text
    assert (second, lines) == evaluated[:2]  # as into an empty place
    assert second["base"] == first[0]["base"] and second["tuned"] != first[0]["tuned"]


@pytest.mark.parametrize("change", ["parameter", "tokenizer", "answers", "half", "base"])
def test_answers_of_the_base_model_that_follow_from_something_else_or_are_harmed_are_not_used(
    change, inputs, evaluated, tmp_path, caplog
):
    base, tuned, data = inputs
    if change == "base":
        base = as_model(Path(shutil.copytree(tuned, tmp_path / "base")))
    if change == "tokenizer":
        tuned = Path(shutil.copytree(tuned, tmp_path / "tuned"))
        settings = json.loads((tuned / "tokenizer_config.json").read_text()) | {"model_max_length": 4}
        (tuned / "tokenizer_config.json").write_text(json.dumps(settings))
        as_model(tuned)
    evaluate(tmp_path, base, tuned, data)
    kept = tmp_path / "report" / "base_answers"
    if change == "answers":
        lines = (kept / "answers.jsonl").read_text().splitlines(keepends=True)
        (kept / "answers.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    if change == "half":
        (kept / "key.json").unlink()
    caplog.set_level("INFO")
    params = {"per_device_eval_batch_size": 8} if change == "parameter" else {}
    metrics, lines, _ = evaluate(tmp_path, *inputs, **params)
    assert EARLIER not in caplog.text
    assert metrics["base"]["metrics"] == pytest.approx(evaluated[0]["base"]["metrics"], abs=1e-5)
    assert [line["base"]["label"] for line in lines] == [line["base"]["label"] for line in evaluated[1]]


def test_a_failed_evaluation_leaves_the_base_models_answers_for_the_next(inputs, tmp_path, caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise UserError("the report cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(ModelEvaluation, "_report", refuse)
        with pytest.raises(UserError, match="cannot be written"):
            evaluate(tmp_path, *inputs)
    assert not (tmp_path / "report").exists()
    caplog.set_level("INFO")
    evaluate(tmp_path, *inputs)
    assert EARLIER in caplog.text
