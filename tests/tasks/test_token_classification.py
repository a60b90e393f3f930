"""Tagging from rows to answers, on a tiny BERT, a RoBERTa with a byte-level tokenizer and a Llama."""

import csv
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from seqeval import metrics as seqeval

import steps
from tuneport import tasks
from tuneport.artifacts import CustomModel, Model
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

TASK = "token_classification"
NAMES = {"PER": ["ann", "bob", "carla"], "LOC": ["rome", "paris", "new york"]}
FRAMES = ["{PER} lives in {LOC}", "did {PER} see {LOC} ?", "{LOC} , {PER} says , is hot", "nobody here {LOC}"]


def entity_rows(count: int = 90) -> list[dict[str, Any]]:
    rng, rows = random.Random(1), []
    for i in range(count):
        tokens, tags = [str(i)], ["O"]
        for word in FRAMES[i % len(FRAMES)].split():
            kind = word.strip("{}")
            words = rng.choice(NAMES[kind]).split() if kind in NAMES else [word]
            tokens += words
            tags += [f"{'I' if n else 'B'}-{kind}" if kind in NAMES else "O" for n in range(len(words))]
        rows.append({"words": tokens, "tags": tags})
    return rows


def byte_level_tokenizer(split: bool) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    pieces = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level]) if split else byte_level
    special = ["<s>", "</s>", "<unk>"] if split else ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" " + " ".join(row["words"]) for row in entity_rows()], trainer)
    if not split:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return tokenizer


def roberta(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    tokenizer = byte_level_tokenizer(split=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=42, pad_token_id=1, **size)
    RobertaModel(config).save_pretrained(folder)


def llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    tokenizer = byte_level_tokenizer(split=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, eos_token="</s>").save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    LlamaModel(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=40, **size)).save_pretrained(
        folder
    )


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, imported_model: Path) -> Any:
    """Imported tiny models by name."""

    def make(name: str) -> Path:
        if name == "bert":
            return imported_model
        from transformers import set_seed

        folder = tmp_path_factory.mktemp(name)
        set_seed(0)
        {"roberta": roberta, "llama": llama}[name](folder / "model")
        imported = Model(folder / "model_selector_output")
        execute(
            steps.load("model_import")(pytorch_model_path=CustomModel(folder / "model"), model_selector_output=imported)
        )
        return imported.path

    return make


def prepare(model: Path, data: Path, output: Path, **values: Any) -> Prepared:
    keys = {"token_key": "words", "tag_key": "tags"}
    stage = steps.load("preprocess", TASK)
    execute(stage(model_selector_output=model, train_file_path=data, preprocess_output=output, **{**keys, **values}))
    return Prepared(output)


@pytest.fixture(scope="session", params=["bert", "roberta", "llama"])
def run(request: pytest.FixtureRequest, make_model: Any, write_jsonl: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """All stages but the registration, on the entity rows."""
    folder, model = tmp_path_factory.mktemp("run"), make_model(request.param)
    prepared = prepare(model, write_jsonl(folder / "rows.jsonl", entity_rows()), folder / "data", test_split_ratio=0.2)
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path, "per_device_eval_batch_size": 16}
    tuned, exported, report = folder / "tuned", folder / "exported", folder / "report"
    values = {"num_train_epochs": 12, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "group_by_length": True}
    execute(steps.load("finetune", TASK)(**inputs, **values, metric_for_best_model="f1", pytorch_model_folder=tuned))
    execute(
        steps.load("model_export", TASK)(
            pytorch_model_folder=tuned, preprocess_output=prepared.path, mlflow_model_folder=exported
        )
    )
    execute(steps.load("model_evaluation", TASK)(**inputs, pytorch_model_folder=tuned, evaluation_result=report))
    return SimpleNamespace(
        name=request.param, model=model, prepared=prepared, tuned=tuned, exported=exported, report=report
    )


