"""What a run takes over of a stage that others did with other values: the parts that are of use to any run."""

from pathlib import Path

from tuneport.artifacts import Report
from tuneport.runner import shared_stages


def test_the_newest_run_that_has_a_part_hands_it_on_and_what_is_there_stays(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("newest", "older", "oldest")]
    for run in runs[1:]:
        part = run / "model_evaluation" / "evaluation_result" / "base_answers"
        part.mkdir(parents=True)
        (part / "answers.jsonl").write_text(run.name)
    own = tmp_path / "own" / "model_evaluation"
    outputs = {"evaluation_result": Report(own / "evaluation_result")}
    shared_stages.hand_on(iter(runs), own, ("base_answers",), outputs)
    taken = own / ".evaluation_result.partial" / "base_answers" / "answers.jsonl"
    assert taken.read_text() == "older"
    taken.write_text("mine")
    shared_stages.hand_on(iter(runs), own, ("base_answers",), outputs)
    assert taken.read_text() == "mine"
    assert (
        runs[1] / "model_evaluation" / "evaluation_result" / "base_answers" / "answers.jsonl"
    ).read_text() == "older"
    assert not (tmp_path / "own" / "nothing").exists()
    shared_stages.hand_on(iter(runs), tmp_path / "own" / "nothing", (), outputs)
    assert not (tmp_path / "own" / "nothing").exists()
