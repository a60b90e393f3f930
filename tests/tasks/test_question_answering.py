"""Questions answered from rows to a served model, on a tiny BERT and a Llama with a byte-level tokenizer."""

import collections
import csv
import json
import logging
import math
import random
import re
import shutil
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipelines
import steps
from tuneport import tasks
from tuneport.artifacts import CustomModel, Model
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.evaluation.prediction import has_head
from tuneport.metrics.spans import baselines, evaluate, row_scores
from tuneport.serving.question_answerer import QuestionWindows
from tuneport.stage import execute

TASK = "question_answering"
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "white", "black"]
FILLER = "is it or not very much again please"
LENGTH = 32  # tokens


def answers(context: str, *texts: str) -> dict[str, Any]:
    return {"text": list(texts), "answer_start": [context.index(text) for text in texts]}


def question_rows(count: int = 240, unanswerable: bool = True) -> list[dict[str, Any]]:
    """Each names the colour or the number in a sentence; some sentences lack what is asked for."""
    rng, rows = random.Random(3), []
    for i in range(count):
        colour, number = " ".join(rng.sample(COLOURS, rng.choice([1, 2]))), rng.choice(NUMBERS)
        lacks = unanswerable and i % 4 == 3
        question = ("what colour", "what number")[i % 2 if not lacks else rng.randrange(2)]
        wanted = {"what colour": colour, "what number": number}[question]
        named = [text for text in (colour, number) if not (lacks and text == wanted)]
        rng.shuffle(named)
        filler = " ".join(rng.sample(FILLER.split(), 6))
        context = f"{i} {FRAME[i % 2]} {' like '.join(named)} . {filler}"
        found = answers(context) if lacks else answers(context, wanted, *wanted.split()[1:])
        rows.append({"q": question, "c": context, "a": found})
    return rows


FRAME = ["tell me about", "i like"]


