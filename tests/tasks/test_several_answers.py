"""Different answers to one prompt are kept by the tasks that write text, and no split learns another one's prompt."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steps
from tuneport import tasks
from tuneport.data.prepared import Prepared
from tuneport.errors import UserError
from tuneport.stage import execute

SPLITS = ("train", "validation", "test")
WRITING = ("summarization", "translation", "text_generation", "chat_completion")
COLUMNS: dict[str, dict[str, Any]] = {
    "text_classification": {"sentence1_key": "text", "label_key": "answer"},
    "summarization": {"document_key": "text", "summary_key": "answer", "max_target_length": 16},
    "translation": {"source_lang": "text", "target_lang": "answer", "max_target_length": 16},
    "text_generation": {"text_key": "text", "ground_truth_key": "answer"},
    "chat_completion": {},
}


def rows(prompts: int, answers: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "text": f"question {i}",
            "answer": f"answer {n}",
            "messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {n}"}],
            "author": f"{i}-{n}",
        }
        for n in range(first, first + answers)
        for i in range(prompts)
    ]


@pytest.fixture
def prepare(task_model: Any, write_jsonl: Any, tmp_path: Path, caplog: Any) -> Callable[..., Prepared]:
    """Run preprocess of a task on the rows of each split."""
    caplog.set_level("INFO", "tuneport.preprocess")

    def run(task: str, given: dict[str, list[dict[str, Any]]], **values: Any) -> Prepared:
        files = {f"{n}_file_path": write_jsonl(tmp_path / f"{n}.jsonl", found) for n, found in given.items()}
        stage = steps.load("preprocess", task)
        values = {**COLUMNS[task], "min_rows": 5, **values}
        execute(stage(model_selector_output=task_model(task), preprocess_output=tmp_path / "out", **files, **values))
        return Prepared(tmp_path / "out")

    return run


def inputs(prepared: Prepared, split: str) -> Counter[str]:
    identity = tasks.load(prepared.info.task_name).identity
    return Counter(identity(row) for row in prepared.rows(split))


@pytest.mark.parametrize("deduplicate", ["none", "exact", "near"])
@pytest.mark.parametrize("task", WRITING)
def test_every_answer_is_kept_and_those_to_one_prompt_are_in_one_split(prepare, task, deduplicate, caplog):
    prepared = prepare(task, {"train": rows(12, 10)}, deduplicate=deduplicate, near_duplicate_threshold=1)
    assert sum(prepared.info.splits.values()) == 120
    found = {split: inputs(prepared, split) for split in SPLITS}
    assert all(found.values())
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 12
    duplicates = prepared.report()["duplicates"]
    assert (duplicates["duplicates"], duplicates["with_another_reference"]) == (0, 0)
    assert duplicates["several_references"] == {"inputs": 12, "rows": 120}
    assert "120 rows are different answers to 12 inputs: they are kept, those to one input in one split" in caplog.text
    assert "duplicates removed" not in caplog.text


@pytest.mark.parametrize("task", WRITING)
def test_an_answer_that_is_repeated_is_a_duplicate(prepare, task, caplog):
    prepared = prepare(task, {"train": [*rows(20, 2), *rows(7, 1)]})
    assert sum(prepared.info.splits.values()) == 40
    assert prepared.report()["duplicates"]["removed"] == {"train": 7, "validation": 0, "test": 0}
    assert "7 duplicates removed" in caplog.text and "another answer" not in caplog.text


@pytest.mark.parametrize("task", WRITING)
def test_a_prompt_of_the_given_test_rows_is_not_learnt_whatever_its_answer(prepare, task, caplog):
    given = {"train": rows(20, 3), "validation": rows(6, 2, first=7), "test": [*rows(2, 2), *rows(2, 1, first=9)]}
    prepared = prepare(task, given)
    assert inputs(prepared, "test").total() == 6
    assert inputs(prepared, "validation").total() == 8
    assert inputs(prepared, "train").total() == 42
    found = [set(inputs(prepared, split)) for split in SPLITS]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]
    duplicates = prepared.report()["duplicates"]
    assert duplicates["removed"] == {"train": 18, "validation": 4, "test": 0}
    assert duplicates["with_another_reference"] == 18
    assert "22 duplicates removed, of which 18 with another answer, as their inputs are in another split" in caplog.text


def test_leaks_that_the_user_wants_to_keep_are_counted_by_their_prompts(prepare):
    prepared = prepare("translation", {"train": rows(20, 2), "test": rows(3, 2, first=1)}, deduplicate="none")
    report = prepared.report()["duplicates"]
    assert sum(prepared.info.splits.values()) == 46
    assert sum(report["across"].values()) == 6
    assert report["within"] == {"train": 0, "validation": 0, "test": 0}


def test_prompts_that_join_groups_keep_these_in_one_split(prepare):
    prepared = prepare("text_generation", {"train": rows(15, 4)}, group_key="author")
    found = [set(inputs(prepared, split)) for split in SPLITS]
    assert all(found)
    assert sum(map(len, found)) == 15


def test_a_near_duplicate_goes_with_all_answers_to_it(prepare, questions):
    long = [{"text": f"{q['text']} {i} " + q["text"] * 3, "answer": "a"} for i, q in enumerate(questions[:30])]
    near = [{"text": f"  {long[0]['text'].upper()}", "answer": answer} for answer in "xyz"]
    prepared = prepare("text_generation", {"train": [*long, *near]}, deduplicate="near", near_duplicate_threshold=0.95)
    report = prepared.report()
    assert report["near_duplicates"]["near_duplicates"] == 3
    assert sum(prepared.info.splits.values()) == 30


def test_a_single_prompt_cannot_be_split(prepare):
    with pytest.raises(UserError) as e:
        prepare("chat_completion", {"train": rows(1, 40)})
    assert str(e.value).startswith("train.jsonl: its 40 training rows have 1 different inputs; expected at least 3")
    assert "give validation_file_path and test_file_path" in str(e.value)


def test_a_classifier_counts_contradictory_labels_as_before(prepare, caplog):
    prepared = prepare("text_classification", {"train": [*rows(15, 1), *rows(15, 1), *rows(15, 1, first=1), *other()]})
    assert sum(prepared.info.splits.values()) == 30
    assert prepared.report()["duplicates"]["with_another_label"] == 15
    assert "30 duplicates removed, of which 15 with another label" in caplog.text


def other() -> list[dict[str, Any]]:
    return [{"text": f"another {i}", "answer": "answer 1"} for i in range(15)]