def test_the_metrics_equal_seqevals_recount_from_the_predictions(run: SimpleNamespace) -> None:
    found = json.loads((run.report / "metrics.json").read_text())
    lines = [json.loads(line) for line in (run.report / "predictions.jsonl").read_text().splitlines()]
    truth = [line["tags"] for line in lines]
    for who in ("tuned", "base"):
        said = [line[who]["tags"] for line in lines]
        recount = {
            "f1": seqeval.f1_score(truth, said, zero_division=0),
            "precision": seqeval.precision_score(truth, said, zero_division=0),
            "recall": seqeval.recall_score(truth, said, zero_division=0),
            "accuracy": seqeval.accuracy_score(truth, said),
        }
        assert {name: found[who]["metrics"][name] for name in recount} == pytest.approx(recount)
    assert found["headline"] == "f1" and found["test_rows"] == len(lines) == run.prepared.info.splits["test"]
    assert [line["correct"] for line in lines] == [line["tuned"]["tags"] == line["tags"] for line in lines]


def test_the_tuned_model_learns_the_names_and_beats_the_trivial_taggers(run: SimpleNamespace) -> None:
    found = json.loads((run.report / "metrics.json").read_text())
    assert found["tuned"]["metrics"]["f1"] > 0.8 > found["base"]["metrics"]["f1"]
    assert found["baselines"].keys() == {"commonest tag", "commonest tag of the word"}
    page = (run.report / "report.html").read_text("utf-8")
    assert "F1, entities" in page and "Test entities" in page and "has an entity F1 of" in page


def test_training_and_evaluation_give_one_metric_under_one_name(run: SimpleNamespace) -> None:
    """The best checkpoint's validation scores, as logged in training, are those of its predictor on the same rows."""
    log = json.loads((run.tuned / "trainer_state.json").read_text())
    best = next(e for e in log["log_history"] if e["step"] == log["best_global_step"] and "eval_f1" in e)
    task, rows = tasks.load(TASK), run.prepared.rows("validation")
    found = task.evaluate(rows, task.predictor(str(run.tuned))(rows), run.prepared.info.meta, 0)
    for name in ("f1", "accuracy", "precision", "recall"):
        assert found.metrics[name] == pytest.approx(best[f"eval_{name}"]), name


def test_the_predictor_reads_the_tokens_that_preprocess_wrote(run: SimpleNamespace) -> None:
    predictor: Any = tasks.load(TASK).predictor(str(run.tuned))
    encoded = run.prepared.encoded("test").to_pylist()
    for row, expected in zip(run.prepared.rows("test"), encoded, strict=True):
        ((start, ids, places, last),) = predictor._windows(row["tokens"])
        assert (start, last, ids) == (0, True, expected["input_ids"])
        assert list(places.values()) == [i for i, label in enumerate(expected["labels"]) if label != -100]


def test_a_plain_sentence_is_split_and_its_entities_are_spans_of_words(run: SimpleNamespace) -> None:
    answer = tasks.load(TASK).predictor(str(run.tuned))([{"tokens": "3 ann lives in new york"}])[0]
    assert len(answer["tags"]) == len(answer["scores"]) == 6
    assert [(e["text"], e["label"], e["start"], e["end"]) for e in answer["entities"]] == [
        ("ann", "PER", 1, 2),
        ("new york", "LOC", 4, 6),
    ]
    assert answer["entities"][1]["score"] == pytest.approx(sum(answer["scores"][4:]) / 2)


def test_every_word_has_a_tag_however_long_the_row_and_however_odd_the_words(run: SimpleNamespace) -> None:
    predictor = tasks.load(TASK).predictor(str(run.tuned), batch_size=3)
    rows = [
        {"tokens": ["3", "ann", "lives", "in", "new", "york"] * 40},
        {"tokens": []},
        {"tokens": ["", "\u200b", "ann" * 200, "ü", "rome"]},
    ]
    many, none, odd = predictor(rows)
    assert len(many["tags"]) == 240 and all(0 < score <= 1 for score in many["scores"])
    cities = [i for i, word in enumerate(rows[0]["tokens"]) if word == "york"]
    assert sum(many["tags"][i] == "I-LOC" for i in cities) > 0.7 * len(cities)
    assert none == {"tags": [], "scores": [], "entities": []}
    assert len(odd["tags"]) == 5 and all(score > 0 for score in odd["scores"])


