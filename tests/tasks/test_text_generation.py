"""Text generation from rows to answers, on a tiny Llama and a GPT-2 that has only a token for the end."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import steps
from tuneport import tasks
from tuneport.artifacts import Model, write_manifest
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

TASK = "text_generation"
COLOURS = {"cat": "red", "dog": "blue", "cow": "green", "hen": "pink"}
GENERATION = {"max_new_tokens": 8}


def rows(count: int = 80) -> list[dict[str, Any]]:
    rng = random.Random(0)
    animals = [rng.choice(list(COLOURS)) for _ in range(count)]
    return [{"prompt": f"{i} {animal}:", "answer": COLOURS[animal]} for i, animal in enumerate(animals)]


def prepare(model: Path, data: Path, output: Path, **values: Any) -> Prepared:
    values = {"text_key": "prompt", **values}
    stage = steps.load("preprocess", TASK)
    execute(stage(model_selector_output=model, train_file_path=data, preprocess_output=output, **values))
    return Prepared(output)


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def run(request: pytest.FixtureRequest, decoder: Any, write_jsonl: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """All stages but the registration, on prompts with completions."""
    folder, model = tmp_path_factory.mktemp("run"), decoder(request.param)
    data = write_jsonl(folder / "rows.jsonl", rows())
    prepared = prepare(model, data, folder / "data", ground_truth_key="answer", test_split_ratio=0.2)
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path, "per_device_eval_batch_size": 16}
    tuned, exported, report = folder / "tuned", folder / "exported", folder / "report"
    values = {"num_train_epochs": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    execute(steps.load("finetune", TASK)(**inputs, **values, pytorch_model_folder=tuned))
    execute(
        steps.load("model_export", TASK)(
            pytorch_model_folder=tuned, preprocess_output=prepared.path, mlflow_model_folder=exported, **GENERATION
        )
    )
    execute(
        steps.load("model_evaluation", TASK)(
            **inputs, pytorch_model_folder=tuned, evaluation_result=report, generated_samples=5, **GENERATION
        )
    )
    return SimpleNamespace(
        name=request.param, model=model, prepared=prepared, tuned=tuned, exported=exported, report=report
    )


def predictor(run: SimpleNamespace, **values: Any) -> Any:
    task = tasks.load(TASK)
    settings = task.settings(run.prepared.info.meta, SimpleNamespace(**GENERATION))
    return task.predictor(str(run.tuned), settings, **values)


def test_the_loss_is_on_the_completion_and_its_end_alone(run: SimpleNamespace) -> None:
    predict = predictor(run)
    for row, encoded in zip(run.prepared.rows("test"), run.prepared.encoded("test").to_pylist(), strict=True):
        learnt = [label for label in encoded["labels"] if label != -100]
        answer = predict.generator.tokenizer.encode(" " + row["ground_truth"], add_special_tokens=False).ids
        assert learnt == [*answer, 2]
        assert encoded["input_ids"][-len(learnt) :] == learnt
        ((prompt, cut),) = predict.prompts([row["text"]], [100])
        assert not cut and prompt + learnt == encoded["input_ids"]


def test_the_scores_equal_the_models_own_loss(run: SimpleNamespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = json.loads((run.report / "metrics.json").read_text())
    assert (found["headline"], found["main"]) == ("loss", ["loss", "perplexity", "token_accuracy"])
    for who, folder in (("tuned", run.tuned), ("base", run.model)):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        losses = tokens = 0.0
        for row in run.prepared.encoded("test").to_pylist():
            labels = torch.tensor([row["labels"]])
            with torch.inference_mode():
                loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
            n = int((labels[:, 1:] != -100).sum())
            losses, tokens = losses + n * loss, tokens + n
        metrics = found[who]["metrics"]
        assert metrics["loss"] == pytest.approx(losses / tokens, rel=1e-4)
        assert metrics["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-3)
        low, high = found[who]["intervals"]["perplexity"]
        assert low <= metrics["perplexity"] <= high


def test_the_tuned_model_learns_the_colours_and_beats_the_frequencies(run: SimpleNamespace) -> None:
    found = json.loads((run.report / "metrics.json").read_text())
    assert found["baselines"].keys() == {"token frequencies"}
    losses = [found[who]["metrics"]["loss"] for who in ("tuned", "base")]
    assert losses[0] < 0.5 < found["baselines"]["token frequencies"]["metrics"]["loss"] < losses[1]
    page = (run.report / "report.html").read_text("utf-8")
    assert "has a loss per token of" in page and "Better than the base model and every trivial baseline" in page


def test_the_frequencies_are_those_of_the_training_completions(run: SimpleNamespace) -> None:
    train, test = (
        [[i for i in row["labels"] if i != -100] for row in run.prepared.encoded(split).to_pylist()]
        for split in ("train", "test")
    )
    every = [i for row in train for i in row]
    size = run.prepared.info.meta["vocabulary"]
    losses = [-math.log((every.count(i) + 1) / (len(every) + size)) for row in test for i in row]
    found = json.loads((run.report / "metrics.json").read_text())["baselines"]["token frequencies"]["metrics"]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses))


def test_training_and_evaluation_give_one_loss(run: SimpleNamespace) -> None:
    from tuneport.metrics.perplexity import evaluate
    from tuneport.modeling.likelihood import likelihoods

    log = json.loads((run.tuned / "trainer_state.json").read_text())
    best = next(e for e in log["log_history"] if e["step"] == log["best_global_step"] and "eval_loss" in e)
    task, meta = tasks.load(TASK), run.prepared.info.meta
    model = task.load_model(run.tuned, meta).eval()
    rows = likelihoods(model, task.collator(model, meta, None), run.prepared.encoded("validation"), 3)
    found = evaluate([vars(row) for row in rows], 0).metrics
    for name in ("loss", "perplexity", "token_accuracy"):
        assert found[name] == pytest.approx(best[f"eval_{name}"], rel=1e-4), name


def test_a_large_vocabulary_makes_batches_of_fewer_long_rows(
    run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneport.modeling import likelihood

    task, meta = tasks.load(TASK), run.prepared.info.meta
    model = task.load_model(run.tuned, meta).eval()
    given = (model, task.collator(model, meta, None), run.prepared.encoded("validation"), 8)
    wanted = likelihood.likelihoods(*given)
    sizes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    limit = 3 * max(given[2]["length"].to_pylist()) * model.config.vocab_size
    monkeypatch.setattr(likelihood, "LOGITS", limit)
    found = likelihood.likelihoods(*given)
    assert sizes[0][0] == 3 and all(rows * width * model.config.vocab_size <= limit for rows, width in sizes)
    assert [row.tokens for row in found] == [row.tokens for row in wanted]
    for name in ("negative_log_likelihood", "tokens_right"):
        assert [vars(row)[name] for row in found] == pytest.approx([vars(row)[name] for row in wanted], rel=1e-4)


def test_so_many_rows_are_answered_and_shown(run: SimpleNamespace) -> None:
    lines = [json.loads(line) for line in (run.report / "predictions.jsonl").read_text().splitlines()]
    answered = [i for i, line in enumerate(lines) if "text" in line["tuned"]]
    assert len(answered) == 5 and answered[0] == 0 and answered[-1] == len(lines) - 1
    assert sum(lines[i]["tuned"]["text"].startswith(lines[i]["ground_truth"]) for i in answered) >= 4
    page = (run.report / "report.html").read_text("utf-8")
    assert "5 test rows, the worst answer first" in page


def test_batches_answer_as_single_rows_do(run: SimpleNamespace) -> None:
    questions = [{"text": text} for text in ("1 cat:", "a much longer row about the dog: 77 dog:", "hen:", "5 cow:")]
    predict = predictor(run)
    together = predict(questions, batch_size=4)
    assert together == [predict([question])[0] for question in questions]
    assert together == predict(questions[::-1], batch_size=3)[::-1]


def test_a_prompt_longer_than_the_model_takes_loses_its_start(run: SimpleNamespace) -> None:
    predict = predictor(run)
    tail = "7 dog:"
    (answer,) = predict([{"text": "x" * 1000 + tail}])
    room = 256 - GENERATION["max_new_tokens"] - (run.name == "llama")
    assert [answer] == predict([{"text": "x" * (room - len(tail)) + tail}])
    with pytest.raises(ValueError, match="max_new_tokens=256 leaves no room for a prompt; expected a number < 256"):
        predict([{"text": "a"}], max_new_tokens=256)


def test_texts_without_ground_truth_are_learnt_whole(decoder: Any, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    for name, start, end in (("llama", [1], [2]), ("gpt2", [], [2])):
        prepared = prepare(decoder(name), data, tmp_path / name)
        for row, encoded in zip(prepared.rows("train"), prepared.encoded("train").to_pylist(), strict=True):
            ids = encoded["input_ids"]
            assert ids[len(start) : len(ids) - len(end)] == [ids_of(byte) for byte in row["text"].encode()]
            assert ids[: len(start)] == start and ids[len(ids) - len(end) :] == end
            assert encoded["labels"] == [-100, *ids[1:]]


def test_a_model_without_an_end_is_refused_with_the_remedy(decoder: Any, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    with pytest.raises(
        UserError, match=r"no token that ends a text.*as eos_token in .* tokenizer_config.json, and run"
    ):
        prepare(decoder("gpt2", eos_token=None), data, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_token_across_the_seam_of_prompt_and_completion_is_counted(
    decoder: Any, write_jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import Tokenizer, models

    model = decoder("gpt2")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    merged = tokenizer.get_vocab() | {"Ġr": 261, "Ġre": 262, "Ġred": 263}
    tokenizer.model = models.BPE(merged, [("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d")])
    tokenizer.save(str(model / "tokenizer.json"))
    spaced = [{**row, "prompt": f"{row['prompt']} " if i % 2 else row["prompt"]} for i, row in enumerate(rows())]
    data = write_jsonl(tmp_path / "rows.jsonl", spaced)
    write_manifest(Model(model), "model_import", "0", {}, {})
    report = prepare(model, data, tmp_path / "data", ground_truth_key="answer").report()
    wanted = sum(row["answer"] == "red" and row["prompt"].endswith(" ") for row in spaced)
    noted = [split.get("notes", {}) for split in report["splits"].values()]
    assert sum(found["rows"] for notes in noted for found in notes.values()) == wanted > 5
    assert f"{wanted} of {len(spaced)} rows: prompt and completion become tokens apart" in caplog.text


def ids_of(byte: int) -> int:
    from tokenizers import pre_tokenizers

    return 5 + sorted(pre_tokenizers.ByteLevel.alphabet()).index(chr(byte) if byte != 32 else "Ġ")


def test_a_long_prompt_is_cut_at_its_start_and_counted(decoder: Any, write_jsonl: Any, tmp_path: Path) -> None:
    long = [{"prompt": f"{i}" + "x" * 100 + "cat:", "answer": "red"} for i in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", long)
    prepared = prepare(decoder("llama"), data, tmp_path / "data", ground_truth_key="answer", max_seq_length=30)
    assert sum(split["truncated"] for split in prepared.report()["splits"].values()) == 20
    for row in prepared.encoded("train").to_pylist():
        assert len(row["input_ids"]) == 30 and row["input_ids"][0] == 1 and row["labels"].count(-100) == 25


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "answer": " "},
            r"column 'answer' holds an empty completion; expected text, .*\(1 row: rows.jsonl row 81\)",
        ),
        ({"prompt": None, "answer": "b"}, "null in column 'prompt'"),
        (
            {"prompt": "a", "answer": [1]},
            r"column 'answer' holds no text; expected text \(1 row: rows.jsonl row 81 \(\[1",
        ),
    ],
)
def test_a_bad_row_is_named(row: Any, message: str, decoder: Any, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows(), row])
    with pytest.raises(UserError, match=message):
        prepare(decoder("llama"), data, tmp_path / "data", ground_truth_key="answer", max_dropped_fraction=0)
    assert not (tmp_path / "data").exists()


def test_an_encoder_and_an_encoder_decoder_are_refused(
    imported_model: Path, decoder: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    with pytest.raises(UserError, match=r"of type 'bert', an encoder, which writes no text"):
        prepare(imported_model, data, tmp_path / "data")
    with pytest.raises(UserError, match=r"'t5', an encoder–decoder; text_generation wants a decoder.*summarization or"):
        prepare(decoder("t5"), data, tmp_path / "data")


def test_max_new_tokens_beyond_the_model_is_refused_before_generation(run: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_new_tokens=256: leaves no room for a prompt, as the model takes 256"):
        execute(
            steps.load("model_export", TASK)(
                pytorch_model_folder=run.tuned,
                preprocess_output=run.prepared.path,
                mlflow_model_folder=tmp_path / "exported",
                max_new_tokens=256,
            )
        )


SERVE = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
questions, params = json.loads(sys.stdin.read())
print(json.dumps([model.predict(questions, params=p).to_dict("records") for p in params]))
"""


