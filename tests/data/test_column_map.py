"""Columns under other names and inside of objects, and how many rows are read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import steps
from tuneport.data.column_map import ColumnMap, at, column_map
from tuneport.data.readers import Source
from tuneport.errors import UserError

ROWS = [{"data": {"text": f"text {i}"}, "meta": {"answer": {"label": str(i % 2)}}, "other": i} for i in range(20)]
NESTED = {"sentence1_key": "data.text", "label_key": "meta.answer.label"}


def step(data: Path, task: str = "text_classification", **values: Any) -> Any:
    return steps.load("preprocess", task)(
        model_selector_output="model", train_file_path=data, preprocess_output="out", **values
    )


def rows_of(step: Any) -> list[dict[str, Any]]:
    step.check()
    step.check_files()
    source: Source
    (source,) = step.sources()["train"]
    return [row.values for row in source.rows(step.wanted_columns())]


def written(folder: Path, kind: str) -> Path:
    """The rows as JSON lines, parquet, or CSV with JSON in its cells."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        cells = [",".join(f'"{json.dumps(v).replace(chr(34), chr(34) * 2)}"' for v in row.values()) for row in ROWS]
        path.write_text("data,meta,other\n" + "".join(f"{line}\n" for line in cells))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_key_leads_into_an_object_in_each_format(kind: str, tmp_path: Path) -> None:
    found = rows_of(step(written(tmp_path, kind), **NESTED))
    assert [row["data.text"] for row in found] == [row["data"]["text"] for row in ROWS]
    assert [row["meta.answer.label"] for row in found] == [row["meta"]["answer"]["label"] for row in ROWS]


def test_a_map_gives_columns_other_names_for_a_task_whose_names_are_fixed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "how?", "answer": {"text": "so"}, "tool_list": None}) + "\n")
    columns = json.dumps({"prompt": "question", "completion": "answer.text"})
    (row,) = rows_of(step(path, "chat_completion", chat_format="prompt_completion", columns=columns))
    assert (row["prompt"], row["completion"]) == ("how?", "so")


def test_a_field_of_the_task_is_a_name_in_the_map_too(tmp_path: Path) -> None:
    data, columns = written(tmp_path, "jsonl"), '{"sentence1": "data.text", "label": "meta.answer.label"}'
    found = rows_of(step(data, sentence1_key="text", label_key="label", columns=columns))
    assert (found[3]["text"], found[3]["label"]) == ("text 3", "1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**NESTED, "sentence1_key": "data.txt"}, r"'sentence1_key=data\.txt' not found.*Did you mean 'data\.text'\?"),
        ({**NESTED, "columns": '{"sentense1": "x"}'}, r"nobody reads 'sentense1'.*Did you mean 'sentence1'\?"),
        ({**NESTED, "columns": '{"sentence1": "othr"}'}, r"'columns\.data\.text=othr' not found.*Did you mean 'other'"),
        ({**NESTED, "columns": "prompt: x"}, r"columns='prompt: x': is not JSON"),
        ({**NESTED, "columns": '["a"]'}, r"expected an object of names, as in"),
        ({**NESTED, "columns": '{"sentence1": 3}'}, r"expected an object of names, as in"),
        ({**NESTED, "max_test_rows": 3}, r"max_test_rows=3: has no effect without test_file_path"),
        ({**NESTED, "max_train_rows": 0}, r"max_train_rows=0: reads nothing; expected at least 1, or -1 for all rows"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is_near(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(step(written(tmp_path, "jsonl"), **values))


def test_a_column_whose_own_name_has_a_dot_comes_first() -> None:
    found = column_map(None, {"text": "a.b"}, ())
    assert found.apply({"a.b": 1, "a": {"b": 2}})["a.b"] == 1
    assert ColumnMap().apply({"a": 1}) == {"a": 1}


def test_a_path_counts_in_lists_and_ends_in_null_where_it_leads_nowhere() -> None:
    values = {"turns": [{"text": "x"}], "cell": '{"a": 1}'}
    assert [at(values, p) for p in ("turns.0.text", "turns.1.text", "cell.a", "none.a")] == ["x", None, 1, None]
