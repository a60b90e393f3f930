"""An MLTable's YAML is read for its files and how to read them; what is not supported is refused by name."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneport.data.mltable import find_mltable
from tuneport.errors import UserError
from tuneport.limits import DataLimits

WANTED = {"sentence1_key": "text", "label_key": "label"}
ROWS = [{"text": "x", "label": "0"}, {"text": "y", "label": "1"}]


def table(folder: Path, yaml: str) -> Path:
    (folder / "MLTable").write_text(yaml, encoding="utf-8")
    return folder


def read(folder: Path, yaml: str) -> list[dict]:
    return [row.values for row in find_mltable(table(folder, yaml), "train_mltable_path").rows(WANTED)]


def refusal(folder: Path, yaml: str) -> str:
    with pytest.raises(UserError) as e:
        read(folder, yaml)
    assert str(e.value).startswith(f"train_mltable_path={str(folder)!r}: ")
    return str(e.value)


CSV = "paths:\n  - file: ./a.csv\ntransformations:\n  - read_delimited:\n"


def test_labels_0_and_1_of_a_delimited_file_stay_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,0\ny,1\n")
    yaml = (
        "type: mltable\n"
        + CSV
        + "      delimiter: ','\n      encoding: utf8\n"
        + "      header: all_files_same_headers\n      infer_column_types: true\n"
    )
    assert read(tmp_path, yaml) == ROWS


def test_delimiter_encoding_and_header_are_honoured(tmp_path):
    (tmp_path / "a.csv").write_bytes("é;0\n;1\n".encode("latin-1"))
    yaml = CSV + "      delimiter: ';'\n      encoding: iso88591\n      header: no_header\n"
    source = find_mltable(table(tmp_path, yaml), "train_mltable_path")
    rows = list(source.rows({"sentence1_key": "Column1"}))
    assert [r.values for r in rows] == [{"Column1": "é", "Column2": "0"}, {"Column1": None, "Column2": "1"}]
    assert [r.where for r in rows] == ["a.csv row 1", "a.csv row 2"]
    with_text = find_mltable(table(tmp_path, yaml + "      empty_as_string: true\n"), "train_mltable_path")
    assert list(with_text.rows({}))[1].values["Column1"] == ""


def test_a_byte_the_named_encoding_lacks_is_named_with_its_row(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nx,0\né,1\n".encode())
    with pytest.raises(UserError, match=r"a.csv row 2: is not ascii text \(byte 0xc3\)"):
        read(tmp_path, CSV + "      encoding: ascii\n")


def test_json_lines_of_any_extension_and_patterns_relative_to_the_table_are_read(tmp_path):
    (tmp_path / "deep").mkdir()
    for i, row in enumerate(ROWS):
        (tmp_path / "deep" / f"part-{i}.txt").write_text(json.dumps(row) + "\n")
    read_json = "transformations: [read_json_lines]\n"
    assert read(tmp_path, "paths:\n  - pattern: ./deep/*.txt\n" + read_json) == ROWS
    assert read(tmp_path, "paths:\n  - folder: ./deep\n" + read_json) == ROWS
    assert (
        read(tmp_path, f"paths:\n  - file: file://{tmp_path}/deep/part-1.txt\n  - file: deep/part-0.txt\n" + read_json)
        == ROWS[::-1]
    )


def test_parquet_is_read_and_without_a_reader_the_extension_decides(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert (
        read(tmp_path, "paths: [{file: a.parquet}]\ntransformations: [{read_parquet: {include_path_column: false}}]")
        == ROWS
    )
    assert read(tmp_path, "paths: [{file: a.parquet}]") == ROWS


def test_the_mltable_file_itself_may_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,0\ny,1\n")
    source = find_mltable(table(tmp_path, CSV) / "MLTable", "train_mltable_path")
    assert [row.values for row in source.rows(WANTED)] == ROWS


def test_columns_can_be_chosen_and_a_hidden_one_counts_as_missing(tmp_path):
    (tmp_path / "a.csv").write_text("text,label,secret\nx,0,s\ny,1,s\n")
    assert read(tmp_path, CSV + "  - keep_columns: [text, label]\n") == ROWS
    assert read(tmp_path, CSV + "  - drop_columns: secret\n") == ROWS
    with pytest.raises(UserError, match=r"'label_key=label' not found in a.csv; it has: text, secret"):
        read(tmp_path, CSV + "  - drop_columns: [label]\n")


def test_a_conversion_to_text_changes_nothing_and_any_other_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,0\ny,1\n")
    convert = CSV + "  - convert_column_types:\n    - columns: label\n      column_type: {}\n"
    assert read(tmp_path, convert.format("string")) == ROWS
    assert "transformation 'convert_column_types' is not supported" in refusal(tmp_path, convert.format("boolean"))


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("paths: [{file: ./gone.csv}]", "points nowhere: file: './gone.csv'"),
        ("paths: [{pattern: './gone/*.csv'}]", "points nowhere: pattern: './gone/*.csv'"),
        ("paths: [{folder: ./gone}]", "points nowhere: folder: './gone'"),
        ("paths: [{file: 'azureml://datastores/x/paths/y.csv'}]", "expected a local path"),
        ("paths: []", "names no data"),
        ("paths: [{fil: a.csv}]", "not understood"),
        ("- a\n", "is no YAML mapping"),
        ("paths: [", "is no YAML"),
        ("[" * 100_000, "is no YAML (nested too deep)"),
        ("paths: !!bool x", "is no YAML"),
        (CSV + "  - take: 5\n", "transformation 'take' is not supported"),
        (CSV + "  - read_parquet\n", "names 2 reading transformations"),
        (CSV + "      delimeter: ';'\n", "option 'delimeter' is not supported; supported are: delimiter"),
        (CSV + "      encoding: klingon\n", "encoding='klingon' is not supported"),
        (CSV + "      header: from_first_file\n", "header='from_first_file' is not supported"),
        (CSV + "      delimiter: '||'\n", "delimiter='||' is not supported"),
        ("paths: [{file: a.csv}]\ntransformations: [{read_json_lines: {invalid_lines: drop}}]", "invalid_lines='drop'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, yaml, expected):
    (tmp_path / "a.csv").write_text("text,label\nx,0\ny,1\n")
    assert expected in refusal(tmp_path, yaml)


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no MLTable file"):
        find_mltable(tmp_path, "train_mltable_path")
    with pytest.raises(UserError, match="has no MLTable file"):
        find_mltable(tmp_path / "gone", "train_mltable_path")


def test_a_table_names_data_in_its_folder_unless_more_is_allowed(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "a.csv").write_text("text,label\nx,0\ny,1\n")
    (tmp_path / "table" / "inside.csv").symlink_to("../a.csv")
    for path in ("../a.csv", str(tmp_path / "a.csv"), f"file://{tmp_path}/a.csv", "./inside.csv", "../table/../a.csv"):
        yaml = CSV.replace("./a.csv", path)
        said = refusal(tmp_path / "table", yaml)
        assert f"which leads to {str(tmp_path / 'a.csv')!r}, outside of its folder. Set allow_outside=true" in said
        source = find_mltable(tmp_path / "table", "train_mltable_path", limits=DataLimits(allow_outside=True))
        assert [row.values for row in source.rows(WANTED)] == ROWS
    for kind, path in (("folder", ".."), ("pattern", "../*.csv")):
        said = refusal(tmp_path / "table", f"paths:\n  - {kind}: {path}\n")
        assert "outside of its folder. Set allow_outside=true" in said


@pytest.mark.parametrize("entry", ["folder: /", "folder: ../..", "pattern: /**/*", "pattern: ../../**"])
def test_what_leads_outside_is_refused_before_it_is_listed(tmp_path, monkeypatch, entry):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "MLTable").write_text(f"paths:\n- {entry}\n")
    monkeypatch.setattr("tuneport.data.mltable.list_files", lambda *_: pytest.fail("it was listed"))
    with pytest.raises(UserError, match="outside of its folder"):
        find_mltable(tmp_path / "table", "train_mltable_path")


@pytest.mark.parametrize("kind", ["file", "folder", "pattern"])
def test_a_name_that_is_too_long_points_nowhere(tmp_path, kind):
    (tmp_path / "MLTable").write_text(f"paths:\n- {kind}: {'x' * 300}\n")
    with pytest.raises(UserError, match="points nowhere"):
        find_mltable(tmp_path, "train_mltable_path")


def test_a_table_may_name_itself_by_a_longer_way(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "a.csv").write_text("text,label\nx,0\ny,1\n")
    assert read(tmp_path / "table", CSV.replace("./a.csv", "../table/a.csv")) == ROWS
