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
        ("a.json", b'[{"text": "x", "label": "a"}, {"text": "y" "label"}]', "a.json row 2: is not JSON"),
        ("a.json", b'[{"text": "x", "label": "a"}, 3]', "a.json row 2: is not a JSON object"),
        ("a.json", b'[{"text": "x", "label": "a"}', "a.json row 2: is not JSON"),
        ("a.json", b'{"data": [\n{"text": "x"}]}', "a.json row 1: is not JSON"),
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
