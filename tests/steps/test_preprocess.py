"""preprocess turns a user's rows into tokenised splits, or names the row that is wrong and leaves nothing behind."""

import csv
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import steps
from tuneport.artifacts import Model, write_manifest
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

Preprocess = steps.load("preprocess", "text_classification")
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What model_import hands on, without the weights: preprocess does not read them."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    write_manifest(Model(folder), "model_import", "0", {}, {})
    return folder


@pytest.fixture
def preprocess(model: Path, tmp_path: Path) -> Callable[..., Prepared]:
    """Run the stage in this process."""

    def run(**values: Any) -> Prepared:
        out = tmp_path / values.pop("out", "out")
        values = {"sentence1_key": "text", "label_key": "label", **values}
        execute(Preprocess(model_selector_output=model, preprocess_output=out, **values))
        return Prepared(out)

    return run


@pytest.fixture
def refuse(preprocess: Callable[..., Prepared], tmp_path: Path) -> Callable[..., str]:
    """Run the stage, which must refuse with the returned message and leave nothing where the output would be."""

    def run(**values: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError) as e:
            preprocess(**values)
        assert sorted(tmp_path.rglob("*")) == before
        return str(e.value)

    return run


@pytest.fixture
def train(questions, write_jsonl, tmp_path) -> Path:
    return write_jsonl(tmp_path / "train.jsonl", questions)


def ids(prepared: Prepared, split: str) -> list[str]:
    return [row["row_id"] for row in prepared.rows(split)]


def texts(prepared: Prepared, split: str) -> list[str]:
    return [row["sentence1"] for row in prepared.rows(split)]


# -- what it writes ----------------------------------------------------------------------------------------------------


def test_train_rows_alone_give_three_splits_that_lose_and_share_nothing(preprocess, train, questions):
    prepared = preprocess(train_file_path=train)
    info = prepared.info
    assert (info.task_name, info.columns) == ("text_classification", {"sentence1": "text", "label": "label"})
    assert info.meta == {"labels": ["animal", "colour", "number"], "multi_label": False}
    assert (info.max_seq_length, info.pad_to) == (64, None)
    assert info.splits == {"train": 96, "validation": 12, "test": 12}
    found = {}
    for split in SPLITS:
        for row in prepared.rows(split):
            file, _, number = row["row_id"].partition(":")
            assert file == "train.jsonl"
            assert questions[int(number) - 1] == {"text": row["sentence1"], "label": row["label"]}
            found[int(number)] = split
        assert Counter(row["label"] for row in prepared.rows(split)) == dict.fromkeys(
            info.meta["labels"], info.splits[split] // 3
        )
    assert sorted(found) == list(range(1, 121))


def test_encoded_rows_are_the_tokens_of_the_raw_rows(preprocess, train, tiny_model):
    from transformers import AutoTokenizer

    prepared = preprocess(train_file_path=train)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for split in SPLITS:
        encoded = prepared.encoded(split)
        assert encoded.schema == pa.schema(
            [
                ("row_id", pa.string()),
                ("input_ids", pa.list_(pa.int32())),
                ("labels", pa.int64()),
                ("length", pa.int32()),
            ]
        )
        rows = prepared.rows(split)
        assert encoded["row_id"].to_pylist() == [row["row_id"] for row in rows]
        assert encoded["input_ids"].to_pylist() == tokenizer([row["sentence1"] for row in rows])["input_ids"]
        assert encoded["length"].to_pylist() == [len(ids) for ids in encoded["input_ids"].to_pylist()]
        assert [prepared.info.meta["labels"][i] for i in encoded["labels"].to_pylist()] == [
            row["label"] for row in rows
        ]


def test_long_rows_are_cut_and_counted_and_padding_is_left_to_the_collator(preprocess, train):
    prepared = preprocess(train_file_path=train, max_seq_length=7, pad_to_max_length=True)
    assert (prepared.info.max_seq_length, prepared.info.pad_to) == (7, 7)
    lengths = [n for split in SPLITS for n in prepared.encoded(split)["length"].to_pylist()]
    assert max(lengths) == 7
    assert min(lengths) < 7
    full = preprocess(train_file_path=train, out="full")
    longer = {split: sum(n > 7 for n in full.encoded(split)["length"].to_pylist()) for split in SPLITS}
    report = prepared.report()["splits"]
    assert {split: report[split]["truncated"] for split in SPLITS} == longer
    assert report["train"]["tokens"]["max"] == 7