def test_labels_stand_at_first_sub_words_and_with_label_all_tokens_the_rest_learns_too(
    make_model: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    import torch

    data, model = write_jsonl(tmp_path / "rows.jsonl", entity_rows()), make_model("bert")
    first, every = (prepare(model, data, tmp_path / str(on), label_all_tokens=on) for on in (False, True))
    labels = first.info.meta["labels"]
    assert labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"][: len(labels)]
    pairs = list(zip(first.encoded("train").to_pylist(), every.encoded("train").to_pylist(), strict=True))
    assert all(
        row["labels"].count(-100) == len(row["labels"]) - len(words["tokens"])
        for (row, _), words in zip(pairs, first.rows("train"), strict=True)
    )
    assert [[i for i in a["labels"] if i >= 0] for a, _ in pairs] == [
        [i for i in b["labels"] if i >= 0] for _, b in pairs
    ]
    more = [row for _, row in pairs if min(row["labels"][1:-1]) < -100]
    assert more, "no word has several sub-words"
    task = tasks.load(TASK)
    torch.manual_seed(0)
    tagger = task.load_model(model, every.info.meta).eval()
    batch = task.collator(tagger, every.info.meta, None)(more)
    outputs = tagger(**batch)
    ids = torch.where(batch["labels"] < -100, -101 - batch["labels"], batch["labels"])
    expected = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), ids.flatten(), ignore_index=-100)
    assert outputs.loss.item() == pytest.approx(expected.item())


