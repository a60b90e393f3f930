"""Summaries from rows to answers, on tiny models of every family."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

TASK = "summarization"
BATCHES = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
TRAINING = {"num_train_epochs": 14, **BATCHES, "learning_rate": 1e-2, "seed": 1}
ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def prepare(model: Path, data: Path, output: Path, **values: Any) -> Prepared:
    keys = {"document_key": "document", "summary_key": "summary", "max_target_length": 8}
    stage = steps.load("preprocess", TASK)
    execute(stage(model_selector_output=model, train_file_path=data, preprocess_output=output, **{**keys, **values}))
    return Prepared(output)


def tune(model: Path, prepared: Prepared, output: Path, **values: Any) -> Path:
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path}
    execute(steps.load("finetune", TASK)(**inputs, pytorch_model_folder=output, **{**TRAINING, **values}))
    return output


@pytest.fixture(scope="session", params=["t5", "llama"])
def run(
    request: pytest.FixtureRequest, writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path_factory: Any
) -> SimpleNamespace:
    """All stages but the registration, with ROUGE-L choosing the best checkpoint."""
    folder, model = tmp_path_factory.mktemp("run"), writer(request.param)
    prepared = prepare(model, write_jsonl(folder / "rows.jsonl", rows), folder / "data", test_split_ratio=0.2)
    tuned = tune(model, prepared, folder / "tuned", metric_for_best_model="rougeL")
    exported, report = folder / "exported", folder / "report"
    execute(
        steps.load("model_export", TASK)(
            pytorch_model_folder=tuned, preprocess_output=prepared.path, mlflow_model_folder=exported
        )
    )
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path}
    execute(
        steps.load("model_evaluation", TASK)(
            **inputs, pytorch_model_folder=tuned, evaluation_result=report, per_device_eval_batch_size=16
        )
    )
    return SimpleNamespace(
        name=request.param, model=model, prepared=prepared, tuned=tuned, exported=exported, report=report
    )


def predictor_of(run: SimpleNamespace, **changes: Any) -> Any:
    task, meta = tasks.load(TASK), run.prepared.info.meta
    return task.predictor(str(run.tuned), {**task.settings(meta, None), **changes})


def lines(run: SimpleNamespace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.report / "predictions.jsonl").read_text("utf-8").splitlines()]


def scores(run: SimpleNamespace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.report / "metrics.json").read_text("utf-8"))
    return found


def test_rouge_equals_a_recount_from_the_predictions_by_rouge_score_itself(run: SimpleNamespace) -> None:
    found, scorer = scores(run), RougeScorer(ROUGE)
    for who in ("tuned", "base"):
        rows = [scorer.score(line["summary"], line[who]["summary"]) for line in lines(run)]
        for name in ROUGE:
            mean = sum(row[name].fmeasure for row in rows) / len(rows)
            assert found[who]["metrics"][name] == pytest.approx(mean), (who, name)
    assert found["headline"] == "rougeL" and found["test_rows"] == run.prepared.info.splits["test"]


def test_loss_and_perplexity_equal_a_recount_with_the_models_own_loss(run: SimpleNamespace) -> None:
    import torch

    model = tasks.load(TASK).load_model(run.tuned, run.prepared.info.meta).eval()
    loss = tokens = right = 0.0
    for row in run.prepared.encoded("test").to_pylist():
        labels = torch.tensor([row["labels"]])
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels)
        shift = run.name == "llama"
        logits, known = (output.logits[:, :-1], labels[:, 1:]) if shift else (output.logits, labels)
        n = int((known != -100).sum())
        loss, tokens = loss + n * float(output.loss), tokens + n
        right += int(((logits.argmax(-1) == known) & (known != -100)).sum())
    found = scores(run)["tuned"]["metrics"]
    assert found["loss"] == pytest.approx(loss / tokens, abs=1e-4)
    assert found["perplexity"] == pytest.approx(2.718281828 ** (loss / tokens), rel=1e-3)
    assert found["token_accuracy"] == pytest.approx(right / tokens)


def test_the_tuned_model_learns_to_summarize_and_beats_the_first_words(run: SimpleNamespace) -> None:
    found = scores(run)
    assert found["tuned"]["metrics"]["rougeL"] > 0.7 > found["base"]["metrics"]["rougeL"]
    assert found["baselines"].keys() == {"first 2 words"}
    baseline = found["baselines"]["first 2 words"]["metrics"]
    assert baseline["rougeL"] < 0.5 and baseline["loss"] is None
    page = (run.report / "report.html").read_text("utf-8")
    assert "ROUGE-L" in page and "has a ROUGE-L of" in page


def test_the_best_checkpoint_is_the_one_with_the_best_rouge_and_evaluation_gives_the_same(run: SimpleNamespace) -> None:
    log = json.loads((run.tuned / "trainer_state.json").read_text())
    logged = {e["step"]: e for e in log["log_history"] if "eval_rougeL" in e}
    assert log["best_metric"] == max(e["eval_rougeL"] for e in logged.values())
    assert logged.keys() == {e["step"] for e in log["log_history"] if "eval_loss" in e}
    task, rows, meta = tasks.load(TASK), run.prepared.rows("validation"), run.prepared.info.meta
    answers = predictor_of(run)(rows)
    best, found = logged[log["best_global_step"]], task.evaluate(rows, answers, meta, 0)
    for name in ROUGE:
        assert found.metrics[name] == pytest.approx(best[f"eval_{name}"]), name


def test_answers_in_batches_equal_answers_one_by_one(run: SimpleNamespace) -> None:
    rows = [{"document": row["document"]} for row in run.prepared.rows("test")]
    rows += [{"document": rows[0]["document"] + " so" * 20}, {"document": "cat"}]
    predict = predictor_of(run)
    together = predict(rows, batch_size=7)
    assert together == [predict([row], batch_size=1)[0] for row in rows]
    assert len({row["summary"] for row in together}) > 5


def test_the_predictor_reads_the_tokens_that_preprocess_wrote(run: SimpleNamespace) -> None:
    completer = predictor_of(run).complete
    rows, encoded = run.prepared.rows("test"), run.prepared.encoded("test").to_pylist()
    room = completer._room(8)
    for row, expected in zip(rows, encoded, strict=True):
        ((ids, _),) = completer.prompts([row["document"]], [room])
        learnt = sum(label != -100 for label in expected["labels"])
        assert ids == (expected["input_ids"] if run.name == "t5" else expected["input_ids"][:-learnt])


@pytest.mark.parametrize(
    ("params", "other"),
    [
        ({"max_new_tokens": 1}, {}),
        ({"num_beams": 3}, {}),
        ({"num_beams": 3, "length_penalty": -20.0}, {"num_beams": 3, "length_penalty": 20.0}),
        ({"temperature": 3.0}, {}),
        ({"temperature": 3.0, "top_k": 1}, {"temperature": 3.0}),
        ({"temperature": 3.0, "top_p": 0.01}, {"temperature": 3.0}),
        ({"repetition_penalty": 5.0}, {}),
        ({"no_repeat_ngram_size": 1}, {}),
    ],
)
def test_each_parameter_of_generation_changes_the_answers(
    params: dict[str, Any], other: dict[str, Any], half_tuned: Any, rows: Any
) -> None:
    import torch

    predict = tasks.load(TASK).predictor(*half_tuned)

    def answers(chosen: dict[str, Any]) -> list[str]:
        torch.manual_seed(0)
        return [row["summary"] for row in predict(rows[:12], batch_size=4, **chosen)]

    assert answers(params) != answers(other)
    assert answers(other) == answers(other)


@pytest.fixture(scope="session")
def half_tuned(writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path_factory: Any) -> Any:
    """A Llama that has learnt little, so that it is unsure of what to write and when to end."""
    folder, model = tmp_path_factory.mktemp("settings"), writer("llama")
    prepared = prepare(model, write_jsonl(folder / "rows.jsonl", rows), folder / "data")
    tuned = tune(model, prepared, folder / "tuned", max_steps=40, seed=0)
    return str(tuned), tasks.load(TASK).settings(prepared.info.meta, None)


def test_parameters_that_are_unknown_or_not_valid_are_refused(half_tuned: Any) -> None:
    predict = tasks.load(TASK).predictor(*half_tuned)
    for params, message in (
        ({"beams": 3}, "params: beams not known; expected some of max_new_tokens, num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is not valid; expected a number >= 1"),
        ({"max_new_tokens": 64}, "max_new_tokens=64 is more than the model takes; expected <= 63"),
        ({"top_p": 1.5}, "top_p=1.5 is not valid"),
    ):
        with pytest.raises(ValueError, match=message):
            predict([{"document": "cat"}], **params)


@pytest.mark.parametrize("kind", ["bart", "mbart", "nllb", "gpt2"])
def test_every_family_learns_to_summarize(
    kind: str, writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    prepared = prepare(writer(kind), write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")
    tuned = tune(writer(kind), prepared, tmp_path / "tuned")
    task, test = tasks.load(TASK), prepared.rows("test")
    predict = task.predictor(str(tuned), task.settings(prepared.info.meta, None))
    answers = predict(test)
    assert task.score(test, answers, prepared.info.meta)["rougeL"] > 0.8, [row["summary"] for row in answers]
    assert answers == [predict([row], batch_size=1)[0] for row in test]


def test_the_template_is_the_models_own_unless_one_is_given(
    writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = {
        kind: prepare(writer(kind), data, tmp_path / kind).info.meta["prompting"]["template"]
        for kind in ("t5", "bart", "llama")
    }
    assert found == {"t5": "summarize: {text}", "bart": "{text}", "llama": "{text}\n\nSummary:"}
    own = prepare(writer("t5"), data, tmp_path / "own", prompt_template="again {text} so")
    ids = own.encoded("test").to_pylist()[0]["input_ids"]
    words = tokenizer_of(writer("t5")).decode(ids).split()
    assert words[0] == "again" and words[-1] == "so"


def tokenizer_of(model: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model / "tokenizer.json"))


def test_a_language_code_is_read_and_written_and_another_one_changes_that(
    writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    model = writer("nllb")
    default = prepare(model, data, tmp_path / "default").encoded("test").to_pylist()[0]
    german = prepare(model, data, tmp_path / "german", summarization_lang="deu_Latn").encoded("test").to_pylist()[0]
    tokenizer = tokenizer_of(model)
    code = tokenizer.token_to_id
    assert default["input_ids"][0] == default["labels"][0] == code("eng_Latn")
    assert german["input_ids"][0] == german["labels"][0] == code("deu_Latn")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("t5", {"prompt_template": "summarize"}, r"holds \{text\} 0 times; expected it once"),
        ("t5", {"prompt_template": "{text} {text}"}, r"holds \{text\} 2 times; expected it once"),
        ("t5", {"prompt_template": "so " * 70 + "{text}"}, "takes 71 of the 64 tokens of a prompt"),
        ("t5", {"summary_key": "document"}, "document_key and summary_key are both 'document'"),
        ("t5", {"document_key": "text"}, "columns 'document_key=text' not found in rows.jsonl"),
        ("t5", {"summarization_lang": "en_XX"}, "the base model has no language codes as tokens; leave it out"),
        (
            "nllb",
            {"summarization_lang": "eng_Lat"},
            "summarization_lang='eng_Lat': .*expected one of deu_Latn, eng_Latn",
        ),
        ("llama", {"max_target_length": 64}, "prompt and target share max_seq_length=64 tokens; expected < 64"),
        ("bart", {"max_target_length": 65}, "the base model writes at most 64 tokens; expected <= 64"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    kind: str,
    values: dict[str, Any],
    message: str,
    writer: Callable[[str], Path],
    *,
    rows: Any,
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=message):
        prepare(writer(kind), data, tmp_path / "data", **values)
    assert not (tmp_path / "data").exists()


def test_an_encoder_is_refused(imported_model: Path, rows: Any, write_jsonl: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of type 'bert', an encoder, which writes no text"):
        prepare(imported_model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")


def test_more_new_tokens_than_the_model_has_are_refused(run: SimpleNamespace, tmp_path: Path) -> None:
    stage = steps.load("model_export", TASK)(
        pytorch_model_folder=run.tuned,
        preprocess_output=run.prepared.path,
        mlflow_model_folder=tmp_path / "exported",
        max_new_tokens=64,
    )
    if run.name == "t5":  # its positions are relative
        execute(stage)
        return
    with pytest.raises(UserError, match="max_new_tokens=64: the model takes at most 64 tokens; expected <= 63, or -1"):
        execute(stage)


SERVE = """
import sys
import json, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = json.loads(sys.stdin.read())
sent = ({}, {"batch_size": 3}, {"max_new_tokens": 1})
found = [model.predict(rows, params=params).to_dict("records") for params in sent]
print(json.dumps([*found, [[p.name, p.default] for p in model.metadata.signature.params]]))
"""


def test_the_exported_model_answers_as_in_process_without_tuneport(
    run: SimpleNamespace, fenced_python: Any, tmp_path: Path
) -> None:
    rows = [{"document": row["document"]} for row in run.prepared.rows("test")]
    done = fenced_python(SERVE, str(run.exported), input=json.dumps(rows), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain, small, short, params = json.loads(done.stdout)
    assert plain == small == predictor_of(run)(rows)
    assert short == predictor_of(run)(rows, max_new_tokens=1) != plain
    assert ["max_new_tokens", 8] in params and ["temperature", 0.0] in params