def test_the_seed_decides_the_split_and_equal_runs_are_equal_in_every_byte(preprocess, train):
    first, again, other = (
        preprocess(train_file_path=train, out=out, split_seed=seed) for out, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    contents = [
        {p.relative_to(x.path): p.read_bytes() for p in x.path.rglob("*") if p.is_file()} for x in (first, again)
    ]
    assert contents[0] == contents[1]
    assert ids(first, "test") != ids(other, "test")


@pytest.mark.parametrize("given", [("validation",), ("test",), ("validation", "test")])
def test_a_given_split_is_used_whole_and_only_the_missing_one_is_taken_from_train(
    preprocess, questions, write_jsonl, tmp_path, given
):
    parts = {"train": questions[:90], "validation": questions[90:105], "test": questions[105:]}
    files = {f"{s}_file_path": write_jsonl(tmp_path / f"{s}.jsonl", parts[s]) for s in ("train", *given)}
    prepared = preprocess(**files)
    for split in given:
        assert ids(prepared, split) == [f"{split}.jsonl:{i}" for i in range(1, 16)]
    missing = set(SPLITS) - {"train", *given}
    for split in missing:
        assert len(ids(prepared, split)) == 9
    assert sum(prepared.info.splits.values()) == 90 + 15 * len(given)


def test_the_batch_size_is_that_of_the_stored_batches(preprocess, train):
    prepared = preprocess(train_file_path=train, batch_size=20)
    for kind in ("encoded", "rows"):
        sizes = [len(b) for b in pa.ipc.open_stream((prepared.path / kind / "train-00000.arrow").read_bytes())]
        assert sizes == [20, 20, 20, 20, 16]


def test_pairs_are_encoded_with_token_types(preprocess, questions, write_jsonl, tmp_path):
    rows = [{"premise": q["text"], "hypothesis": q["label"], "label": q["label"]} for q in questions]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    prepared = preprocess(train_file_path=path, sentence1_key="premise", sentence2_key="hypothesis")
    first = prepared.encoded("train").slice(0, 1).to_pylist()[0]
    assert 1 in first["token_type_ids"]
    assert len(first["token_type_ids"]) == len(first["input_ids"])
    assert set(prepared.rows("train")[0]) == {"row_id", "sentence1", "sentence2", "label"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_several_labels_a_row_come_from_json_and_from_csv_cells(preprocess, questions, write_jsonl, tmp_path, suffix):
    path = tmp_path / f"multi.{suffix}"
    high = [bool({"seven", "eight"} & set(q["text"].split())) for q in questions]
    assert sum(high) >= 10
    rows = [{"text": q["text"], "label": [q["label"]] + ["high"] * h} for q, h in zip(questions, high, strict=True)]
    if suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        with path.open("w", newline="") as f:
            csv.writer(f).writerows([["text", "label"], *([r["text"], json.dumps(r["label"])] for r in rows)])
    prepared = preprocess(train_file_path=path, multi_label=True)
    assert prepared.info.meta == {"labels": ["animal", "colour", "high", "number"], "multi_label": True}
    assert set(map(tuple, prepared.encoded("train")["labels"].to_pylist())) == {
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 0, 1),
        (0, 0, 1, 1),
    }
    report = prepared.report()["splits"]
    assert sum(report[s]["labels"]["high"] for s in SPLITS) == sum(high)
    assert all(report[s]["labels"]["high"] for s in SPLITS), "the rarest label reaches every split"


def test_an_mltable_wins_over_a_file_with_a_warning(*, preprocess, questions, write_jsonl, train, tmp_path, caplog):
    folder = tmp_path / "table"
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", questions[:60])
    (folder / "MLTable").write_text("paths: [{file: rows.jsonl}]\ntransformations: [read_json_lines]")
    prepared = preprocess(train_file_path=train, train_mltable_path=folder)
    assert sum(prepared.info.splits.values()) == 60
    assert "train_mltable_path is used; train_file_path is ignored as both are given" in caplog.text


def test_a_glob_over_folders_is_one_source(preprocess, questions, write_jsonl, tmp_path):
    for i, part in enumerate(("a", "b")):
        (tmp_path / part).mkdir()
        write_jsonl(tmp_path / part / "rows.jsonl", questions[i * 60 : i * 60 + 60])
    prepared = preprocess(train_file_path=tmp_path / "*" / "rows.jsonl")
    found = sorted(i for split in SPLITS for i in ids(prepared, split))
    assert found == sorted(f"{part}/rows.jsonl:{n}" for part in "ab" for n in range(1, 61))


def test_odd_paths_work(preprocess, questions, write_jsonl, tmp_path):
    folder = tmp_path / 'it\'s "odd" \\ ünïcode\nnew line'
    folder.mkdir()
    path = write_jsonl(folder / "a 'b' \"c\" \\ ☃\n.jsonl", questions)
    prepared = preprocess(train_file_path=path, out=f"{folder.name}/out 'x'")
    assert ids(prepared, "train")[0].startswith("a 'b' \"c\" \\ ☃\n.jsonl:")


def test_no_torch_is_imported(model, train, tmp_path):
    code = (
        "import sys, steps; from tuneport.stage import execute\n"
        "stage = steps.load('preprocess', 'text_classification')\n"
        "execute(stage(model_selector_output=sys.argv[1], train_file_path=sys.argv[2], preprocess_output=sys.argv[3],"
        " sentence1_key='text', label_key='label'))\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'mlflow', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, model, train, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_column_in_one_cell_does_not_fill_the_message(refuse, write_jsonl, tmp_path):
    column = [f"row number {n}" for n in range(100_000)]
    message = refuse(train_file_path=write_jsonl(tmp_path / "rows.jsonl", [{"text": column, "label": "a"}] * 2))
    assert "column 'text' holds ['row number 0'" in message and message.endswith("expected text.")
    assert len(message) < 300


@pytest.mark.parametrize("indent", [None, 1])
def test_columns_as_lists_are_named_as_such(refuse, tmp_path, indent):
    columns = {"text": [f"row number {n}" for n in range(100_000)], "label": [n % 2 for n in range(100_000)]}
    (tmp_path / "train.json").write_text(json.dumps(columns, indent=indent))
    assert refuse(train_file_path=tmp_path / "train.json") == (
        "train.json: holds columns, as pandas' orient='list' writes them, under ['text', 'label']; expected one object "
        "a row. Write it with DataFrame.to_json(path, orient='records', lines=True)."
    )


# -- dropped rows and duplicates ---------------------------------------------------------------------------------------


def test_unusable_rows_are_counted_explained_and_exported(preprocess, questions, write_jsonl, tmp_path):
    rows = [*questions, {"text": None, "label": "animal"}, {"text": " ", "label": "animal"}, {"text": "x", "more": [1]}]
    prepared = preprocess(train_file_path=write_jsonl(tmp_path / "train.jsonl", rows))
    dropped = [json.loads(line) for line in (prepared.path / "dropped.jsonl").read_text().splitlines()]
    assert dropped == [
        {"where": "train.jsonl row 121", "reason": "null in column 'text'", "row": rows[120]},
        {"where": "train.jsonl row 122", "reason": "empty text in column 'text'", "row": rows[121]},
        {"where": "train.jsonl row 123", "reason": "null in column 'label'", "row": rows[122]},
    ]
    source = prepared.report()["sources"]["train"]
    assert (source["file"], source["read"], source["kept"]) == ("train.jsonl", 123, 120)
    assert source["dropped"]["null in column 'label'"] == {"rows": 1, "first": ["train.jsonl row 123"]}


def test_too_many_nulls_in_a_required_column_fail_with_rows_and_column(
    refuse, preprocess, questions, write_jsonl, tmp_path
):
    rows = [q | {"label": None} if i % 10 == 3 else q for i, q in enumerate(questions)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refuse(train_file_path=path)
    assert message.startswith(
        "train.jsonl: 12 of 120 rows cannot be used: null in column 'label' "
        "(12 rows: train.jsonl row 4, train.jsonl row 14, "
    )
    assert "max_dropped_fraction=0.05" in message
    assert preprocess(train_file_path=path, max_dropped_fraction=0.1).report()["sources"]["train"]["kept"] == 108


def test_text_with_half_a_surrogate_pair_is_dropped(preprocess, questions, tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [*questions, {"text": "broken \ud83d", "label": "animal"}, {"text": "fine", "label": "broken \ud83d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = preprocess(train_file_path=path)
    assert list(prepared.report()["sources"]["train"]["dropped"]) == ["text that is not valid Unicode"]
    assert sum(prepared.info.splits.values()) == 120


def test_duplicates_are_removed_before_splitting_and_not_counted_as_dropped(
    preprocess, questions, write_jsonl, tmp_path, caplog
):
    other = [{"text": q["text"], "label": "other"} for q in questions[:5]]
    path = write_jsonl(tmp_path / "train.jsonl", [*questions, *questions, *other])
    prepared = preprocess(train_file_path=path, max_dropped_fraction=0)
    kept = sorted(int(i.split(":")[1]) for split in SPLITS for i in ids(prepared, split))
    assert kept == list(range(1, 121)), "the first of each is kept"
    assert prepared.report()["duplicates"] == {
        "deduplicate": "exact",
        "duplicates": 125,
        "with_another_label": 5,
        "removed": {"train": 125, "validation": 0, "test": 0},
    }
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING and "near" not in r.message]
    assert warnings == ["125 duplicates removed, of which 5 with another label"]


def test_a_copy_stays_in_the_test_rows_rather_than_in_validation_or_train(preprocess, questions, write_jsonl, tmp_path):
    files = {
        "train_file_path": write_jsonl(tmp_path / "train.jsonl", questions[:100]),
        "validation_file_path": write_jsonl(tmp_path / "validation.jsonl", questions[80:110]),
        "test_file_path": write_jsonl(tmp_path / "test.jsonl", questions[90:]),
    }
    prepared = preprocess(**files)
    assert texts(prepared, "test") == [q["text"] for q in questions[90:]]
    assert texts(prepared, "validation") == [q["text"] for q in questions[80:90]]
    assert texts(prepared, "train") == [q["text"] for q in questions[:80]]
    assert prepared.report()["duplicates"]["removed"] == {"train": 20, "validation": 20, "test": 0}
    assert [prepared.report()["sources"][s]["kept"] for s in SPLITS] == [80, 10, 30]


def test_duplicates_may_be_kept_and_are_then_reported(preprocess, questions, write_jsonl, tmp_path):
    files = {
        "train_file_path": write_jsonl(tmp_path / "train.jsonl", [*questions[:100], questions[0]]),
        "validation_file_path": write_jsonl(tmp_path / "validation.jsonl", questions[95:110]),
        "test_file_path": write_jsonl(tmp_path / "test.jsonl", questions[108:]),
    }
    prepared = preprocess(**files, deduplicate="none")
    assert prepared.info.splits == {"train": 101, "validation": 15, "test": 12}
    assert prepared.report()["duplicates"] == {
        "deduplicate": "none",
        "duplicates": 8,
        "with_another_label": 0,
        "within": {"train": 1, "validation": 0, "test": 0},
        "across": {"validation rows also in train": 5, "test rows also in train": 0, "test rows also in validation": 2},
    }


# -- labels that look alike --------------------------------------------------------------------------------------------

OTHERWISE = {
    "trailing space": "animal ",
    "no-break space": "animal\u00a0",
    "zero-width space": "ani\u200bmal",
    "zero-width joiner": "animal\u200d",
    "byte order mark": "\ufeffanimal",
    "line break": "animal\r\n",
}


@pytest.mark.parametrize("spelling", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("split", SPLITS)
def test_a_label_that_no_eye_tells_apart_is_no_class_of_its_own(
    *, preprocess, questions, write_jsonl, tmp_path, caplog, spelling, split
):
    parts = {"train": questions[:90], "validation": questions[90:105], "test": questions[105:]}
    changed = sum(q["label"] == "animal" for q in parts[split][:10])
    parts[split] = [q | {"label": spelling} if q["label"] == "animal" else q for q in parts[split][:10]] + parts[split][
        10:
    ]
    files = {f"{s}_file_path": write_jsonl(tmp_path / f"{s}.jsonl", rows) for s, rows in parts.items()}
    prepared = preprocess(**files)
    assert prepared.info.meta["labels"] == ["animal", "colour", "number"]
    assert changed and prepared.report()["label_spellings"] == {"merged": {"animal": {spelling: changed}}}
    assert f"{changed} labels are written otherwise and counted as one, {spelling!a} as 'animal'" in caplog.text


def test_a_composed_and_a_decomposed_label_are_one_and_may_be_kept_apart(preprocess, questions, write_jsonl, tmp_path):
    forms = ("caf\u00e9", "cafe\u0301", "tea")
    rows = [{"text": q["text"], "label": forms[i % 3]} for i, q in enumerate(questions)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    assert preprocess(train_file_path=path).info.meta["labels"] == ["caf\u00e9", "tea"]
    exact = preprocess(train_file_path=path, out="exact", equal_labels="exact")
    assert exact.info.meta["labels"] == sorted(forms)
    assert "label_spellings" not in exact.report()


def test_labels_in_lists_are_merged_too(preprocess, questions, write_jsonl, tmp_path):
    rows = [{"text": q["text"], "label": [q["label"], q["label"] + " ", "x"]} for q in questions]
    prepared = preprocess(train_file_path=write_jsonl(tmp_path / "train.jsonl", rows), multi_label=True)
    assert prepared.info.meta["labels"] == ["animal", "colour", "number", "x"]
    assert {len(row["label"]) for row in prepared.rows("train")} == {2}


@pytest.mark.parametrize(
    ("forms", "alike"), [(("Pos", "pos", "neg"), "pos"), (("1.0", "1", "0"), "1"), (("B-x", "b-X", "o"), "b-x")]
)
def test_labels_that_may_be_one_are_kept_apart_and_named_until_the_user_decides(
    *, preprocess, questions, write_jsonl, tmp_path, caplog, forms, alike
):
    rows = [{"text": q["text"], "label": forms[i % 3]} for i, q in enumerate(questions)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    prepared = preprocess(train_file_path=path)
    assert len(prepared.info.meta["labels"]) == 3
    assert prepared.report()["label_spellings"] == {"alike": [dict.fromkeys(sorted(forms[:2]), 40)]}
    assert "labels that may be one are kept apart" in caplog.text and "equal_labels=alike" in caplog.text
    one = preprocess(train_file_path=path, out="one", equal_labels="alike")
    assert one.info.meta["labels"] == sorted([forms[0], forms[2]])
    assert one.report()["label_spellings"] == {"merged": {forms[0]: {forms[1]: 40}}}


def test_an_unseen_label_that_may_be_a_known_one_is_named_with_the_way_out(refuse, train, write_jsonl, tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [{"text": "new", "label": "Animal"}])
    message = refuse(train_file_path=train, test_file_path=path)
    assert message.endswith("Is 'Animal' the label 'animal'? equal_labels=alike makes them one.")


def test_a_label_with_nothing_to_see_is_dropped(preprocess, questions, write_jsonl, tmp_path):
    rows = [*questions, {"text": "a", "label": " "}, {"text": "b", "label": "\u200b"}]
    report = preprocess(train_file_path=write_jsonl(tmp_path / "train.jsonl", rows)).report()
    assert report["sources"]["train"]["dropped"]["a label without a visible character"]["rows"] == 2


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_header_in_the_midst_of_the_rows_is_no_row(*, preprocess, questions, write_jsonl, tmp_path, caplog, suffix):
    rows = [*questions[:50], {"text": "text", "label": "label"}, *questions[50:]]
    path = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        write_jsonl(path, rows)
    prepared = preprocess(train_file_path=path)
    assert prepared.info.meta["labels"] == ["animal", "colour", "number"]
    assert prepared.report()["sources"]["train"]["dropped"] == {
        "a header in the midst of the rows": {"rows": 1, "first": [f"train.{suffix} row 51"]}
    }
    assert f"1 rows left out: a header in the midst of the rows (train.{suffix} row 51)" in caplog.text


def test_tags_are_merged_and_iob_is_told_by_what_they_mean(model, questions, write_jsonl, tmp_path):
    rows = [
        {"words": q["text"].split(), "tags": [("B-x", "B-x ", "\u200bB-x", "O")[i % 4]] * len(q["text"].split())}
        for i, q in enumerate(questions)
    ]
    stage = steps.load("preprocess", "token_classification")
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    execute(
        stage(
            model_selector_output=model,
            preprocess_output=tmp_path / "out",
            train_file_path=path,
            token_key="words",
            tag_key="tags",
        )
    )
    prepared = Prepared(tmp_path / "out")
    assert prepared.info.meta == {"labels": ["O", "B-x"], "iob": True}
    assert set(prepared.report()["label_spellings"]["merged"]["B-x"]) == {"B-x ", "\u200bB-x"}


# -- near duplicates and groups ----------------------------------------------------------------------------------------


@pytest.fixture
def apart(questions) -> list[dict[str, str]]:
    """The questions with a long text of its own each, so that no two are near duplicates."""
    return [
        {"text": f"{hashlib.sha256(q['text'].encode()).hexdigest()} {q['text']}", "label": q["label"]}
        for q in questions
    ]


def test_a_planted_near_copy_across_splits_is_removed_and_stays_in_test(
    preprocess, apart, write_jsonl, tmp_path, caplog
):
    planted = [{"text": q["text"].upper() + "  ?", "label": "animal"} for q in apart[:3]]
    files = {
        "train_file_path": write_jsonl(tmp_path / "train.jsonl", [*apart, apart[5]]),
        "validation_file_path": write_jsonl(tmp_path / "validation.jsonl", [*planted[1:], {**apart[9], "text": "new"}]),
        "test_file_path": write_jsonl(tmp_path / "test.jsonl", planted[:2]),
    }
    prepared = preprocess(**files, deduplicate="near")
    assert prepared.info.splits == {"train": 117, "validation": 2, "test": 2}
    assert texts(prepared, "train") == [q["text"] for q in apart[3:]]
    report = prepared.report()
    assert report["duplicates"]["removed"] == {"train": 1, "validation": 1, "test": 0}
    assert report["near_duplicates"] == {
        "threshold": 0.8,
        "checked_rows": 124,
        "rows": 126,
        "near_duplicates": 3,
        "removed": {"train": 3, "validation": 0, "test": 0},
    }
    assert "3 near duplicates removed, of which 2 with another label" in caplog.text
    assert report["sources"]["train"]["near_duplicates_removed"] == 3
    assert report["sources"]["train"]["kept"] == 117

    caplog.clear()
    kept = preprocess(**files, out="kept")
    assert kept.info.splits == {"train": 120, "validation": 2, "test": 2}
    near = kept.report()["near_duplicates"]
    assert near["across"] == {
        "validation rows also in train": 1,
        "test rows also in train": 2,
        "test rows also in validation": 0,
    }
    assert (
        "near duplicates across splits, 1 validation rows also in train, 2 test rows also in train "
        "(looked for in 124 of 124 rows): deduplicate=near removes them" in caplog.text
    )


@pytest.mark.parametrize("deduplicate", ["none", "exact", "near"])
def test_a_group_stays_in_one_split(preprocess, apart, write_jsonl, tmp_path, deduplicate):
    rows = [{**q, "author": i % 31} for i, q in enumerate([*apart, *apart[:7]])]
    path = write_jsonl(tmp_path / "train.jsonl", [*rows, {**rows[0], "author": None}, {**rows[0], "author": " "}])
    prepared = preprocess(train_file_path=path, group_key="author", deduplicate=deduplicate)
    authors = {s: {(int(i.split(":")[1]) - 1) % 31 for i in ids(prepared, s)} for s in SPLITS}
    assert all(authors.values())
    assert sum(map(len, authors.values())) == len(set().union(*authors.values())) == 31
    report = prepared.report()
    assert report["groups"]["groups"] == {s: len(authors[s]) for s in SPLITS}
    assert not any(shared["groups"] for shared in report["groups"]["across"].values())
    assert report["sources"]["train"]["dropped"] == {
        "no group in column 'author'": {"rows": 2, "first": ["train.jsonl row 128", "train.jsonl row 129"]}
    }


def test_a_group_in_two_given_splits_is_reported_and_nothing_is_dropped(
    preprocess, apart, write_jsonl, tmp_path, caplog
):
    rows = [{**q, "author": f"a{i // 10}"} for i, q in enumerate(apart)]
    files = {
        "train_file_path": write_jsonl(tmp_path / "train.jsonl", rows[:95]),
        "test_file_path": write_jsonl(tmp_path / "test.jsonl", rows[95:]),
    }
    prepared = preprocess(**files, group_key="author")
    assert prepared.info.splits["test"] == 25
    assert sum(prepared.info.splits.values()) == 120
    across = prepared.report()["groups"]["across"]
    assert sum(shared["groups"] for shared in across.values()) == 1
    assert across["train and validation"] == {"groups": 0, "rows": 0}
    assert sum(shared["rows"] for shared in across.values()) == 10
    assert "1 groups are in both " in caplog.text


def test_a_missing_group_column_is_refused_with_a_suggestion(refuse, train):
    message = refuse(train_file_path=train, group_key="labl")
    assert "group_key=labl" in message
    assert "Did you mean 'label'?" in message


@pytest.mark.parametrize(("groups", "held"), [(1, "all are of one group"), (2, "are of 2 groups")])
def test_too_few_groups_to_split_are_refused(*, refuse, apart, write_jsonl, tmp_path, groups, held):
    path = write_jsonl(tmp_path / "train.jsonl", [{**q, "g": i % groups} for i, q in enumerate(apart)])
    message = refuse(train_file_path=path, group_key="g")
    assert message.startswith(f"group_key='g': the 120 training rows of train.jsonl {held}; expected at least 3")
    assert "Give validation_file_path and test_file_path" in message


@pytest.mark.parametrize("threshold", [0.49, 1.01])
def test_a_threshold_out_of_bounds_is_refused(refuse, train, threshold):
    assert "near_duplicate_threshold" in refuse(train_file_path=train, near_duplicate_threshold=threshold)


# -- bad input ---------------------------------------------------------------------------------------------------------


def run_command(model: Path, out: Path, *flags: Any) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "steps",
        "preprocess",
        "--task_name",
        "text_classification",
        "--label_key",
        "label",
    ]
    command += ["--model_selector_output", str(model), "--preprocess_output", str(out), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_ends_with_exit_code_2_and_one_message_for_a_missing_file(model, train, tmp_path):
    done = run_command(
        model, tmp_path / "out", "--train_file_path", tmp_path / "trian.jsonl", "--sentence1_key", "text"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: train_file_path=")
    assert "Did you mean 'train.jsonl'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == [train]


def test_the_command_ends_with_exit_code_2_for_a_row_that_is_not_json(model, questions, write_jsonl, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", questions)
    path.write_text(path.read_text() + "not json\n")
    done = run_command(model, tmp_path / "out", "--train_file_path", path, "--sentence1_key", "text")
    assert done.returncode == 2
    assert "error: train.jsonl row 121: is not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_command_runs_the_stage_and_says_what_it_did(model, train, tmp_path):
    done = run_command(model, tmp_path / "out", "--train_file_path", train, "--sentence1_key", "text")
    assert done.returncode == 0, done.stderr
    assert "train 96, validation 12, test 12 rows of at most 64 tokens" in done.stderr
    assert Prepared(tmp_path / "out").info.splits["train"] == 96


def test_no_training_data_is_refused(refuse, train):
    assert refuse() == "no training data: expected train_file_path or train_mltable_path."
    assert refuse(test_file_path=train).startswith("no training data")


def test_an_empty_file_is_refused(refuse, tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    assert refuse(train_file_path=tmp_path / "train.csv").startswith("train.csv: is empty")


def test_an_unreadable_file_is_refused(refuse, tmp_path):
    (tmp_path / "train.jsonl").symlink_to("/proc/self/mem")
    assert refuse(train_file_path=tmp_path / "train.jsonl").startswith("train.jsonl: cannot be read")


def test_a_missing_column_is_refused_with_a_suggestion_before_the_model_exists(refuse, train, tmp_path):
    expected = "columns 'sentence1_key=txt' not found in train.jsonl; it has: text, label. Did you mean 'text'?"
    assert refuse(train_file_path=train, sentence1_key="txt") == expected
    stage = Preprocess(
        model_selector_output=tmp_path / "not yet", train_file_path=train, sentence1_key="txt", label_key="label"
    )
    with pytest.raises(UserError, match="sentence1_key=txt"):
        stage.check_files()


def test_mixed_types_in_the_label_column_are_refused_by_row(refuse, questions, write_jsonl, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [*questions, {"text": "new", "label": 3}])
    message = refuse(train_file_path=path)
    assert message.startswith("train.jsonl row 121: column 'label' holds a whole number 3, but earlier rows hold text")


def test_a_label_seen_only_in_test_is_refused(refuse, train, write_jsonl, tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [{"text": "new", "label": "plant"}])
    message = refuse(train_file_path=train, test_file_path=path)
    assert "column 'label': the label(s) 'plant' are in the test rows but in no training row" in message


def test_one_class_only_is_refused(refuse, questions, write_jsonl, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [q | {"label": "same"} for q in questions])
    assert "column 'label' holds 1 label(s) in the training rows (same)" in refuse(train_file_path=path)


def test_fewer_training_rows_than_min_rows_are_refused(refuse, preprocess, questions, write_jsonl, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", questions[:11])
    message = refuse(train_file_path=path)
    assert message.startswith("train.jsonl: leaves 9 training rows (11 read, ")
    assert "min_rows=10" in message
    assert preprocess(train_file_path=path, min_rows=9).info.splits == {"train": 9, "validation": 1, "test": 1}


def test_classes_too_small_to_spare_a_row_are_refused(refuse, questions, write_jsonl, tmp_path):
    path = write_jsonl(
        tmp_path / "train.jsonl", [{"text": q["text"], "label": f"l{i}"} for i, q in enumerate(questions)]
    )
    assert "no row can be spared for validation" in refuse(train_file_path=path)


def test_a_csv_in_another_encoding_is_refused_by_row(refuse, questions, tmp_path):
    lines = ["text,label", *(f"{q['text']},{q['label']}" for q in questions), "caf\u00e9,animal"]
    (tmp_path / "train.csv").write_bytes("\n".join(lines).encode("latin-1"))
    message = refuse(train_file_path=tmp_path / "train.csv")
    assert message.startswith("train.csv row 121: is not utf-8 text (byte 0xe9); expected utf-8")


def test_an_mltable_pointing_nowhere_is_refused(refuse, tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "MLTable").write_text("paths: [{file: gone.jsonl}]\ntransformations: [read_json_lines]")
    message = refuse(train_mltable_path=folder)
    assert message.startswith("train_mltable_path=")
    assert "points nowhere: file: 'gone.jsonl'" in message


def test_a_validation_file_of_duplicates_only_is_refused(refuse, train, questions, write_jsonl, tmp_path):
    files = {f"{s}_file_path": write_jsonl(tmp_path / f"{s}.jsonl", questions[:3]) for s in ("validation", "test")}
    message = refuse(train_file_path=train, **files)
    assert message.startswith("validation.jsonl: none of its 3 rows is left for validation")


def test_ratios_that_leave_no_training_rows_are_refused(refuse, train):
    message = refuse(train_file_path=train, validation_split_ratio=0.5, test_split_ratio=0.5)
    assert "validation_split_ratio=0.5 and test_split_ratio=0.5" in message


def test_a_length_beyond_the_model_is_refused(refuse, train):
    assert "max_seq_length=65: the model takes at most 64 tokens" in refuse(train_file_path=train, max_seq_length=65)


def test_a_model_altered_by_one_byte_is_refused(model, train, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    data = bytearray((copy / "tokenizer.json").read_bytes())
    data[-2] ^= 1
    (copy / "tokenizer.json").write_bytes(data)
    done = run_command(copy, tmp_path / "out", "--train_file_path", train, "--sentence1_key", "text")
    assert done.returncode == 2
    assert "tokenizer.json: was altered after it was written" in done.stderr
    assert not (tmp_path / "out").exists()


NAN_ROW = '{"text": null, "label": "animal", "weight": NaN, "more": [Infinity]}\n'
DEEP_ROW = '{"text": null, "label": "animal", "more": ' + "[" * 90 + "]" * 90 + "}\n"


def test_all_json_that_is_written_is_valid(preprocess, train):
    with train.open("a") as f:
        f.write(NAN_ROW + DEEP_ROW)
    prepared = preprocess(train_file_path=train)
    for file in prepared.path.glob("*.json*"):
        for line in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(line, parse_constant=pytest.fail)
    dropped = (prepared.path / "dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped[0])["row"] == {"text": None, "label": "animal", "weight": None, "more": [None]}
    assert len(dropped) == 2


def test_an_output_that_lost_its_manifest_is_named_with_the_way_out(refuse, train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("{}")
    message = refuse(train_file_path=train)
    assert message.endswith("If it is one that lost its manifest.json, delete the folder.")


def test_a_foreign_manifest_beside_the_rows_is_not_taken_for_ours(preprocess, questions, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "manifest.json").write_text(json.dumps(questions))
    assert sum(preprocess(train_file_path=tmp_path / "rows").info.splits.values()) == 120


def test_how_files_are_written_is_in_the_report(preprocess, questions, tmp_path, caplog):
    caplog.set_level("INFO", "tuneport.preprocess")
    path = tmp_path / "train.csv"
    path.write_text("text;label\n" + "".join(f"{q['text']};{q['label']}\n" for q in questions))
    prepared = preprocess(train_file_path=path)
    assert prepared.report()["sources"]["train"]["read_as"] == {"separated by semicolons": 1}
    assert "train.csv: separated by semicolons" in caplog.text
