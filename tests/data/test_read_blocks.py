"""Rows that several processes read: what is found is what one finds, and what is refused is refused in its words."""

import csv
import dataclasses as dc
import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import steps
from tuneport import tasks
from tuneport.data import read_blocks, read_rows
from tuneport.data.locate import DataFile
from tuneport.data.near_duplicates import NearDuplicateIndex
from tuneport.data.read_blocks import BlockReader
from tuneport.data.readers import Source, find
from tuneport.data.remote import Remote
from tuneport.errors import UserError

BLOCK = 8
WANTED = {"sentence1_key": "text", "label_key": "label"}
ROWS: list[dict[str, Any]] = [
    {"text": None if i % 13 == 5 else f"row {i % 50}", "label": ("Yes ", "no", "Yes")[i % 3]} for i in range(101)
]
ROWS[40] = {"text": "text", "label": "label"}  # a header in the midst


def options(**values: Any) -> Any:
    given = {"train_file_path": "unused", "sentence1_key": "text", "label_key": "label", "max_dropped_fraction": 0.5}
    return steps.load("preprocess", "text_classification")(
        **{**given, "model_selector_output": "unused", "preprocess_output": "unused", "batch_size": BLOCK, **values}
    )


@dc.dataclass
class Read:
    """Reads files with a number of processes, and says all that was found or why not."""

    folder: Path

    def __call__(self, source: Source, processes: int, **values: Any) -> Any:
        near = NearDuplicateIndex(self.folder / "shingles", 0.9)
        scratch, dropped = self.folder / "scratch", self.folder / "dropped"
        try:
            found = read_rows.collect(
                tasks.load("text_classification"),
                options(**values),
                sources={"train": [source]},
                wanted=WANTED,
                scratch=scratch,
                dropped=dropped,
                near=near,
                processes=processes,
            )
        except UserError as e:
            return str(e)
        finally:
            near.close()
        counts = [{**vars(count), "notes": count.notes.report()} for count in found.counts]
        arrays = [array.tobytes() for array in (found.identities, found.contents, found.classes, found.groups)]
        spellings = (found.spellings.merged(), found.spellings.known, found.spellings.same)
        return arrays, counts, found.class_labels, spellings, scratch.read_bytes(), dropped.read_text()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    (tmp_path / "made").mkdir()
    return Read(tmp_path / "made")


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" + "\n" * (i % 7 == 3) for i, row in enumerate(rows))
    if name == "rows":
        path.mkdir()
        for part in range(3):
            write(path, f"{part}.jsonl", rows[part * 30 : (part + 1) * 30 if part < 2 else None])
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=19)
    elif name.endswith(".csv"):
        with path.open("w", newline="") as f:
            writer = csv.DictWriter(f, ["text", "label"], delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


FILES = ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows.json", "rows"]


@pytest.mark.parametrize("name", FILES)
def test_several_processes_find_what_one_finds(name: str, read: Read, tmp_path: Path) -> None:
    source = find(write(tmp_path, name, ROWS), "train_file_path")
    one = read(source, 1)
    assert not isinstance(one, str), one
    (count,) = one[1]
    assert count["read"] == 101 and sum(count["dropped"].values()) == 9
    assert one[3][0] == {"Yes": {"Yes ": 31}}
    for processes in (2, 3):
        assert read(source, processes) == one


@pytest.mark.parametrize("more", [lambda row: 0, lambda row: row - 59], ids=["one by one", "all at once"])
@pytest.mark.parametrize("name", FILES)
def test_rows_that_are_not_asked_for_are_numbers_the_first_of_which_stands_for_one_row(
    name: str, more: Callable[[int], int], tmp_path: Path
) -> None:
    source = find(write(tmp_path, name, ROWS), "train_file_path")
    asked: list[int] = []

    def unread(row: int) -> int:
        asked.append(row)
        return 25 - row if row < 25 else more(row) if row < 60 else 101 - row

    found = list(source.rows_apart(WANTED, unread=unread))
    assert sum(row if isinstance(row, int) else 1 for row in found) == 101
    places = [i for i, row in enumerate(found) if isinstance(row, int)]
    assert all(found[i] == 1 for i in places if i == 0 or i - 1 not in places)
    every = {row.row_id: row for row in source.rows(WANTED)}
    read = [row for row in found if not isinstance(row, int)]
    assert [every[row.row_id] for row in read] == read
    if name.split(".", 1)[-1] in ("jsonl", "jsonl.gz", "csv"):
        assert read == [*every.values()][25:60]
        assert (26 in asked) == (more(26) == 0), "the answer for row 25 is for those after it, too"


@pytest.mark.parametrize("deduplicate", ["near", "exact"])
@pytest.mark.parametrize("most", [None, 1, BLOCK, 2 * BLOCK + 3, 101, 500])
def test_the_first_rows_alone_are_those_of_one_process(
    most: int | None, deduplicate: str, read: Read, tmp_path: Path
) -> None:
    path = write(tmp_path, "rows.jsonl", [{"text": f"row {i}", "label": "a"} for i in range(101)])
    with path.open("a") as f:
        f.write("no JSON\n")  # which is not met where fewer rows are read
    source = dc.replace(find(path, "train_file_path"), max_rows=most)
    one = read(source, 1, deduplicate=deduplicate, group_key="text")
    assert isinstance(one, str) == (most in (None, 101, 500))
    assert read(source, 3, deduplicate=deduplicate, group_key="text") == one


@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, 3 * BLOCK + 1, 100])
@pytest.mark.parametrize(
    "bad", ['{"text": 5, "label": "a"}', '{"text": "x", "label": 5}', "[1]", "{", '{"text": "\udc80"}']
)
def test_what_cannot_be_read_is_refused_in_the_same_words(bad: str, at: int, read: Read, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {i}", "label": "a"}) for i in range(101)]
    lines[at] = bad
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    source = find(path, "train_file_path")
    one = read(source, 1)
    told = at + 1 if at or '"label": 5' not in bad else 2  # the first label says what type the others have
    assert isinstance(one, str) and f"rows.jsonl row {told}" in one
    assert read(source, 3) == one


@pytest.mark.parametrize("at", [2, BLOCK + 2, 4 * BLOCK])
def test_a_row_of_other_cells_and_a_cut_file_are_refused_in_the_same_words(at: int, read: Read, tmp_path: Path) -> None:
    lines = ["text,label", *(f"row {i},a" for i in range(101))]
    lines[at] += ",more"
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    whole = gzip.compress(
        b"".join(json.dumps({"text": os.urandom(40).hex(), "label": "a"}).encode() + b"\n" for _ in range(101))
    )
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("rows.csv", "rows.jsonl.gz"):
        source = find(tmp_path / name, "train_file_path")
        one = read(source, 1)
        assert isinstance(one, str) and one.startswith(name)
        assert read(source, 3) == one


def test_first_blocks_without_a_usable_row_are_read_before_the_others_so_that_labels_are_of_one_type(
    read: Read, tmp_path: Path
) -> None:
    rows = [{"text": None, "label": None}] * (2 * BLOCK) + [{"text": f"row {i}", "label": i // 40} for i in range(60)]
    path = write(tmp_path, "rows.jsonl", rows)
    source = find(path, "train_file_path")
    one = read(source, 1)
    assert not isinstance(one, str) and read(source, 3) == one
    path = write(tmp_path, "rows.jsonl", [*rows, {"text": "x", "label": "a"}])
    one = read(find(path, "train_file_path"), 1)
    assert "holds text 'a', but earlier rows hold" in one and read(source, 3) == one


@pytest.mark.parametrize("lost", [1, 2, 5, 12])
def test_blocks_of_a_process_that_is_killed_are_read_here(
    lost: int, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, here, ever = find(write(tmp_path, "rows.jsonl", ROWS), "train_file_path"), os.getpid(), BlockReader.read
    one = read(source, 1)

    def dying(self: BlockReader, blocks: Any, *given: Any) -> Any:
        if os.getpid() != here and blocks.number == lost * BLOCK:
            os.kill(os.getpid(), signal.SIGKILL)
        return ever(self, blocks, *given)

    monkeypatch.setattr(BlockReader, "read", dying)
    assert read(source, 2) == one
    assert "has ended early; its rows are prepared here" in caplog.text


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BlockReader]:
    monkeypatch.setattr(read_blocks, "cores", lambda: 4)
    monkeypatch.setattr(read_blocks, "WORTHWHILE", 1000)
    source = find(write(tmp_path, "rows.jsonl", ROWS), "train_file_path")

    def made(changed: dict[str, Any] | None = None, **values: Any) -> BlockReader:
        found = dc.replace(source, **changed or {})
        return BlockReader(tasks.load("text_classification"), options(**values), found, WANTED)

    return made


def test_one_process_reads_few_rows_those_of_a_store_and_where_their_order_counts(
    reader: Callable[..., BlockReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_blocks._processes(reader()) == 4
    assert read_blocks._processes(reader({"max_rows": 3 * BLOCK})) == 1
    assert read_blocks._processes(reader(equal_labels="alike")) == 1  # the first spelling stands for all
    (shard,) = reader().source.shards
    remote = Remote(address=shard.file.address, size=10**9, version="1")
    elsewhere = dc.replace(shard, file=DataFile(address=shard.file.address, remote=remote))
    assert read_blocks._processes(reader({"shards": (elsewhere,)})) == 1  # each process would fetch all of it
    monkeypatch.setattr(read_blocks, "WORTHWHILE", 10**6)
    assert read_blocks._processes(reader()) == 1


def test_a_task_of_ours_says_that_its_rows_may_be_read_apart_and_another_one_has_to() -> None:
    assert all(tasks.load(name).reads_rows_apart for name in tasks.names())
    assert not tasks.Task.reads_rows_apart
