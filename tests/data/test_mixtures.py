"""Several sources of one split: the shares that are asked for, to the row, and what does not go together."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.data.mixtures import largest, shared_out
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

COLUMNS = {"sentence1_key": "text", "label_key": "label", "min_rows": 1}
Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("weights", "available", "taken"),
    [
        ([5, 3, 2], [1000, 1000, 1000], [1000, 600, 400]),
        ([0.5, 0.3, 0.2], [100, 1000, 31], [78, 46, 31]),  # the third decides: 155 rows are the most
        ([1, 1, 1], [7, 100, 100], [7, 7, 7]),
        ([0.1, 0.2], [10, 10], [5, 10]),
        ([1, 0], [10, 10], [10, 0]),
        ([1, 1000], [10, 10], [0, 10]),
    ],
)
def test_the_largest_mixture_has_the_shares_to_the_row(
    weights: list[float], available: list[int], taken: list[int]
) -> None:
    assert largest(weights, available) == taken
    assert all(n <= most for n, most in zip(largest(weights, available), available, strict=True))


def test_a_limit_of_all_rows_is_shared_out_by_the_weights() -> None:
    assert shared_out(100, [3, 1], "max_train_rows") == [75, 25]
    assert shared_out(100, [None, None, None], "max_train_rows") == [34, 33, 33]
    assert shared_out(None, [3, 1], "max_train_rows") == [None, None]
    assert shared_out(7, [None], "max_train_rows") == [7]
    with pytest.raises(UserError, match="max_train_rows=1: leaves a source without a row"):
        shared_out(1, [1, 1], "max_train_rows")


def rows(kind: str, count: int, labels: tuple[str, ...] = ("yes", "no")) -> list[dict[str, str]]:
    return [{"text": f"{kind} number {i}", "label": labels[i % len(labels)]} for i in range(count)]


@pytest.fixture
def prepare(imported_model: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def run(name: str = "prepared", **values: Any) -> Prepared:
        output = tmp_path / name
        execute(
            steps.load("preprocess", "text_classification")(
                model_selector_output=imported_model, preprocess_output=output, **COLUMNS | values
            )
        )
        return Prepared(output)

    return run


@pytest.fixture
def three(tmp_path: Path, write_jsonl: Write) -> list[dict[str, Any]]:
    """A short source that decides the size, one of two shards, and one with other column names."""
    (tmp_path / "web").mkdir()
    write_jsonl(tmp_path / "books.jsonl", [*rows("book", 120), *rows("book", 20)])
    write_jsonl(tmp_path / "web" / "1.jsonl", rows("page", 150))
    write_jsonl(tmp_path / "web" / "2.jsonl", rows("site", 150))
    write_jsonl(tmp_path / "mail.jsonl", [{"body": {"text": r["text"]}, "kind": r["label"]} for r in rows("mail", 300)])
    return [
        {"path": str(tmp_path / "books.jsonl"), "weight": 0.5},
        {"path": str(tmp_path / "web"), "weight": 0.3},
        {"path": str(tmp_path / "mail.jsonl"), "weight": 0.2, "columns": {"text": "body.text", "label": "kind"}},
    ]


def test_three_sources_have_the_asked_shares_in_all_and_in_each_split_the_same_each_time(
    three: list[dict[str, Any]], prepare: Callable[..., Prepared]
) -> None:
    prepared = prepare(train_file_path=three)
    train = prepared.report()["sources"]["train"]
    assert (train["file"], train["kept"], train["left_out"]) == ("books.jsonl, web, mail.jsonl", 240, 480)
    found = {
        entry["file"]: (entry["share_asked"], entry["share_got"], entry["kept"], entry["left_out"], entry["read"])
        for entry in train["mixture"]
    }
    assert found == {
        "books.jsonl": (0.5, 0.5, 120, 0, 140),
        "web": (0.3, 0.3, 72, 228, 300),
        "mail.jsonl": (0.2, 0.2, 48, 252, 300),
    }
    assert train["mixture"][0]["duplicates_removed"] == 20
    for split, size in (("train", 192), ("validation", 24), ("test", 24)):
        of_split = prepared.report()["splits"][split]["sources"]
        assert sum(of_split.values()) == prepared.info.splits[split] == size
        for source, share in (("books.jsonl", 0.5), ("web", 0.3), ("mail.jsonl", 0.2)):
            assert abs(of_split[source] - share * size) <= 2
        stored = prepared.rows(split)
        assert {s: len(places) for s, places in prepared.sources(split, stored).items()} == of_split
        kinds = {"book": "books.jsonl", "page": "web", "site": "web", "mail": "mail.jsonl"}
        assert Counter(kinds[row["sentence1"].split()[0]] for row in stored) == of_split
    again = prepare("again", train_file_path=json.dumps(three))
    assert again.rows("train") == prepared.rows("train")
    other = prepare("other", train_file_path=three, split_seed=7)
    assert other.rows("train") != prepared.rows("train")


def test_without_weights_all_rows_are_taken_up_to_each_source_s_limit(
    tmp_path: Path, write_jsonl: Write, prepare: Callable[..., Prepared]
) -> None:
    one, other = (write_jsonl(tmp_path / f"{name}.jsonl", rows(name, 40)) for name in "ab")
    prepared = prepare(train_file_path=[str(one), {"path": str(other), "max_rows": 10}])
    mixed = prepared.report()["sources"]["train"]["mixture"]
    assert [(entry["kept"], entry["left_out"]) for entry in mixed] == [(40, 0), (10, 0)]
    assert mixed[1]["first_rows_only"] == 10 and "weight" not in mixed[0]


def test_rows_of_a_given_test_split_are_told_apart_and_those_of_one_source_are_not(
    tmp_path: Path, write_jsonl: Write, prepare: Callable[..., Prepared]
) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    files = [write_jsonl(tmp_path / folder / "rows.jsonl", rows(folder, 20)) for folder in "xy"]
    train = write_jsonl(tmp_path / "rows.jsonl", rows("z", 40))
    prepared = prepare(train_file_path=str(train), test_file_path=[str(file) for file in files])
    assert prepared.report()["splits"]["test"]["sources"] == {"x/rows.jsonl": 20, "y/rows.jsonl": 20}
    assert set(prepared.sources("test", prepared.rows("test"))) == {"x/rows.jsonl", "y/rows.jsonl"}
    assert "sources" not in prepared.report()["splits"]["train"]
    assert prepared.sources("train", prepared.rows("train")) == {}


def test_tables_are_mixed_as_files_are(tmp_path: Path, write_jsonl: Write, prepare: Callable[..., Prepared]) -> None:
    for name, count in (("a", 30), ("b", 60)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rows.jsonl", rows(name, count))
        (tmp_path / name / "MLTable").write_text("paths:\n- file: ./rows.jsonl\ntransformations:\n- read_json_lines\n")
    prepared = prepare(train_mltable_path=[{"path": str(tmp_path / name), "weight": 1} for name in "ab"])
    mixed = prepared.report()["sources"]["train"]["mixture"]
    assert [(entry["file"], entry["kept"]) for entry in mixed] == [("a", 30), ("b", 30)]


@pytest.mark.parametrize(
    ("other", "more", "said"),
    [
        (
            [{"words": "x", "label": "yes"}],
            {},
            (
                "columns 'sentence1_key=text' not found in b.jsonl; it has: words, label. Each source of "
                "train_file_path may have a map, `columns`, of its own."
            ),
        ),
        (
            rows("b", 20),
            {"columns": {"text": "txt"}},
            "columns 'columns.text=txt' not found in b.jsonl; it has: text, label. Did you mean 'text'?",
        ),
        (rows("b", 20), {"columns": {"texts": "text"}}, "train_file_path[2].columns={'texts': 'text'}: nobody reads"),
        (
            rows("b", 20, ("1", "0")),
            {},
            "a.jsonl and b.jsonl (train) have no label in common: a.jsonl has 'no', 'yes', b.jsonl has '0', '1'.",
        ),
        (rows("a", 20), {"weight": 1}, "b.jsonl (train): none of its 20 rows is left (0 cannot be used, the others"),
    ],
)
def test_sources_that_do_not_go_together_are_named_with_what_differs(
    *,
    other: list[dict[str, str]],
    more: dict[str, Any],
    said: str,
    tmp_path: Path,
    write_jsonl: Write,
    prepare: Callable[..., Prepared],
) -> None:
    one = {"path": str(write_jsonl(tmp_path / "a.jsonl", rows("a", 20)))} | ({"weight": 1} if "weight" in more else {})
    two = {"path": str(write_jsonl(tmp_path / "b.jsonl", other)), **more}
    with pytest.raises(UserError) as e:
        prepare(train_file_path=[one, two])
    assert said in str(e.value)


def test_a_file_is_in_one_source_only(tmp_path: Path, write_jsonl: Write, prepare: Callable[..., Prepared]) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows("a", 20))
    with pytest.raises(UserError, match=r"train_file_path: a.jsonl is in .* and in a.jsonl; expected each file in one"):
        prepare(train_file_path=[str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")])
