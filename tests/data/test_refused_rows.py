"""Rows that a task refuses are read to the end of the source and named together."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport.data import read_rows
from tuneport.data.near_duplicates import NearDuplicateIndex
from tuneport.data.readers import find
from tuneport.errors import UserError
from tuneport.tasks.task import Refuse, Row
from tuneport.tasks.text_classification import TextClassification


class Strict(TextClassification):
    """Refuses the colour red by its place, and the animal goat."""

    def reader(self, options: Any) -> Callable[[Mapping[str, Any], str], Row]:
        read = super().reader(options)

        def strict(raw: Mapping[str, Any], where: str) -> Row:
            words = (raw["text"] or "").split()
            if "red" in words:
                raise Refuse("a forbidden colour", f"word {words.index('red') + 1}")
            if "goat" in words:
                raise Refuse("a forbidden animal; expected another")
            return read(raw, where)

        return strict


@pytest.fixture
def collect(tmp_path: Path) -> Callable[..., Any]:
    def run(path: Path) -> Any:
        options: Any = steps.load("preprocess", "text_classification")(
            model_selector_output=tmp_path, train_file_path=path, sentence1_key="text", label_key="label"
        )
        return read_rows.collect(
            Strict(),
            options,
            sources={"train": [find(path, "train_file_path")]},
            wanted={"sentence1_key": "text", "label_key": "label"},
            scratch=tmp_path / "scratch",
            dropped=tmp_path / "dropped",
            near=NearDuplicateIndex(tmp_path / "shingles", 0.8),
        )

    return run


def test_rows_are_named_by_problem_the_commonest_first_before_dropped_ones_are_counted(
    collect: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    texts = ["a red cat", "a dog", None, "red", "a goat", "so red"]
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": text, "label": "x"} for text in texts])
    with pytest.raises(UserError) as e:
        collect(path)
    assert str(e.value) == (
        "train.jsonl: 4 of 6 rows are wrong: a forbidden colour (3 rows: train.jsonl row 1 (word 2), "
        "train.jsonl row 4 (word 1), train.jsonl row 6 (word 2)); a forbidden animal; expected another "
        "(1 row: train.jsonl row 5). Mend or remove them."
    )


def test_twenty_rows_are_named_and_the_rest_is_counted(collect: Any, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{"text": f"goat {i}", "label": "x"} for i in range(1, 21)]
    with pytest.raises(UserError, match=r"\(20 rows: .*row 19, train.jsonl row 20\)\. Mend"):
        collect(write_jsonl(tmp_path / "train.jsonl", rows))
    with pytest.raises(UserError, match=r"\(21 rows: .*row 19, train.jsonl row 20 and 1 more\)\. Mend"):
        collect(write_jsonl(tmp_path / "train.jsonl", [*rows, rows[0]]))
