"""A stored split reads its rows and tokens from files, the same ones as when all of them are read at once."""

from pathlib import Path

import pyarrow as pa
import pytest

from tuneport.data import shards
from tuneport.data.prepared import StoredSplit
from tuneport.data.shards import StoredRows

ROWS = [{"row_id": f"rows.csv:{i}", "text": "x" * i, "tags": [str(i)] * (i % 3)} for i in range(25)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The rows in several files of several batches."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 800)
    table = pa.Table.from_pylist(ROWS)
    with shards.ShardWriter(tmp_path / "rows", "train", table.schema) as writer:
        writer.write(table, 4)
    found = shards.shards(tmp_path / "rows", "train")
    assert len(found) > 1
    return found


def test_stored_rows_are_a_sequence_of_the_rows(files: list[Path]) -> None:
    stored = StoredRows(files, len(ROWS))
    assert len(stored) == 25 and list(stored) == ROWS == list(stored)  # again and again
    assert [stored[0], stored[7], stored[-1]] == [ROWS[0], ROWS[7], ROWS[-1]]
    assert stored[3:20:5] == ROWS[3:20:5] and stored[30:] == []
    with pytest.raises(IndexError):
        stored[25]


def test_the_tokens_of_a_stored_split_come_batch_by_batch_and_whole(files: list[Path]) -> None:
    split = StoredSplit(StoredRows(files, len(ROWS)), files)
    assert [row for batch in split.batches() for row in batch.to_pylist()] == ROWS == split.encoded.to_pylist()
    assert max(batch.num_rows for batch in split.batches()) == 4