def llama(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([f"{row['q']} {row['c']}" for row in question_rows()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, eos_token="</s>").save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    LlamaModel(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, **size)).save_pretrained(
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
        llama(folder / "model")
        imported = Model(folder / "model_selector_output")
        execute(
            steps.load("model_import")(pytorch_model_path=CustomModel(folder / "model"), model_selector_output=imported)
        )
        return imported.path

    return make


def prepare(model: Path, data: Path, output: Path, **values: Any) -> Prepared:
    keys = {"question_key": "q", "context_key": "c", "answers_key": "a", "max_seq_length": LENGTH, "doc_stride": 8}
    stage = steps.load("preprocess", TASK)
    execute(stage(model_selector_output=model, train_file_path=data, preprocess_output=output, **{**keys, **values}))
    return Prepared(output)


@pytest.fixture(scope="session", params=["bert", "llama"])
def run(request: pytest.FixtureRequest, make_model: Any, write_jsonl: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """All stages but the registration."""
    folder, model = tmp_path_factory.mktemp("run"), make_model(request.param)
    data = write_jsonl(folder / "rows.jsonl", question_rows())
    prepared = prepare(model, data, folder / "data", test_split_ratio=0.2)
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path, "per_device_eval_batch_size": 16}
    tuned, exported, report = folder / "tuned", folder / "exported", folder / "report"
    values = {
        "num_train_epochs": 15,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "group_by_length": True,
    }
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


def predictor(run: SimpleNamespace, **values: Any) -> Any:
    task = tasks.load(TASK)
    return task.predictor(str(run.tuned), task.settings({**run.prepared.info.meta, **values}, None))


# -- the official SQuAD 2.0 script's rules, rewritten ---------------------------------------------------------------


def normalised(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_exact(gold: str, said: str) -> float:
    return float(normalised(gold) == normalised(said))


def squad_f1(gold: str, said: str) -> float:
    wanted, got = normalised(gold).split(), normalised(said).split()
    if not wanted or not got:
        return float(wanted == got)
    same = sum((collections.Counter(wanted) & collections.Counter(got)).values())
    return 2 * same / (len(wanted) + len(got)) if same else 0.0


def squad(gold: list[str], said: str) -> tuple[float, float]:
    """(exact, f1)"""
    kept = [text for text in gold if normalised(text)] or [""]
    return max(squad_exact(text, said) for text in kept), max(squad_f1(text, said) for text in kept)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_metrics_equal_a_recount_from_the_predictions(run: SimpleNamespace) -> None:
    found = json.loads((run.report / "metrics.json").read_text())
    lines = [json.loads(line) for line in (run.report / "predictions.jsonl").read_text().splitlines()]
    assert found["headline"] == "f1" and found["test_rows"] == len(lines) == run.prepared.info.splits["test"]
    for who in ("tuned", "base"):
        scored = [(bool(line["answer_texts"]), squad(line["answer_texts"], line[who]["answer"])) for line in lines]
        recount = {}
        for i, name in enumerate(("exact", "f1")):
            recount[name] = mean([score[i] for _, score in scored])
            recount[f"{name}_answerable"] = mean([score[i] for known, score in scored if known])
            recount[f"{name}_unanswerable"] = mean([score[i] for known, score in scored if not known])
        assert found[who]["metrics"] == pytest.approx(recount)
        for name, (low, high) in found[who]["intervals"].items():
            assert low <= found[who]["metrics"][name] <= high
    assert [line["correct"] for line in lines] == [
        squad(line["answer_texts"], line["tuned"]["answer"])[0] == 1 for line in lines
    ]


def test_answers_are_scored_against_their_own_rows_where_rows_before_them_were_dropped(
    run: SimpleNamespace, write_jsonl: Any, tmp_path: Path
) -> None:
    train, test = write_jsonl(tmp_path / "train.jsonl", question_rows(60)), question_rows(300)[240:270]
    for i in (0, 7, 8, 20):
        test[i]["q"] = None
    given = {"test_file_path": write_jsonl(tmp_path / "test.jsonl", test), "max_dropped_fraction": 0.5}
    inputs = {
        "model_selector_output": run.model,
        "preprocess_output": prepare(run.model, train, tmp_path / "data", **given).path,
        "pytorch_model_folder": run.tuned,
    }
    execute(steps.load("model_evaluation", TASK)(**inputs, evaluation_result=tmp_path / "report"))
    lines = [json.loads(line) for line in (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()]
    numbers = [int(line["row_id"].rpartition(":")[2]) - 1 for line in lines]
    assert numbers == [i for i in range(30) if i not in (0, 7, 8, 20)]
    scored = []
    for i, line in zip(numbers, lines, strict=True):
        assert (line["question"], line["context"]) == (test[i]["q"], test[i]["c"])
        start, end = line["tuned"]["start"], line["tuned"]["end"]
        assert line["tuned"]["answer"] == (test[i]["c"][start:end] if start >= 0 else "")
        scored.append(squad(test[i]["a"]["text"], line["tuned"]["answer"])[1])
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert found["tuned"]["metrics"]["f1"] == pytest.approx(mean(scored))


def test_the_tuned_model_learns_and_beats_the_trivial_answers(run: SimpleNamespace) -> None:
    found = json.loads((run.report / "metrics.json").read_text())
    floor = {"bert": 0.75, "llama": 0.6}[run.name]
    assert found["tuned"]["metrics"]["f1"] > floor > found["base"]["metrics"]["f1"]
    assert found["baselines"].keys() == {"first sentence", "no answer"}
    assert found["baselines"]["no answer"]["metrics"]["exact_unanswerable"] == 1
    assert all(found["tuned"]["metrics"]["f1"] > other["metrics"]["f1"] for other in found["baselines"].values())
    assert not found["base_has_head"] and has_head(run.tuned, run.tuned)
    page = (run.report / "report.html").read_text("utf-8")
    assert "Exact match" in page and "has a mean F1 of" in page


def test_training_and_evaluation_give_one_metric_under_one_name(run: SimpleNamespace) -> None:
    """The best checkpoint's validation scores, as logged in training, are those of its predictor on the same rows."""
    log = json.loads((run.tuned / "trainer_state.json").read_text())
    best = next(e for e in log["log_history"] if e["step"] == log["best_global_step"] and "eval_f1" in e)
    task, rows = tasks.load(TASK), run.prepared.rows("validation")
    found = task.evaluate(rows, predictor(run)(rows), run.prepared.info.meta, 0)
    for name in ("f1", "exact"):
        assert found.metrics[name] == pytest.approx(best[f"eval_{name}"]), name
    losses = [entry["eval_loss"] for entry in log["log_history"] if "eval_loss" in entry]
    assert min(losses) < 0.9 * losses[0]


def test_answers_are_spans_of_their_context_with_shares_as_scores(run: SimpleNamespace) -> None:
    rows = [*run.prepared.rows("test"), {"question": "what colour", "context": " \n "}]
    found = predictor(run)(rows)
    for row, answer in zip(rows, found, strict=True):
        start, end = answer["start"], answer["end"]
        assert answer["answer"] == (row["context"][start:end] if start >= 0 else "")
        assert (start, end) == (-1, -1) if not answer["answer"] else start < end
        scores = [entry["score"] for entry in answer["n_best"]]
        assert answer["score"] == scores[0] and scores == sorted(scores, reverse=True) and sum(scores) <= 1 + 1e-9
        assert {k: v for k, v in answer.items() if k != "n_best"} == answer["n_best"][0]
    assert 0 < sum(answer["start"] < 0 for answer in found) < len(found)
    assert found[-1]["answer"] == ""


def test_the_best_spans_are_those_of_all_pairs_of_tokens(run: SimpleNamespace) -> None:
    import torch

    torch.manual_seed(0)
    start, end = torch.randn(12), torch.randn(12)
    found = predictor(run)._best(start, end, 15, 4)
    pairs = [(float(start[a] + end[b]), a, b) for a in range(12) for b in range(a, min(12, a + 4))]
    assert found == sorted(pairs, reverse=True)[:15]


def far_row() -> dict[str, str]:
    filler = " ".join(FILLER.split() * 5)
    return {"question": "what colour", "context": f"7 {filler} . i like purple . {filler}"}


def test_an_answer_behind_the_first_window_is_found(run: SimpleNamespace) -> None:
    row = far_row()
    answering = predictor(run, unanswerable=False)
    place = row["context"].index("purple")
    ((_, windows),) = answering.windows([row["question"]], [row["context"]])
    assert len(windows) > 3 and windows[0][3][-1][1] < place
    found = answering([row])[0]
    assert (found["answer"], found["start"], found["end"]) == ("purple", place, place + 6)
    many = answering([row] * 5 + run.prepared.rows("test")[:7], batch_size=3)
    assert [answer["start"] for answer in many[:5]] == [place] * 5


def test_no_answer_has_the_score_of_the_window_that_says_so_the_least(run: SimpleNamespace) -> None:
    answering, row = predictor(run), far_row()
    ((_, windows),) = answering.windows([row["question"]], [row["context"]])
    logits = [answering._logits([(0, *window)]) for window in windows]
    none = [float(start[0, 0] + end[0, 0]) for start, end in logits]
    best = max(
        answering._best(start[0, first : first + len(spans)], end[0, first : first + len(spans)], 1, 30)[0][0]
        for (start, end), (_, _, first, spans) in zip(logits, windows, strict=True)
    )
    answer = answering([row], n_best_size=1)[0]
    scores = {entry["start"] < 0: entry["score"] for entry in answer["n_best"]}
    assert math.log(scores[True] / scores[False]) == pytest.approx(min(none) - best, abs=1e-3)
    assert max(none) - min(none) > 0.05 or run.name == "llama", "a decoder's first token sees no other"


def test_windows_cover_the_context_share_the_stride_and_hold_the_answer_where_it_stands(
    run: SimpleNamespace, write_jsonl: Any, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    context = far_row()["context"]
    rows = question_rows(60) + [
        {"q": "what colour " * n, "c": context, "a": answers(context, "purple")} for n in (1, 9)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    prepared = prepare(run.model, data, tmp_path / "data", deduplicate="none")
    tokenizer = Tokenizer.from_file(str(run.model / "tokenizer.json"))
    tokenizer.no_truncation()
    windows = QuestionWindows(tokenizer, LENGTH, 8)
    several = 0
    for split in ("train", "validation", "test"):
        encoded: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
        for window in prepared.encoded(split).to_pylist():
            encoded[window["row_id"]].append(window)
        for row in prepared.rows(split):
            whole = tokenizer.encode(row["context"], add_special_tokens=False)
            ((cut, found),) = windows([row["question"]], [row["context"]])
            kept = encoded[row["row_id"]]
            assert [w[0] for w in found] == [w["input_ids"] for w in kept] and max(len(w[0]) for w in found) <= LENGTH
            assert cut == (len(tokenizer.encode(row["question"], add_special_tokens=False).ids) > windows.room // 2)
            joined = list(found[0][3])
            for window in found[1:]:
                assert window[3][:8] == joined[-8:]
                joined += window[3][8:]
            assert joined == whole.offsets
            holds = []
            for window, (_, _, first, spans) in zip(kept, found, strict=True):
                start, end = window["start_positions"], window["end_positions"]
                if start:
                    text = row["context"][spans[start - first][0] : spans[end - first][1]].strip()
                    holds.append(text == row["answer_texts"][0])
            assert all(holds) and bool(holds) == bool(row["answer_texts"])
            several += len(found) > 3
            if len(found) == 1:
                pair = tokenizer.encode(row["question"], row["context"])
                assert (kept[0]["input_ids"], kept[0]["token_type_ids"]) == (pair.ids, pair.type_ids)
    assert several == 2
    assert sum(split["truncated"] for split in prepared.report()["splits"].values()) > 3, "the cut question"


def test_batches_are_padded_to_the_longest_row_or_to_the_maximum(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data, task = write_jsonl(tmp_path / "rows.jsonl", question_rows(60)), tasks.load(TASK)
    for on in (False, True):
        prepared = prepare(imported_model, data, tmp_path / str(on), pad_to_max_length=on, max_seq_length=48)
        meta = prepared.info.meta
        model = task.load_model(imported_model, meta)
        rows = prepared.encoded("train").to_pylist()[:4]
        batch = task.collator(model, meta, prepared.info.pad_to)(rows)
        longest = max(len(row["input_ids"]) for row in rows)
        assert longest < 48 and batch["input_ids"].shape == (4, 48 if on else longest)
        assert batch["start_positions"].tolist() == [row["start_positions"] for row in rows]
        assert batch["token_type_ids"].sum() > 0
        assert model(**batch).loss > 0


def test_an_answer_that_no_window_holds_is_left_out_and_counted_and_never_learnt_as_none(
    imported_model: Path, write_jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = far_row()["context"]
    long = {"q": "what colour", "c": context, "a": answers(context, context[2:150])}
    data = write_jsonl(tmp_path / "rows.jsonl", [*question_rows(60, unanswerable=False), long])
    with caplog.at_level(logging.WARNING, logger="tuneport.preprocess"):
        prepared = prepare(imported_model, data, tmp_path / "data")
    (where,) = [
        split for split in ("train", "validation", "test") if "label_cut_off" in prepared.report()["splits"][split]
    ]
    assert prepared.report()["splits"][where]["label_cut_off"] == {"rows": 1, "first": ["rows.jsonl:61"]}
    assert "have their label cut off at max_seq_length" in caplog.text
    encoded = {
        row for split in ("train", "validation", "test") for row in prepared.encoded(split)["row_id"].to_pylist()
    }
    assert len(encoded) == 60 and "rows.jsonl:61" not in encoded
    assert "rows.jsonl:61" in [row["row_id"] for row in prepared.rows(where)], "an evaluation asks it all the same"


def test_answers_that_fit_no_window_at_all_are_refused(imported_model: Path, write_jsonl: Any, tmp_path: Path) -> None:
    context = far_row()["context"]
    rows = [{"q": f"what colour {n}", "c": f"{context} {n}", "a": answers(context, context[2:150])} for n in range(30)]
    with pytest.raises(UserError, match=r"none of the 24 train rows has its label within max_seq_length=\d+ tokens"):
        prepare(imported_model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_without_unanswerable_training_rows_every_question_is_answered(
    make_model: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    model = make_model("bert")
    data = write_jsonl(tmp_path / "rows.jsonl", question_rows(80, unanswerable=False))
    prepared = prepare(model, data, tmp_path / "data")
    assert prepared.info.meta == {"max_seq_length": LENGTH, "doc_stride": 8, "unanswerable": False}
    inputs = {"model_selector_output": model, "preprocess_output": prepared.path}
    tuned, report = tmp_path / "tuned", tmp_path / "report"
    execute(steps.load("finetune", TASK)(**inputs, max_steps=2, pytorch_model_folder=tuned))
    execute(steps.load("model_evaluation", TASK)(**inputs, pytorch_model_folder=tuned, evaluation_result=report))
    lines = [json.loads(line) for line in (report / "predictions.jsonl").read_text().splitlines()]
    assert all(line[who]["answer"] for line in lines for who in ("tuned", "base"))
    found = json.loads((report / "metrics.json").read_text())
    assert found["tuned"]["metrics"].keys() == {"f1", "exact"} and found["baselines"].keys() == {"first sentence"}


def test_a_base_model_with_another_head_gets_one_for_spans(imported_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(imported_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate("abc")}
    (folder / "config.json").write_text(json.dumps(config))
    model = tasks.load(TASK).load_model(folder, {})
    assert model.qa_outputs.out_features == 2


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "said", "exact", "f1"),
    [
        (["The Red cat!"], "red cat", 1, 1),
        (["red cat", "a blue dog"], "blue", 0, 2 / 3),
        (["red cat"], "", 0, 0),
        ([], "", 1, 1),
        ([], "red", 0, 0),
        ([], "the", 1, 1),
        (["the", "red"], "", 0, 0),
        (["the"], "", 1, 1),
        (["cat cat dog"], "cat dog dog", 0, 2 / 3),
    ],
)
def test_rows_are_scored_as_squad_does(truth: list[str], said: str, exact: float, f1: float) -> None:
    found = row_scores([truth], [said])
    assert (found["exact"][0], found["f1"][0]) == pytest.approx((exact, f1))
    assert squad(truth, said) == pytest.approx((exact, f1))


def test_rows_of_one_kind_only_are_scored() -> None:
    none = {"answer": "", "score": 1.0}
    assert evaluate([[], []], [none, {"answer": "x", "score": 0.5}], 0).metrics == {
        "f1": 0.5,
        "exact": 0.5,
        "f1_unanswerable": 0.5,
        "exact_unanswerable": 0.5,
    }


def test_the_first_sentence_is_a_span_of_the_context() -> None:
    contexts = ["One. Two.", "  Is it 3.5? Yes.", "no end \n", "Only one."]
    found = baselines(contexts, False)["first sentence"]
    assert [answer["answer"] for answer in found] == ["One.", "Is it 3.5?", "no end", "Only one."]
    assert [c[a["start"] : a["end"]] for c, a in zip(contexts, found, strict=True)] == [a["answer"] for a in found]


# -- data --------------------------------------------------------------------------------------------------------------


def test_answers_may_be_json_in_a_csv_cell(imported_model: Path, write_jsonl: Any, tmp_path: Path) -> None:
    rows = question_rows(60)
    with (tmp_path / "rows.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["q", "c", "a"])
        writer.writeheader()
        writer.writerows({**row, "a": json.dumps(row["a"])} for row in rows)
    as_lines = prepare(imported_model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "lines")
    as_cells = prepare(imported_model, tmp_path / "rows.csv", tmp_path / "cells")
    for split in ("train", "validation", "test"):
        kept = [
            [{k: v for k, v in row.items() if k != "row_id"} for row in p.rows(split)] for p in (as_lines, as_cells)
        ]
        assert kept[0] == kept[1]


def test_rows_without_text_are_dropped_and_labels_reach_every_split(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    good = question_rows(60)[0]
    odd = [{"q": None}, {"c": "  "}, {"a": None}, {"a": {"text": [" "], "answer_start": [1]}}]
    rows = [*question_rows(80), *({**good, **change} for change in odd)]
    prepared = prepare(imported_model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")
    report = prepared.report()
    assert {k: v["rows"] for k, v in report["sources"]["train"]["dropped"].items()} == {
        "null in column 'q'": 1,
        "empty text in column 'c'": 1,
        "null in column 'a'": 1,
        "an empty answer in column 'a'": 1,
    }
    for split in ("train", "validation", "test"):
        assert report["splits"][split]["labels"].keys() == {"answerable", "unanswerable"}


def test_all_rows_whose_answers_are_elsewhere_are_named_together(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = question_rows(60, unanswerable=False)
    place = rows[4]["a"]["answer_start"][0]
    rows[4]["a"]["answer_start"][0] += 1
    rows[7]["a"]["text"][0] = "somewhere else"
    wrong = rows[7]["a"]["answer_start"][0]
    rows[9]["a"]["answer_start"][0] = -1
    rows[11]["a"]["answer_start"] = []
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as e:
        prepare(imported_model, data, tmp_path / "data")
    text, last = rows[4]["a"]["text"][0], rows[9]["a"]["text"][0]
    assert str(e.value) == (
        "rows.jsonl: 4 of 60 rows are wrong: an answer in column 'a' is not in the context; expected its 'text' at the "
        "character 'answer_start' of column 'c', counted from 0 (3 rows: "
        f"rows.jsonl row 5 ({text!r} at {place + 1}: it is at {place}), "
        f"rows.jsonl row 8 ('somewhere else' at {wrong}: it is nowhere), "
        f"rows.jsonl row 10 ({last!r} at -1: it is at {rows[9]['c'].index(last)})); "
        "the lists 'text' and 'answer_start' in column 'a' differ in length; expected one start a text (1 row: "
        f"rows.jsonl row 12 ({len(rows[11]['a']['text'])} texts, 0 starts)). Mend or remove them."
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": "purple"},
            "row 61: column 'a' holds no object; expected an object of the lists 'text' and 'answer_start'",
        ),
        (
            {"a": {"texts": [], "answer_start": []}},
            "holds an object of 'texts', 'answer_start'; expected .* by answer_text",
        ),
        ({"a": {"text": "x", "answer_start": 1}}, "expected an object of the lists"),
        ({"a": {"text": [3], "answer_start": [1]}}, "holds the answer 3 at 1; expected text at a whole number"),
        ({"a": {"text": ["x"], "answer_start": ["1"]}}, "holds the answer 'x' at '1'"),
        ({"q": ["x"]}, r"column 'q' holds \['x'\]; expected text"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(
    change: dict[str, Any], message: str, imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = question_rows(61)
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows[:60], {**rows[60], **change}])
    with pytest.raises(UserError, match=message):
        prepare(imported_model, data, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_stride_that_leaves_no_room_for_a_question_is_refused(
    imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", question_rows(60))
    message = r"doc_stride=22: is too large for max_seq_length=32.* expected at most 21\. Set doc_stride=7, or raise"
    with pytest.raises(UserError, match=message):
        prepare(imported_model, data, tmp_path / "data", doc_stride=22)
    prepare(imported_model, data, tmp_path / "data", doc_stride=21)


def test_a_long_question_leaves_its_windows_more_than_they_share(imported_model: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(imported_model / "tokenizer.json"))
    for stride, longest in ((0, 14), (14, 14), (15, 13), (21, 7)):
        windows = QuestionWindows(tokenizer, LENGTH, stride)
        assert windows.longest_question == longest
        ((cut, found),) = windows(["who " * 60], ["the cat sat on a mat and then it slept " * 3])
        assert cut and all(len(ids) <= LENGTH for ids, *_ in found)
        starts = [places[0][0] for *_, places in found]
        assert starts == sorted(set(starts)) and len(starts) > 1


def test_data_without_any_answer_is_refused(imported_model: Path, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{**row, "a": {"text": [], "answer_start": []}} for row in question_rows(60)]
    with pytest.raises(UserError, match="column 'a': no training row has an answer; expected some that do"):
        prepare(imported_model, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "data")


def test_a_tokenizer_that_loses_the_places_of_words_is_refused(
    tiny_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    folder, imported = Path(shutil.copytree(tiny_model, tmp_path / "model")), Model(tmp_path / "imported")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = None  # a whole text is one token
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    execute(steps.load("model_import")(pytorch_model_path=CustomModel(folder), model_selector_output=imported))
    data = write_jsonl(tmp_path / "rows.jsonl", question_rows(60))
    with pytest.raises(UserError, match="does not tell which characters its tokens stand for, so that answers"):
        prepare(imported.path, data, tmp_path / "data")


# -- every parameter ---------------------------------------------------------------------------------------------------

PREPROCESS: dict[str, tuple[Any, Any]] = {
    "question_key": ("q", "other_q"),
    "context_key": ("c", "other_c"),
    "answers_key": ("a", "other_a"),
    "answer_start_key": ("answer_start", "other_start"),
    "answer_text_key": ("text", "other_text"),
    "doc_stride": (8, 4),
}
ANSWERING: dict[str, tuple[Any, Any]] = {"n_best_size": (20, 2), "max_answer_length_in_tokens": (30, 1)}
EVALUATION = {**ANSWERING, "trivial_baselines": (True, False)}
FINETUNE = {"metric_for_best_model": ("loss", "exact")}
EXPORT = {"export_formats"}  # in test_onnx_export.py


def test_the_tables_cover_every_parameter_of_the_task() -> None:
    own = {name for group in tasks.load(TASK).params.values() for name in group.ports()}
    assert own == {*PREPROCESS, *EVALUATION, *FINETUNE, *EXPORT} <= pipelines.load(TASK).params.keys()


@pytest.mark.parametrize("name", PREPROCESS)
def test_a_preprocess_parameter_has_an_effect(
    name: str, imported_model: Path, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = []
    for row in question_rows(60, unanswerable=False):
        context = row["c"] + f" again {FILLER} {FILLER}"
        text = row["a"]["text"][0]
        found = {**answers(context, text), "other_start": [context.index(text)], "other_text": [text[:3]]}
        if name == "answer_start_key":
            context += " " + text
            found["other_start"] = [context.rindex(text)]
        other = {"text": [text[:2]], "answer_start": [context.index(text)]}
        rows.append(
            {"q": row["q"], "other_q": "why", "c": context, "other_c": context + " .", "a": found, "other_a": other}
        )
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    written = []
    for value in PREPROCESS[name]:
        prepared = prepare(imported_model, data, tmp_path / str(value), **{name: value})
        written.append((prepared.rows("train"), prepared.encoded("train").to_pylist()))
    assert written[0] != written[1]


@pytest.mark.parametrize("name", EVALUATION)
def test_a_model_evaluation_parameter_has_an_effect(name: str, run: SimpleNamespace, tmp_path: Path) -> None:
    inputs = {
        "model_selector_output": run.model,
        "preprocess_output": run.prepared.path,
        "pytorch_model_folder": run.tuned,
    }
    written = []
    for value in EVALUATION[name]:
        report = tmp_path / str(value)
        execute(steps.load("model_evaluation", TASK)(**inputs, evaluation_result=report, **{name: value}))
        written.append([(report / file).read_text() for file in ("predictions.jsonl", "metrics.json")])
    assert written[0] != written[1]


@pytest.mark.parametrize("name", ANSWERING)
def test_a_model_export_parameter_is_the_default_of_the_served_model(
    name: str, run: SimpleNamespace, tmp_path: Path
) -> None:
    from mlflow.models import Model as Saved

    inputs = {"preprocess_output": run.prepared.path, "pytorch_model_folder": run.tuned}
    for value in ANSWERING[name]:
        folder = tmp_path / str(value)
        execute(steps.load("model_export", TASK)(**inputs, mlflow_model_folder=folder, **{name: value}))
        defaults = {spec.name: spec.default for spec in Saved.load(str(folder)).signature.params}
        assert defaults[name] == value


def test_the_metric_for_the_best_model_decides(run: SimpleNamespace, tmp_path: Path) -> None:
    found = []
    for metric in FINETUNE["metric_for_best_model"]:
        stage: Any = steps.load("finetune", TASK)(
            model_selector_output=run.model,
            preprocess_output=run.prepared.path,
            pytorch_model_folder=tmp_path / metric,
            max_steps=4,
            metric_for_best_model=metric,
        )
        execute(stage)
        found.append(json.loads((tmp_path / metric / "trainer_state.json").read_text()))
    logs = [next(e for e in state["log_history"] if "eval_loss" in e) for state in found]
    assert [state["best_metric"] for state in found] == [logs[0]["eval_loss"], logs[1]["eval_exact"]]


# -- the served model --------------------------------------------------------------------------------------------------

SERVE = """
import sys
import json, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
payloads = json.loads(sys.stdin.read())
answers = [model.predict(payload).to_dict("records") for payload in (*payloads, pd.DataFrame(payloads[0]))]
short = {"max_answer_length_in_tokens": 1, "n_best_size": 2}
answers.append(model.predict(payloads[0], params=short).to_dict("records"))
print(json.dumps(answers))
try:
    model.predict(payloads[0], params={"n_best_size": 0})
except mlflow.exceptions.MlflowException as e:
    assert "params: n_best_size=0 is not valid; expected a number > 0" in str(e), e
else:
    raise AssertionError("n_best_size=0 was taken")
assert not [name for name in sys.modules if name.partition(".")[0] in ("tuneport", "steps") and sys.modules[name]]
"""


def test_the_exported_model_answers_without_tuneport(run: SimpleNamespace, fenced_python: Any, tmp_path: Path) -> None:
    rows = [*run.prepared.rows("test")[:5], far_row()]
    records = [{"q": row["question"], "c": row["context"]} for row in rows]
    payloads: list[Any] = [records, {key: [r[key] for r in records] for key in ("q", "c")}]
    done = fenced_python(SERVE, str(run.exported), input=json.dumps(payloads), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *same, short = json.loads(done.stdout)
    answering = predictor(run)
    for got, wanted in ((found, answering(rows)) for found in same):
        compare(got, wanted)
    compare(short, answering(rows, max_answer_length_in_tokens=1, n_best_size=2))
    assert short != same[0]


def compare(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert [a[k] for k in ("answer", "start", "end")] == [b[k] for k in ("answer", "start", "end")]
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
        assert [e["answer"] for e in a["n_best"]] == [e["answer"] for e in b["n_best"]]