def test_words_and_tags_may_be_json_in_a_csv_cell_and_numbers_are_text(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = [{"words": row["words"], "tags": [len(tag) for tag in row["tags"]]} for row in entity_rows()]
    with (tmp_path / "rows.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["words", "tags"])
        writer.writeheader()
        writer.writerows({k: json.dumps(v) for k, v in row.items()} for row in rows)
    as_lines = prepare(imported_model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "lines")
    as_cells = prepare(imported_model, tmp_path / "rows.csv", tmp_path / "cells")
    assert as_cells.info.meta == as_lines.info.meta == {"labels": ["1", "5"], "iob": False}
    assert [r["tags"] for r in as_cells.rows("test")] == [r["tags"] for r in as_lines.rows("test")]


def test_plain_tags_spell_no_entities_and_are_scored_by_word(make_model: Any, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{**row, "tags": [tag[2:] or "X" for tag in row["tags"]]} for row in entity_rows()]
    model = make_model("bert")
    data = prepare(model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")
    inputs = {"model_selector_output": model, "preprocess_output": data.path}
    tuned = tmp_path / "tuned"
    execute(steps.load("finetune", TASK)(**inputs, max_steps=2, pytorch_model_folder=tuned))
    execute(
        steps.load("model_evaluation", TASK)(
            **inputs, pytorch_model_folder=tuned, evaluation_result=tmp_path / "report"
        )
    )
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert found["headline"] == "accuracy" and [row["label"] for row in found["per_class"]] == data.info.meta["labels"]
    assert tasks.load(TASK).predictor(str(tuned))([{"tokens": "ann is hot"}])[0]["entities"] == []


def test_cut_rows_are_counted_and_rows_without_words_dropped(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = [*entity_rows(), {"words": [], "tags": []}, {"words": None, "tags": ["O"]}, {"words": ["a"], "tags": [""]}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    report = prepare(imported_model, data, tmp_path / "data", max_seq_length=7).report()
    assert {k: v["rows"] for k, v in report["sources"]["train"]["dropped"].items()} == {
        "no words in column 'words'": 1,
        "null in column 'words'": 1,
        "an empty tag in column 'tags'": 1,
    }
    assert sum(split["truncated"] for split in report["splits"].values()) > 20


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"words": ["a", "b"], "tags": ["O"]},
            r"columns 'words' and 'tags' differ .* \(1 row: rows.jsonl row 91 \(2 words, 1 tags\)\)",
        ),
        (
            {"words": ["a"], "tags": ["NOUN"]},
            r"row 91: column 'tags' mixes the IOB2 tag 'B-\w+' \(rows.jsonl row 1\) with 'NOUN' \(rows.jsonl row 91\)",
        ),
        ({"words": ["a"], "tags": ["S-PER"]}, "with 'S-PER'"),
        ({"words": ["a"], "tags": ["B-"]}, "with 'B-'"),
        ({"words": "a plain sentence", "tags": ["O"]}, "column 'words' holds no list; expected a list of words"),
        ({"words": ["a"], "tags": "O"}, "column 'tags' holds no list; expected a list of tags"),
        ({"words": ["a"], "tags": [{"x": 1}]}, "holds the entry {'x': 1}; expected tags as text"),
        ({"words": ["\u200b"], "tags": ["O"]}, r"1 row\(s\) leave nothing to learn.*: rows.jsonl:91"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(
    row: dict[str, Any], message: str, imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [*entity_rows(), row])
    with pytest.raises(UserError, match=message):
        prepare(imported_model, data, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_all_rows_whose_words_and_tags_differ_in_length_are_named_together(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = entity_rows()
    for row in rows[9:60:2]:
        row["tags"] = row["tags"][:-1]
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows, {"words": None, "tags": ["O"]}])
    with pytest.raises(UserError) as e:
        prepare(imported_model, data, tmp_path / "data", max_dropped_fraction=1)
    listed = [
        f"rows.jsonl row {i + 1} ({len(rows[i]['words'])} words, {len(rows[i]['tags'])} tags)" for i in range(9, 49, 2)
    ]
    assert str(e.value) == (
        "rows.jsonl: 26 of 91 rows are wrong: columns 'words' and 'tags' differ in length; expected one tag a word "
        f"(26 rows: {', '.join(listed)} and 6 more). Mend or remove them."
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, ["B-ORG"], r"the tag\(s\) 'B-ORG' are in the test rows but in no training row"),
        (None, ["NOUN"], "the test rows 'NOUN', which is none|mixes|the train rows hold the IOB2 tag"),
        (["O"], ["O"], r"holds 1 tag\(s\) in the training rows \(O\)"),
    ],
)
def test_tags_that_cannot_be_learnt_are_refused(
    train: Any, test: Any, message: str, write_jsonl: Any, tmp_path: Path, *, imported_model: Path
) -> None:
    rows = [{**row, "tags": train * len(row["words"])} if train else row for row in entity_rows()]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    other = write_jsonl(tmp_path / "test.jsonl", [{"words": ["zoo"], "tags": test}])
    with pytest.raises(UserError, match=message):
        prepare(imported_model, data, tmp_path / "data", test_file_path=other)


SERVE = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
payloads = json.loads(sys.stdin.read())
print(json.dumps([model.predict(p).to_dict("records") for p in (*payloads, pd.DataFrame(payloads[0]))]))
assert not [name for name in sys.modules if name.partition(".")[0] in ("tuneport", "steps")]
try:
    model.predict([{"words": 3}])
except mlflow.exceptions.MlflowException as e:
    assert "row 1: column 'words' holds 3; expected text or a list of text" in str(e), e
else:
    raise AssertionError("a number was answered")
"""


def test_the_exported_model_answers_lists_and_sentences_without_tuneport(
    run: SimpleNamespace, fenced_python: Any, tmp_path: Path
) -> None:
    records = [{"words": row["tokens"]} for row in run.prepared.rows("test")[:5]]
    payloads: list[Any] = [records, {"words": [r["words"] for r in records]}, [{"words": "3 ann lives in new york"}]]
    done = fenced_python(SERVE, str(run.exported), input=json.dumps(payloads), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table, columns, sentence, frame = json.loads(done.stdout)
    predictor = tasks.load(TASK).predictor(str(run.tuned))
    wanted = predictor([{"tokens": row["words"]} for row in records])
    for got in (table, columns, frame):
        assert [row["tags"] for row in got] == [row["tags"] for row in wanted]
        for a, b in zip(got, wanted, strict=True):
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)
            assert [e["text"] for e in a["entities"]] == [e["text"] for e in b["entities"]]
    assert sentence[0]["tags"] == predictor([{"tokens": "3 ann lives in new york"}])[0]["tags"]
