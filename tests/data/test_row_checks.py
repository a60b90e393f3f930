"""`tuneport validate` reads the first rows: what would fail later is refused, what is odd is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]
GOOD: Rows = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(40)]


@pytest.fixture
def validate(
    tuneport: Callable[..., int], tmp_path: Path, write_jsonl: Callable[..., Path], capsys: Any
) -> Callable[..., tuple[int, str]]:
    """The exit code and what is said of rows, or of a text that is a CSV file."""

    def run(rows: Rows | str, *more: str) -> tuple[int, str]:
        if isinstance(rows, str):
            data = tmp_path / "rows.csv"
            data.write_text(rows)
        else:
            data = write_jsonl(tmp_path / "rows.jsonl", rows)
        values = [f"train_file_path={data}", "huggingface_id=acme/m", "sentence1_key=text", "label_key=label"]
        code = tuneport("validate", "text_classification", *values, *more)
        done = capsys.readouterr()
        return code, " ".join((done.out + done.err).split())

    return run


def test_good_rows_are_valid_without_a_note(validate: Callable[..., tuple[int, str]]) -> None:
    code, said = validate(GOOD)
    assert code == 0 and "valid: text_classification" in said and "note:" not in said


@pytest.mark.parametrize(
    ("rows", "refusal"),
    [
        ([{**row, "text": None} for row in GOOD], "40 of 40 rows cannot be used"),
        ([{**row, "label": "a"} for row in GOOD], "all 40 rows looked at have one label, 'a'; expected at least two"),
        (GOOD[:4], "has 4 usable rows; expected at least min_rows=10"),
        ([*GOOD, {"text": "x", "label": 1.5}], "expected a label: text, a whole number"),
    ],
)
def test_what_would_fail_is_refused(rows: Rows, refusal: str, validate: Callable[..., tuple[int, str]]) -> None:
    code, said = validate(rows)
    assert code == 2 and refusal in said


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([*GOOD, {"text": None, "label": "a"}], "1 of the first 41 rows (2.4%) left out: null in column 'text'"),
        ("text;label\n" + "".join(f"row {i};{'ab'[i % 2]}\n" for i in range(40)), "separated by semicolons"),
        (
            [*GOOD, {"text": "x", "label": "A"}],
            "labels that may be one: 'A' (1 rows) and 'a' (20 rows): equal_labels=alike makes them one",
        ),
        ([{**row, "label": "a", "text": f"{i}"} for i, row in enumerate(30 * GOOD)], "more may follow"),
    ],
)
def test_what_is_odd_is_said(rows: Rows | str, note: str, validate: Callable[..., tuple[int, str]]) -> None:
    code, said = validate(rows)
    assert code == 0 and "note: " in said and note in said


def test_questions_that_all_have_an_answer_are_valid(
    tiny_model: Path, tuneport: Callable[..., int], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    answers = {"text": ["black"], "answer_start": [8]}
    rows = [{"question": f"which {i}", "context": f"cats is black {i}", "answers": answers} for i in range(40)]
    data = write_jsonl(tmp_path / "squad.jsonl", rows)
    keys = ["question_key=question", "context_key=context", "answers_key=answers", "doc_stride=8"]
    model = f"pytorch_model_path={tiny_model}"
    assert tuneport("validate", "question_answering", model, f"train_file_path={data}", *keys) == 0


def test_labels_that_only_held_out_rows_have_are_said(
    validate: Callable[..., tuple[int, str]], tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "other", "label": "c"}])
    assert "training rows looked at lack: c" in validate(GOOD, f"test_file_path={test}")[1]