def test_the_exported_model_answers_without_tuneport(run: SimpleNamespace, fenced_python: Any, tmp_path: Path) -> None:
    questions = [{"prompt": row["text"]} for row in run.prepared.rows("test")[:6]]
    params = [{}, {"max_new_tokens": 3}, {"num_beams": 3}, {"repetition_penalty": 5.0}]
    done = fenced_python(SERVE, str(run.exported), input=json.dumps([questions, params]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predict, asked = predictor(run), [{"text": q["prompt"]} for q in questions]
    found = json.loads(done.stdout)
    assert found == [predict(asked, **p) for p in params]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("name", "value"), [("trivial_baselines", False), ("generated_samples", 0), ("max_new_tokens", 2)]
)
def test_a_parameter_of_the_evaluation_has_an_effect(
    name: str, value: Any, run: SimpleNamespace, tmp_path: Path
) -> None:
    values = {"generated_samples": 5, **GENERATION, name: value}
    execute(
        steps.load("model_evaluation", TASK)(
            model_selector_output=run.model,
            preprocess_output=run.prepared.path,
            pytorch_model_folder=run.tuned,
            evaluation_result=tmp_path / "report",
            **values,
        )
    )
    file = "metrics.json" if name == "trivial_baselines" else "predictions.jsonl"
    assert (tmp_path / "report" / file).read_text() != (run.report / file).read_text()
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert ("No text was generated." in page) == (name == "generated_samples")
