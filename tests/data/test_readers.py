"""Rows stream from every format, compressed or not, one file or many; what cannot be read is named."""

import csv
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneport.data.readers import find
from tuneport.errors import UserError
from tuneport.limits import DataLimits

ROWS = [
    {"text": "ein schöner Tag", "label": "a"},
    {"text": 'quotes " and, commas\nand lines', "label": "b"},
    {"text": "x", "label": "c"},
]
WANTED = {"sentence1_key": "text", "label_key": "label"}


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format of the file's name."""
    kinds = path.name.split(".")[1:]
    plain = path.with_name(path.name.removesuffix(".gz").removesuffix(".zst"))
    if kinds[0] == "jsonl":
        plain.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif kinds[0] == "json":
        plain.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    elif kinds[0] == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), plain)
    else:
        with plain.open("w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]), delimiter="\t" if kinds[0] == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    if kinds[-1] == "gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    if kinds[-1] == "zst":
        with pa.CompressedOutputStream(str(path), "zstd") as f:
            f.write(plain.read_bytes())
    if plain != path:
        plain.unlink()
    return path


def read(path: Path, wanted: dict[str, str] = WANTED) -> list[tuple[str, dict]]:
    return [(row.where, row.values) for row in find(path, "train_file_path").rows(wanted)]


def refusal(path: Path, wanted: dict[str, str] = WANTED) -> str:
    with pytest.raises(UserError) as e:
        read(path, wanted)
    return str(e.value)


NAMES = [f"train.{f}{c}" for f in ("jsonl", "json", "csv", "tsv") for c in ("", ".gz", ".zst")] + ["train.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_and_compression_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert read(path) == [(f"{name} row {i}", row) for i, row in enumerate(ROWS, 1)]
    find(path, "train_file_path").peek(WANTED)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_glob_and_a_folder_of_shards_are_read_in_order(tmp_path, name):
    rest = name.removeprefix("a")
    for shard, row in zip("cab", ROWS, strict=True):
        write(tmp_path / f"{shard}{rest}", [row, row])
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "_SUCCESS").write_text("")
    expected = [(f"{s}{rest} row {n}", ROWS[i]) for s, i in (("a", 1), ("b", 2), ("c", 0)) for n in (1, 2)]
    assert read(tmp_path) == expected
    assert read(tmp_path / f"*{rest}") == expected
    assert read(tmp_path / f"[bc]{rest}") == expected[2:]


def test_shards_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        write(tmp_path / part / "a.jsonl", ROWS[:1])
    assert [where for where, _ in read(tmp_path / "*" / "*.jsonl")] == ["x/a.jsonl row 1", "y/a.jsonl row 1"]
    assert len(read(tmp_path)) == 2


ODD_NAMES = [
    "it's.jsonl",
    'a "b".csv',
    "back\\slash.json",
    "with space.tsv",
    "ünïcode ☃.parquet",
    "new\nline.jsonl",
    "[a]*.csv",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_paths_work(tmp_path, name):
    folder = tmp_path / f"dir {name.replace('.', '_')}"
    folder.mkdir()
    assert [values for _, values in read(write(folder / name, ROWS))] == ROWS


def test_a_file_name_that_is_no_unicode_works(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_text(json.dumps(ROWS[0]) + "\n")
    assert read(path) == [("caf\ufffd.jsonl row 1", ROWS[0])]


def test_a_json_file_may_hold_json_lines(tmp_path):
    path = tmp_path / "train.json"
    path.write_text("\n  " + "".join(json.dumps(r) + "\n" for r in ROWS))
    assert [values for _, values in read(path)] == ROWS


def test_json_numbers_keep_their_type(tmp_path):
    for name, text in (
        ("a.json", '[{"text": "x", "label": 1, "w": 0.5, "b": true, "n": null}]'),
        ("a.jsonl", '{"text": "x", "label": 1, "w": 0.5, "b": true, "n": null}'),
    ):
        (tmp_path / name).write_text(text)
        ((_, values),) = read(tmp_path / name)
        assert values == {"text": "x", "label": 1, "w": 0.5, "b": True, "n": None}
        assert [type(v) for v in values.values()] == [str, int, float, bool, type(None)]


def test_csv_values_are_text_and_empty_cells_null(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,more\n1,0,\n\ntrue,1,x\n")
    assert [v for _, v in read(tmp_path / "a.csv")] == [
        {"text": "1", "label": "0", "more": None},
        {"text": "true", "label": "1", "more": "x"},
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [values for _, values in read(path)] == ROWS


def test_a_long_csv_cell_is_read(tmp_path):
    rows = [{"text": "w " * 200_000, "label": "a"}]
    assert [v for _, v in read(write(tmp_path / "a.csv", rows))] == rows


def test_blank_lines_are_skipped_and_json_rows_keep_their_line_number(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}\n\n{"text": "y", "label": "b"}\n\n')
    assert [where for where, _ in read(tmp_path / "a.jsonl")] == ["a.jsonl row 1", "a.jsonl row 3"]


def test_an_empty_shard_among_others_is_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    write(tmp_path / "b.jsonl", ROWS)
    find(tmp_path, "train_file_path").peek(WANTED)
    assert len(read(tmp_path)) == 3


def test_a_missing_file_is_named_with_a_suggestion(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    message = refusal(tmp_path / "trian.jsonl")
    assert "train_file_path=" in message
    assert "trian.jsonl" in message
    assert "Did you mean 'train.jsonl'?" in message
    assert "there is no folder" in refusal(tmp_path / "none" / "train.jsonl")
    assert "not found" in refusal(tmp_path / "*.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n\n"),
        ("a.json", ""),
        ("a.json", "[]"),
        ("a.csv", ""),
        ("a.csv", "text,label\n"),
        ("a.tsv", "text\tlabel\n"),
    ],
)
def test_an_empty_file_is_refused_also_by_a_peek(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert refusal(tmp_path / name).startswith(f"{name}: is empty; expected at least one row")
    with pytest.raises(UserError, match="is empty"):
        find(tmp_path / name, "train_file_path").peek(WANTED)


def test_a_folder_without_files_is_refused(tmp_path):
    assert "is a folder without files" in refusal(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    if os.geteuid():
        write(path, ROWS).chmod(0)
    else:
        path.symlink_to("/proc/self/mem")  # exists, opens, and fails at the first read even for root
    assert refusal(path).startswith("train.jsonl: cannot be read (")


# -- separators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_another_separator_is_found_by_the_header(tmp_path, separator, name):
    path = tmp_path / "a.csv"
    path.write_text(f'text{separator}label\n"1,5{separator}2"{separator}a\nx, y{separator}b\n')
    source = find(path, "train_file_path")
    source.peek(WANTED)
    rows = [row.values for row in source.rows(WANTED)]
    assert rows == [{"text": f"1,5{separator}2", "label": "a"}, {"text": "x, y", "label": "b"}]
    assert source.read_as == {f"separated by {name}": 1}


def test_a_comma_stays_the_separator_where_the_header_has_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,label;x\na;b,c\n")
    source = find(tmp_path / "a.csv", "train_file_path")
    assert [row.values for row in source.rows({"text_key": "text"})] == [{"text": "a;b", "label;x": "c"}]
    assert source.read_as == {}


def test_a_column_that_no_separator_gives_is_missed_beside_those_that_another_one_gives(tmp_path):
    (tmp_path / "a.csv").write_text("text;labels\nx;a\n")
    assert refusal(tmp_path / "a.csv") == (
        "columns 'label_key=label' not found in a.csv; it has (separated by semicolons): text, labels. "
        "Did you mean 'labels'?"
    )


# -- JSON of several lines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("beside", [{}, {"version": "1.1", "features": [{"name": "x"}], "more": {"text": 1}}])
def test_rows_in_a_member_of_an_object_are_read(tmp_path, indent, beside):
    (tmp_path / "a.json").write_text(json.dumps({**beside, "data": ROWS}, indent=indent))
    source = find(tmp_path / "a.json", "train_file_path")
    source.peek(WANTED)
    assert [row.values for row in source.rows(WANTED)] == ROWS
    assert source.read_as == {"rows in 'data'": 1}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_objects_of_several_lines_are_read(tmp_path, name):
    (tmp_path / name).write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert [values for _, values in read(tmp_path / name)] == ROWS


@pytest.mark.parametrize("indent", [None, 1])
def test_brackets_in_texts_are_no_nesting(tmp_path, indent):
    rows = [{"text": "[{" * 40, "label": "a"}] * 200
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent))
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}, indent=indent))
    assert [v for _, v in read(tmp_path / "a.json")] == [v for _, v in read(tmp_path / "b.json")] == rows


def test_nested_rows_are_named_as_such(tmp_path):
    squad = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": []}]}]}
    (tmp_path / "a.json").write_text(json.dumps(squad, indent=1))
    message = refusal(tmp_path / "a.json", {"question_key": "question", "context_key": "context"})
    assert "not found in a.json; it has (rows in 'data'): title, paragraphs." in message
    assert message.endswith("Rows may not be nested: write one a question.")


COLUMNS = {"text": [f"row number {i}" for i in range(1000)], "label": [i % 2 for i in range(1000)]}
ORIENTS = {
    "list": {name: [[value] for value in values] for name, values in COLUMNS.items()},
    "columns": {name: dict(enumerate(values)) for name, values in COLUMNS.items()},
    "split": {"columns": ["text", "label"], "index": [0, 1], "data": [["x", 0], ["y", 1]]},
    "index": {i: {"text": "x", "label": i} for i in range(100)},
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("orient", ORIENTS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_of_columns_is_named_as_such_in_few_words(tmp_path, name, orient, indent):
    (tmp_path / name).write_text(json.dumps(ORIENTS[orient], indent=indent))
    message = refusal(tmp_path / name)
    assert message.startswith(f"{name}: holds columns, as pandas' orient='{orient}' writes them, under [")
    assert message.endswith("DataFrame.to_json(path, orient='records', lines=True).")
    assert len(message) < 300


@pytest.mark.parametrize("indent", [None, 1])
def test_a_single_row_of_lists_is_a_row(tmp_path, indent):
    row = {"tokens": ["a", "b"], "tags": ["X", "Y"], "messages": [{"role": "user", "content": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
    for wanted in ({"token_key": "tokens", "tag_key": "tags"}, {"messages_key": "messages"}):
        assert [v for _, v in read(tmp_path / "a.json", wanted)] == [row]


def test_lists_in_the_rows_are_no_file_of_columns(tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["X", "Y"]}] * 3
    wanted = {"token_key": "tokens", "tag_key": "tags"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text("".join(json.dumps(row, indent=1) + "\n" for row in rows))
    assert (
        [v for _, v in read(tmp_path / "a.jsonl", wanted)] == [v for _, v in read(tmp_path / "b.json", wanted)] == rows
    )


# -- columns that are late, or not used --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_column_that_first_appears_late_is_found(tmp_path, name):
    path = write(tmp_path / name, [*[{"text": f"{i}"} for i in range(500)], {"text": "x", "label": "a"}])
    find(path, "train_file_path").peek(WANTED)
    assert read(path)[-1][1] == {"text": "x", "label": "a"}
    assert "'label_key=lable' not found" in refusal(path, {**WANTED, "label_key": "lable"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,label,more\nx,a,fine\ny,b,caf\xe9\nz,a,\xff\xfe\n"),
        ("a.csv", b"text,label,\xe9\nx,a,1\ny,b,2\nz,a,3\n"),
        (
            "a.jsonl",
            b'{"text": "x", "label": "a"}\n{"text": "y", "label": "b", "more": "\xe9"}\n{"text": "z", "label": "a"}',
        ),
        (
            "a.jsonl",
            b'{"text": "x", "label": "a"}\n{"text": "y", "label": "b", "n": %s}\n{"text": "z", "label": "a"}'
            % (b"9" * 5000),
        ),
    ],
)
def test_a_bad_cell_in_a_column_that_is_not_used_does_no_harm(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    find(tmp_path / name, "train_file_path").peek(WANTED)
    found = read(tmp_path / name)
    assert [(v["text"], v["label"]) for _, v in found] == [("x", "a"), ("y", "b"), ("z", "a")]
    assert [where for where, _ in found] == [f"{name} row {i}" for i in (1, 2, 3)]


@pytest.mark.parametrize("before", [0, 65_530, 70_000])  # bytes: within a block, over its end, after it
@pytest.mark.parametrize("content", ['[{"text": "x", "label": "a"}, {"n": %s}]', '{"data": [{"text": "x", "n":-%s}]}'])
def test_a_number_of_too_many_digits_is_refused_in_an_array(tmp_path, content, before):
    file = tmp_path / "a.json"
    file.write_text(" " * before + content % ("9" * 4301))
    with pytest.raises(UserError, match="is not JSON"):
        read(file)
    file.write_text(" " * before + '[{"text": "N", "label": 1.N}]'.replace("N", "9" * 5000))
    assert [v["text"] for _, v in read(file)] == ["9" * 5000]


def test_a_bad_cell_after_many_good_rows_is_named_by_its_row_where_it_is_used(tmp_path):
    rows = [b"%d,a,caf\xe9" % i for i in range(5000)]
    rows[4321] = b"caf\xe9,a,x"
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"text,label,more", *rows]))
    assert refusal(tmp_path / "a.csv").startswith("a.csv row 4322: is not utf-8 text (byte 0xe9)")


def test_a_parquet_column_that_is_not_used_is_not_converted(tmp_path):
    late = pa.array([2**62, 1, 2], pa.timestamp("us"))  # no date of Python's
    table = pa.table({"text": ["x", "y", "z"], "label": ["a", "b", "a"], "when": late})
    pq.write_table(table, tmp_path / "a.parquet")
    assert next(v for _, v in read(tmp_path / "a.parquet")) == {"text": "x", "label": "a"}
    assert refusal(tmp_path / "a.parquet", {"text_key": "when"}).startswith("a.parquet: ")


def test_an_unknown_extension_lists_the_known_ones(tmp_path):
    (tmp_path / "train.xlsx").write_text("x")
    message = refusal(tmp_path / "train.xlsx")
    assert "unknown file type '.xlsx'" in message
    assert ".jsonl, .json, .csv, .tsv, .parquet" in message


def test_mixed_formats_in_a_folder_are_refused_by_name(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.jsonl", ROWS)
    assert "several formats: csv (a.csv), jsonl (b.jsonl)" in refusal(tmp_path)


def test_an_mltable_folder_given_as_a_file_is_pointed_to_its_own_input(tmp_path):
    (tmp_path / "MLTable").write_text("paths: []")
    assert "Pass it as train_mltable_path" in refusal(tmp_path)


def test_missing_columns_are_named_with_a_suggestion(tmp_path):
    path = write(tmp_path / "train.csv", ROWS)
    message = refusal(path, {"sentence1_key": "txt", "label_key": "label"})
    assert message == "columns 'sentence1_key=txt' not found in train.csv; it has: text, label. Did you mean 'text'?"


def test_a_later_shard_without_the_column_is_named(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.csv", [{"texte": "x", "label": "a"}])
    assert "'sentence1_key=text' not found in b.csv" in refusal(tmp_path)


def test_a_json_column_that_starts_with_nulls_left_out_is_found(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y", "label": "a"}])
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "x", "label": "a"}\n{"text": \n', "a.jsonl row 2: is not JSON"),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n["x"]\n', "a.jsonl row 2: is not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "x", "label": "a"}\n{"text": "\xe9", "label": "a"}\n',
            "a.jsonl row 2: is not utf-8 text (byte 0xe9)",
        ),
        ("a.jsonl", b"[" * 100_000, "a.jsonl row 1: is not JSON"),
        (
            "a.json",
            b"[" * 100_000,
            "a.json row 1: is not JSON (nested too deep: more than 100 lists and objects in each other)",
        ),
        (
            "a.json",
            b'{"a":' * 100_000,
            "a.json row 1: is not JSON (nested too deep: more than 100 lists and objects in each other)",
        ),
        ("a.jsonl", b'{"text": "x", "more": ' + b"[" * 100_000, "a.jsonl row 1: is not JSON"),
        (
            "a.json",
            b'[{"text": "x", "label": "a"}, ' + b"[" * 100_000,
            "a.json row 1: is not JSON (nested too deep: more than 100 lists and objects in each other)",
        ),
        ("a.json", b'[{"text": "x", "label": "a"}, {"text": "y" "label"}]', "a.json row 2: is not JSON"),
        ("a.json", b'[{"text": "x", "label": "a"}, 3]', "a.json row 2: is not a JSON object"),
        ("a.json", b'[{"text": "x", "label": "a"}', "a.json row 2: is not JSON"),
        ("a.json", b'{"data": [\n{"text": "x"}', "a.json row 1: is not JSON"),
        ("a.json", b'[{"text": "\xe9", "label": "a"}]', "a.json row 1: is not"),
        ("a.csv", b"text,label\nx,a\ny\n", "a.csv row 2: has 1 cells; expected 2: text, label"),
        ("a.csv", b"text,label\nx,a\ny, z,b\n", "a.csv row 2: has 3 cells; expected 2"),
        (
            "a.csv",
            b'text,label\nx,a\n"two\nlines",b\ncaf\xe9,c\n',
            "a.csv row 3: is not utf-8 text (byte 0xe9); expected utf-8",
        ),
        ("a.csv", b"t\xe9xt,label\nx,a\n", "a.csv: the header is not utf-8 text"),
        ("a.csv", b'text,label\nx,a\n"never closed,b\n', "a.csv row 2: is not valid csv"),
        ("a.csv", b"text,text\nx,a\n", "a.csv: the header names 'text' twice"),
        ("a.jsonl.gz", b"no gzip at all", "a.jsonl.gz: is damaged or no gzip file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x", "label": "a"}\n' * 50, mtime=0)[:-12],
            "a.jsonl.gz: is damaged or no gzip file",
        ),
        ("a.jsonl.zst", b"no zstd at all, not a bit", "a.jsonl.zst: cannot be read"),
        ("a.parquet", b"no parquet", "a.parquet: is damaged or no parquet file"),
        ("a.parquet", b"", "a.parquet: is damaged or no parquet file"),
    ],
)
def test_a_bad_row_or_file_is_named(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


def test_a_damaged_parquet_page_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": f"row {i} " * 20, "label": "a"} for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[200:4000] = b"\xff" * 3800
    path.write_bytes(data)
    assert refusal(path).startswith("a.parquet: ")


def test_structs_of_a_parquet_list_have_the_keys_that_they_were_written_with(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a", "calls": None},
        {"role": "assistant", "content": None, "calls": [{"arguments": {"x": 1}}, {"arguments": {"y": [2, None]}}]},
    ]
    pq.write_table(pa.table({"turns": [turns], "plain": [{"x": None}]}), tmp_path / "a.parquet")
    (row,) = find(tmp_path / "a.parquet", "train_file_path").rows({})
    assert row.values == {
        "turns": [{"role": "user", "content": "a"}, {"role": "assistant", "calls": turns[1]["calls"]}],
        "plain": {"x": None},
    }


# -- links and limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["data", "data/*.jsonl", "data/**/*.jsonl"])
def test_a_link_out_of_a_folder_of_data_is_refused_by_name(tmp_path, given):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    write(tmp_path / "data" / "a.jsonl", ROWS)
    (tmp_path / "data" / "same.jsonl").symlink_to("a.jsonl")
    assert len(read(tmp_path / given)) == 6
    write(tmp_path / "secret.jsonl", ROWS)
    (tmp_path / "data" / "b.jsonl").symlink_to("../secret.jsonl")
    said = refusal(tmp_path / given)
    assert f"b.jsonl is a link to {str(tmp_path / 'secret.jsonl')!r}, outside of the folder" in said
    assert "allow_outside=true" in said
    source = find(tmp_path / given, "train_file_path", limits=DataLimits(allow_outside=True))
    assert len(list(source.rows(WANTED))) == 9
    (tmp_path / "named.jsonl").symlink_to("secret.jsonl")
    assert len(read(tmp_path / "named.jsonl")) == 3, "a file that the user names may be a link"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.csv.zst"])
def test_a_row_of_more_bytes_than_allowed_is_named_and_the_option_takes_it(tmp_path, name):
    path = write(tmp_path / name, [ROWS[0], {"text": "y" * 200_000, "label": "b"}])
    small, large = DataLimits(max_row_bytes=100_000), DataLimits(max_row_bytes=300_000)
    with pytest.raises(UserError, match=rf"{name} (row 2|line 3): the row has more than 100,000 bytes.*max_row_bytes"):
        list(find(path, "train_file_path", limits=small).rows(WANTED))
    assert len(list(find(path, "train_file_path", limits=large).rows(WANTED))) == 2


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst"])
def test_rows_that_are_much_alike_are_read_where_the_ratio_is_allowed(tmp_path, name):
    path = write(tmp_path / name, [{"text": "x" * 10_000, "label": "a"}] * 1000)
    with pytest.raises(
        UserError, match=rf"{name}: decompresses to more than 200 times its size.*max_compression_ratio"
    ):
        list(find(path, "train_file_path").rows(WANTED))
    limits = DataLimits(max_compression_ratio=10**6)
    assert len(list(find(path, "train_file_path", limits=limits).rows(WANTED))) == 1000


def test_large_parquet_rows_are_read_a_few_at_a_time(tmp_path):
    table = pa.table({"text": ["x" * 200_000] * 2000, "label": ["a"] * 2000})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    assert len(read(tmp_path / "a.parquet")) == 2000


def test_a_hundred_levels_are_read_and_more_are_not(tmp_path):
    for levels, fits in ((99, True), (100, False)):
        row = '{"text": "x", "label": "a", "more": ' + "[" * levels + "]" * levels + "}"
        for name, text in (("a.jsonl", row), ("a.json", f"{row}\n{row}")):
            (tmp_path / name).write_text(text)
            if fits:
                assert read(tmp_path / name)
            else:
                assert "nested too deep: more than 100" in refusal(tmp_path / name)
