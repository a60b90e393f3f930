"""Quotes that join lines which are rows by themselves are refused, and cells that are meant to span lines are read."""

import csv
from pathlib import Path

import pytest

from tuneport.data.quoting import Quoting
from tuneport.data.readers import find
from tuneport.errors import UserError

WANTED = {"sentence1_key": "text", "label_key": "label"}


def read(path: Path, quoting: Quoting = "auto") -> list[tuple[str, str]]:
    rows = find(path, "train_file_path", quoting).rows(WANTED)
    return [(row.values["text"], row.values["label"]) for row in rows]


def refusal(path: Path, quoting: Quoting = "auto") -> str:
    with pytest.raises(UserError) as e:
        read(path, quoting)
    return str(e.value)


def unquoted(path: Path, rows: int, first: int, last: int, *, swap: bool = False) -> list[str]:
    """Write rows without quoting, of which one begins with a quote and another one ends with one."""
    texts = [f"row number {i} here" for i in range(rows)]
    texts[first], texts[last] = '"' + texts[first], texts[last] + '"'
    separator = "\t" if path.suffix == ".tsv" else ","
    cells = [[text, ("pos", "neg")[i % 2]] for i, text in enumerate(texts)]
    header = ["text", "label"]
    path.write_text("\n".join(separator.join(row[::-1] if swap else row) for row in [header, *cells]) + "\n")
    return texts


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
@pytest.mark.parametrize(("rows", "first", "last"), [(40, 5, 25), (40, 5, 6), (12, 0, 3), (12, 3, 11), (300, 0, 299)])
def test_a_text_that_begins_with_a_quote_swallows_no_rows(*, tmp_path, name, rows, first, last):
    texts = unquoted(tmp_path / name, rows, first, last)
    message = refusal(tmp_path / name)
    assert message.startswith(
        f"{name} row {first + 1}: a quote that opens on line {first + 2} joins the lines {first + 2} to {last + 2}"
    )
    assert "set quoting=none" in message and "set quoting=double" in message
    assert [text for text, _ in read(tmp_path / name, "none")] == texts
    assert len(read(tmp_path / name, "double")) == rows - (last - first)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_several_swallowed_parts_of_a_small_file_are_seen(tmp_path, name):
    texts = [f"row number {i} here" for i in range(24)]
    for i in range(0, 24, 6):
        texts[i], texts[i + 1] = '"' + texts[i], texts[i + 1] + '"'
    separator = "\t" if name == "a.tsv" else ","
    (tmp_path / name).write_text("\n".join(["text" + separator + "label", *(f"{t}{separator}pos" for t in texts)]))
    assert "joins the lines 2 to 3" in refusal(tmp_path / name)


def test_a_quote_that_never_closes_is_named_by_its_line(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\nx\ta\n"y\tb\n' + "z\ta\n" * 20)
    message = refusal(tmp_path / "a.tsv")
    assert message.startswith("a.tsv row 2: is not valid tsv (unexpected end of data); it begins on line 3.")
    assert message.endswith("if quotes are part of the text, set quoting=none.")
    assert read(tmp_path / "a.tsv", "none")[1] == ('"y', "b")


def test_a_quote_within_an_opened_cell_is_named_by_its_line(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\nx\ta\n"Yes" he said\tb\n')
    assert "it begins on line 3" in refusal(tmp_path / "a.tsv")
    assert read(tmp_path / "a.tsv", "none")[1] == ('"Yes" he said', "b")


def test_a_row_with_too_many_cells_after_joined_lines_names_the_lines(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"x\ta\ny"\tb\tc\n')
    message = refusal(tmp_path / "a.tsv")
    assert "row 1: has 3 cells; expected 2: text, label. It spans the lines 2 to 3" in message
    assert "set quoting=none" in message


TEXTS = {
    "plain": "line one of {i}\nline two",
    "commas": "Hello, world {i}\nand good bye",
    "commas on every line": "row {i}, first line\nsecond line",
    "blank lines": "a paragraph, {i}\n\nand another, longer, one",
    "quotes": 'he said "no" {i}\nand left',
    "windows": "line one, {i}\r\nline two",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_cell_of_several_lines_is_read_where_the_file_is_quoted(*, tmp_path, name, every, text):
    rows = [(text.format(i=i) if i % every == 0 else f"row {i}", ("pos", "neg")[i % 2]) for i in range(120)]
    with (tmp_path / name).open("w", newline="") as f:
        csv.writer(f, delimiter="\t" if name == "a.tsv" else ",").writerows([("text", "label"), *rows])
    assert read(tmp_path / name) == rows


def test_a_single_cell_of_several_lines_is_read_where_its_lines_are_no_rows(tmp_path):
    rows = [("a text\nof two lines", "pos"), *((f"row {i}", "neg") for i in range(100))]
    with (tmp_path / "a.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("text", "label"), *rows])
    assert read(tmp_path / "a.csv") == rows


def test_a_joined_row_with_lines_of_fewer_cells_than_others_is_refused_by_its_row(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label\ni like white 5,colour\nis it bear 51,animal\n"
        '"a ""quoted"", cell\nof two lines; é",number\ntext,label\ni like white 5,colour\n'
        "is it bear 51,yellow again 64,colour\ntell me 17,animal\nwhat is five 68,number\n"
    )
    with pytest.raises(UserError, match="row"):
        read(tmp_path / "a.csv")
