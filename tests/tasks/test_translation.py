"""Translations from rows to answers, on tiny models of every family."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

TASK = "translation"
BATCHES = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 16}
TRAINING = {"num_train_epochs": 30, **BATCHES, "learning_rate": 1e-2}
CODES = {
    "nllb": {"source_lang_code": "eng_Latn", "target_lang_code": "deu_Latn"},
    "mbart": {"source_lang_code": "en_XX", "target_lang_code": "de_DE"},
    "mbart50": {"source_lang_code": "en_XX", "target_lang_code": "de_DE"},
}


def prepare(model: Path, data: Path, output: Path, **values: Any) -> Prepared:
    keys = {"source_lang": "en", "target_lang": "de", "max_target_length": 8}
    stage = steps.load("preprocess", TASK)
    execute(stage(model_selector_output=model, train_file_path=data, preprocess_output=output, **{**keys, **values}))
    return Prepared(output)


def tune(model: Path, prepared: Prepared, output: Path, **values: Any) -> Path:
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path}
    execute(steps.load("finetune", TASK)(**inputs, pytorch_model_folder=output, **{**TRAINING, **values}))
    return output


def tokenizer_of(model: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(model / "tokenizer.json"))


@pytest.fixture(scope="session", params=["t5", "llama", "nllb", "mbart"])
def run(
    request: pytest.FixtureRequest, writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path_factory: Any
) -> SimpleNamespace:
    """All stages but the registration."""
    folder, model, codes = tmp_path_factory.mktemp("run"), writer(request.param), CODES.get(request.param, {})
    data = write_jsonl(folder / "rows.jsonl", rows)
    prepared = prepare(model, data, folder / "data", test_split_ratio=0.2, **codes)
    tuned, exported, report = tune(model, prepared, folder / "tuned"), folder / "exported", folder / "report"
    execute(
        steps.load("model_export", TASK)(
            pytorch_model_folder=tuned, preprocess_output=prepared.path, mlflow_model_folder=exported, num_beams=2
        )
    )
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path}
    execute(
        steps.load("model_evaluation", TASK)(
            **inputs, pytorch_model_folder=tuned, evaluation_result=report, per_device_eval_batch_size=16, num_beams=2
        )
    )
    return SimpleNamespace(
        name=request.param, model=model, prepared=prepared, tuned=tuned, exported=exported, report=report
    )


def predictor_of(run: SimpleNamespace) -> Any:
    task, meta = tasks.load(TASK), run.prepared.info.meta
    return task.predictor(str(run.tuned), task.settings(meta, None))


def lines(run: SimpleNamespace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.report / "predictions.jsonl").read_text("utf-8").splitlines()]


def scores(run: SimpleNamespace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.report / "metrics.json").read_text("utf-8"))
    return found


def test_bleu_and_chrf_equal_a_recount_from_the_predictions_by_sacrebleu_itself(run: SimpleNamespace) -> None:
    found, truth = scores(run), [line["target"] for line in lines(run)]
    for who in ("tuned", "base"):
        said = [line[who]["translation"] for line in lines(run)]
        rows = [sacrebleu.sentence_chrf(got, [want]).score for want, got in zip(truth, said, strict=True)]
        recount = {
            "bleu": sacrebleu.corpus_bleu(said, [truth]).score,
            "chrf": sacrebleu.corpus_chrf(said, [truth]).score,
            "chrf_rows": sum(rows) / len(rows),
        }
        assert {name: found[who]["metrics"][name] for name in recount} == pytest.approx(recount), who
    low, high = found["tuned"]["intervals"]["chrf_rows"]
    assert low <= found["tuned"]["metrics"]["chrf_rows"] <= high and found["headline"] == "chrf_rows"
    assert "BLEU: sacreBLEU nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version" in " ".join(found["notes"])
    assert "chrF: sacreBLEU nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version" in " ".join(found["notes"])


def test_loss_equals_a_recount_with_the_models_own_loss(run: SimpleNamespace) -> None:
    import torch

    model = tasks.load(TASK).load_model(run.tuned, run.prepared.info.meta).eval()
    loss = tokens = 0.0
    for row in run.prepared.encoded("test").to_pylist():
        with torch.inference_mode():
            one = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        n = sum(label != -100 for label in row["labels"])
        loss, tokens = loss + n * float(one), tokens + n
    assert scores(run)["tuned"]["metrics"]["loss"] == pytest.approx(loss / tokens, abs=1e-4)


def test_the_tuned_model_learns_to_translate_and_beats_a_copy_of_the_source(run: SimpleNamespace) -> None:
    found = scores(run)
    assert found["tuned"]["metrics"]["chrf"] > 80 > found["base"]["metrics"]["chrf"], lines(run)[:5]
    assert found["baselines"].keys() == {"copy of the source"}
    assert found["baselines"]["copy of the source"]["metrics"]["chrf"] < 40
    assert "has a mean chrF of" in (run.report / "report.html").read_text("utf-8")


def test_answers_in_batches_equal_answers_one_by_one(run: SimpleNamespace) -> None:
    rows = [{"source": row["source"]} for row in run.prepared.rows("test")]
    rows += [{"source": rows[0]["source"] + " so" * 20}, {"source": "cat"}]
    predict = predictor_of(run)
    for beams in (1, 3):
        together = predict(rows, batch_size=7, num_beams=beams)
        assert together == [predict([row], batch_size=1, num_beams=beams)[0] for row in rows]
    assert len({row["translation"] for row in together}) > 5


def test_bleu_chooses_the_best_checkpoint_and_is_named_as_in_the_evaluation(
    writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    prepared = prepare(writer("t5"), write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")
    tuned = tune(writer("t5"), prepared, tmp_path / "tuned", num_train_epochs=12, metric_for_best_model="bleu")
    log = json.loads((tuned / "trainer_state.json").read_text())
    logged = {e["step"]: e for e in log["log_history"] if "eval_bleu" in e}
    assert log["best_metric"] == max(e["eval_bleu"] for e in logged.values())
    task, valid, meta = tasks.load(TASK), prepared.rows("validation"), prepared.info.meta
    found = task.evaluate(valid, task.predictor(str(tuned), task.settings(meta, None))(valid), meta, 0)
    for name in ("bleu", "chrf"):
        assert found.metrics[name] == pytest.approx(logged[log["best_global_step"]][f"eval_{name}"]), name


@pytest.mark.parametrize(
    ("kind", "source", "target", "decoder"),
    [
        ("mbart", "{text} </s> en_XX", "{text} </s> de_DE", "de_DE {text} </s>"),
        ("mbart50", "en_XX {text} </s>", "de_DE {text} </s>", "</s> de_DE {text}"),
        ("nllb", "eng_Latn {text} </s>", "deu_Latn {text} </s>", "</s> deu_Latn {text}"),
        ("t5", "translate English to German: {text} </s>", "{text} </s>", "<pad> {text}"),
        ("bart", "<s> {text} </s>", "<s> {text} </s>", "</s> <s> {text}"),
    ],
)
def test_codes_and_special_tokens_stand_where_each_family_has_them(
    kind: str,
    source: str,
    target: str,
    decoder: str,
    *,
    writer: Callable[[str], Path],
    rows: Any,
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    import torch

    model = writer(kind)
    prepared = prepare(model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data", **CODES.get(kind, {}))
    row, ids = prepared.rows("train")[0], prepared.encoded("train").to_pylist()[0]
    tokenizer = tokenizer_of(model)

    def written(ids: list[int]) -> list[str]:
        return [tokenizer.id_to_token(i) for i in ids]

    def words(text: str) -> list[str]:
        return written(tokenizer.encode(text, add_special_tokens=False).ids)

    assert written(ids["input_ids"]) == words(source.format(text=row["source"]))
    assert written(ids["labels"]) == words(target.format(text=row["target"]))
    network = tasks.load(TASK).load_model(model, prepared.info.meta)
    labels = torch.tensor([ids["labels"]])
    fed: list[Any] = []
    network.get_decoder().register_forward_pre_hook(lambda _, args, kw: fed.append(kw["input_ids"]), with_kwargs=True)
    network(input_ids=torch.tensor([ids["input_ids"]]), labels=labels)
    assert written(fed[0][0].tolist()) == words(decoder.format(text=row["target"]))
    fed.clear()
    settings = tasks.load(TASK).settings(prepared.info.meta, None)
    tasks.load(TASK).predictor(str(model), settings, model=network)([row])
    begun = written([int(step[0, -1]) for step in fed])
    wanted = decoder.split("{text}", maxsplit=1)[0].split()
    assert begun[: len(wanted)] == wanted if kind != "bart" else begun[:1] == wanted[:1]


def test_a_cut_target_of_mbart_still_ends_with_its_code_which_its_decoder_starts_with(
    writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    data, model = write_jsonl(tmp_path / "rows.jsonl", rows), writer("mbart")
    prepared = prepare(model, data, tmp_path / "data", max_target_length=3, **CODES["mbart"])
    row, ids = prepared.rows("train")[0], prepared.encoded("train").to_pylist()[0]
    tokens = [tokenizer_of(model).id_to_token(i) for i in ids["labels"]]
    assert tokens == [row["target"].split()[0], "</s>", "de_DE"]


def test_a_decoders_prompt_names_the_codes(
    writer: Callable[[str], Path], rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    plain = prepare(writer("gpt2"), data, tmp_path / "plain").info.meta["prompting"]
    coded = prepare(writer("gpt2"), data, tmp_path / "coded", target_lang_code="deu").info.meta["prompting"]
    own = prepare(writer("gpt2"), data, tmp_path / "own", prompt_template="to de: {text} so").info.meta["prompting"]
    assert plain["template"] == "en: {text}\nde:" and coded["template"] == "en: {text}\ndeu:"
    assert own["template"] == "to de: {text} so"


def test_a_code_of_m2m_100_may_be_written_without_its_underscores() -> None:
    from tuneport.encoding.languages import Languages

    assert Languages({"__en__": 7, "__de__": 8}, False, None).id("de", "target_lang") == 8


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("t5", {"target_lang": "en"}, "source_lang and target_lang are both the column 'en'; expected two columns"),
        ("t5", {"target_lang_code": "en"}, "source and target are both of the language 'en'; expected two languages"),
        ("t5", {"source_lang": "fr"}, "columns 'source_lang=fr' not found in rows.jsonl; it has: document"),
        ("t5", {"target_lang": "fr"}, "columns 'target_lang=fr' not found"),
        ("t5", {"prompt_template": "translate"}, r"holds \{text\} 0 times; expected it once"),
        (
            "nllb",
            {},
            "source_lang='en': the base model knows no such language code; expected one of deu_Latn, eng_Latn",
        ),
        ("mbart", {"source_lang_code": "en_XX"}, "target_lang='de': .*expected one of de_DE, en_XX"),
        (
            "mbart50",
            {"source_lang_code": "en_XX", "target_lang_code": "de_DD"},
            "target_lang_code='de_DD': .*expected one of de_DE, en_XX",
        ),
        ("gpt2", {"max_target_length": 64}, "expected < 64"),
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


SERVE = """
import sys
import json, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = json.loads(sys.stdin.read())
print(json.dumps([model.predict(rows, params=p).to_dict("records") for p in ({}, {"num_beams": 1, "batch_size": 3})]))
"""


def test_the_exported_model_answers_as_in_process_without_tuneport(
    run: SimpleNamespace, fenced_python: Any, tmp_path: Path
) -> None:
    texts = [row["source"] for row in run.prepared.rows("test")]
    done = fenced_python(SERVE, str(run.exported), input=json.dumps([{"en": text} for text in texts]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    two_beams, one = json.loads(done.stdout)
    rows = [{"source": text} for text in texts]
    assert two_beams == predictor_of(run)(rows, num_beams=2)
    assert one == predictor_of(run)(rows)
